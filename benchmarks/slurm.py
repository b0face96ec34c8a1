"""Which ends of a job on a real SLURM were tried, and whether the student came out the same.

    python benchmarks/slurm.py batch_file|chain|accounting --json FILE

`batch_file`: training by slurm/train.sbatch alone. `chain`: runs by slurm/submit.py, where jobs may be requeued and
where they may not; shards; and how long submit.py and status.py take. `accounting`: the same runs on a SLURM with
accounting, and what status.py makes of it. Each test that cuts a run lets it go on, and compares its student with the
uninterrupted run's, byte for byte. Needs root, and Debian's slurm-wlm and munge; for accounting slurmdbd and
mariadb-server.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.environment import ROOT, measured
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import temporary_folder, write_atomically

_CUTS, _LIGHT = "tests/slurm/test_cuts.py", "tests/commands/test_light.py::test_"
TESTS = {
    "batch_file": ("tests/slurm/test_slurm.py",),
    "chain": (
        *(_CUTS, "tests/slurm/test_shards.py", "-k", "not with_accounting"),
        f"{_LIGHT}a_login_node_needs_nothing_heavy",
        f"{_LIGHT}a_chain_is_shown_without_torch",
        f"{_LIGHT}the_state_of_a_run_is_shown_without_torch",
    ),
    "accounting": (_CUTS, "tests/slurm/test_accounting.py", "-k", "accounting"),
}
"""Arguments of pytest."""
NOT_MEASURED = "GPUs, several machines, a cluster's own network and file system"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cut jobs on a real SLURM, and compare what comes out.")
    parser.add_argument("what", choices=TESTS, help="which tests")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    head = measured(NOT_MEASURED)
    slurm = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    head["versions"]["slurm"] = slurm
    with temporary_folder() as folder:
        report = folder / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS[arguments.what], f"--junitxml={report}"], cwd=ROOT)
        cases = list(ElementTree.parse(report).iter("testcase"))
    rows = {str(case.get("name")).removeprefix("test_"): row(case) for case in cases}
    write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
    if failed := [name for name, values in rows.items() if values["outcome"] != "passed"]:
        raise UserError(f"{len(failed)} of {len(rows)} did not pass: {', '.join(failed)}")
    return EXIT_DONE


def row(case: ElementTree.Element) -> dict[str, Any]:
    """Outcome, seconds, and what the test noted: the step that the run went on from, the job's restarts, times."""
    outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
    noted = {str(item.get("name")): json.loads(str(item.get("value"))) for item in case.iter("property")}
    return {"outcome": outcome, "seconds": round(float(case.get("time", 0)), 1), **noted}


if __name__ == "__main__":
    run_entry_point(main)
