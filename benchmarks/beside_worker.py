"""Times the steps of another checkout of this repository, when it is told to.

    python benchmarks/beside_worker.py CHECKOUT OPTIONS...

That is the process that `step_time.py --beside CHECKOUT` starts. It builds the rows of CHECKOUT's own step_time.py with
these options, warms up, says in a line of JSON which commit it is, and then times one step of every row whose name it
reads.
"""

import json
import sys

sys.path[0] = sys.argv[1]

from benchmarks import step_time, steps
from pipeline.environment import commit


def main() -> None:
    sys.argv = ["step_time.py", *sys.argv[2:]]
    arguments = step_time.parse_arguments()
    setting = step_time.read_setting(arguments)
    batches = steps.make_batches(setting)
    ids, positions, labels = (tensor[:4] for tensor in batches[0])
    models = steps.build_models(setting, (ids, positions, labels))
    rows = steps.make_rows(setting, models, arguments.variants, arguments.compile)
    steps.measure(setting, rows, batches, rounds=0)
    print(json.dumps(commit()), flush=True)
    for line in sys.stdin:
        row = rows.get(line.strip())
        seconds = steps.seconds_of(setting, lambda row=row: row.step(batches)) if row else None
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
