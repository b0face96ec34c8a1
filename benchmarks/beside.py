"""The steps of another checkout of this repository, timed in turn with those of this one.

    python benchmarks/beside.py CHECKOUT OPTIONS...

That is the process that `step_time.py --beside CHECKOUT` starts: it builds the rows of the CHECKOUT's own step_time.py
with these options, warms up, says in a line of JSON which commit it is, and then times one step of every row whose
name it reads. So both checkouts are warm, neither runs while the other one is timed, and drift meets both alike.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = Path(__file__).resolve()


class Beside:
    """The process, from the side of the one that asks.

    Args:
        checkout: the other checkout's directory.
        options: of step_time.py, without `--beside` and `--json`.

    Attributes:
        commit: of the checkout.
        seconds: of every row, step by step.
    """

    def __init__(self, checkout: Path, options: Sequence[str]) -> None:
        command = [sys.executable, str(FILE), str(checkout.resolve()), *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.commit: str = self._read()
        self.seconds: dict[str, list[float]] = {}

    def __enter__(self) -> "Beside":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # an end of its input is the process's end

    def step(self, name: str) -> None:
        """Time one step of a row, if the other checkout has it."""
        assert self._process.stdin
        print(name, file=self._process.stdin, flush=True)
        seconds = self._read()
        if seconds is not None:
            self.seconds.setdefault(name, []).append(seconds)

    def _read(self) -> Any:
        from pipeline.errors import UserError

        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise UserError(f"--beside: the other checkout ended with exit code {self._process.returncode}, see above")
        return json.loads(line)


def serve(checkout: str, options: Sequence[str]) -> None:
    """What the process does."""
    sys.path[0] = checkout
    from benchmarks import step_time, steps
    from pipeline.environment import commit

    sys.argv = ["step_time.py", *options]
    arguments = step_time.parse_arguments()
    setting = step_time.read_setting(arguments)
    batches = steps.make_batches(setting)
    models = steps.build_models(setting, tuple(tensor[:4] for tensor in batches[0]))
    rows = steps.make_rows(setting, models, arguments.variants, arguments.compile)
    steps.measure(setting, rows, batches, rounds=0)
    print(json.dumps(commit()), flush=True)
    for line in sys.stdin:
        row = rows.get(line.strip())
        seconds = steps.seconds_of(setting, lambda row=row: row.step(batches)) if row else None
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
