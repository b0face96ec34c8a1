"""Kill a training run at random moments and write down what came of it.

    python tests/engine/faults/run.py --kills 20 --json benchmarks/results/YYYY-MM-DD_faults.json

Every run is a real job of two ranks under torchrun on this machine's CPUs (gloo), see `harness`. It takes about half
a minute per kill on two cores. Exit code 0 if every run ended bit for bit as the uninterrupted one.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent.parent
sys.path[0] = str(ROOT)

from pipeline.environment import commit, machine, versions
from pipeline.files import write_atomically
from tests.engine.faults.harness import CONFIGURATIONS, HITS, Harness, plan


def run(kills: int, seed: int, directory: Path, json_path: Path | None = None) -> dict[str, Any]:
    """Carry out a plan; what the JSON file holds. The file is written after every run, so an abort leaves the rest."""
    harness = Harness(directory)
    report: dict[str, Any] = {
        "what": "two ranks on CPUs (gloo) under torchrun; each run is killed (SIGKILL) at every moment listed and then "
        "ends; a kill too late for its moment is undone and aimed again; equal: its final checkpoint byte for "
        "byte, metrics without times and selections are those of the uninterrupted run of its configuration",
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python tests/engine/faults/run.py --kills {kills} --seed {seed} --json FILE",
        "not_measured": "several machines, GPUs (nccl), fp16",
        "kills": 0,
        "missed_and_undone": 0,
        "hits": dict.fromkeys([*HITS.values(), "a step"], 0),
        "all_equal": True,
        "rows": {},
    }
    for number, (aims, configuration) in enumerate(zip(plan(kills, seed), cycle(CONFIGURATIONS), strict=False), 1):
        row = harness.run(number, configuration, aims)
        report["rows"][f"run {number}"] = row
        report["kills"] += len(row["kills"])
        report["missed_and_undone"] += len(row["missed_and_undone"])
        for kill in row["kills"]:
            report["hits"][next((what for what in HITS.values() if what in kill["hit"]), "a step")] += 1
        report["all_equal"] = report["all_equal"] and row["equal"]
        print(f"run {number}: {json.dumps(row, indent=1)}", flush=True)
        if json_path:
            write_atomically(json_path, (json.dumps(report, indent=1) + "\n").encode())
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a training run at random moments; it must end as if unhurt.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="draws other moments")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="faults_"))
    report = run(arguments.kills, arguments.seed, directory, arguments.json)
    if report["all_equal"]:
        shutil.rmtree(directory)
        return 0
    print(f"error: runs differ; everything lies in {directory}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
