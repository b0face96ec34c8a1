"""Judge what slurm/check_node.py found on every node of a job, and name the bad ones, a sentence each.

    srun ... python slurm/check_node.py RUN RECIPE | python slurm/judge_nodes.py RUN --since SECONDS

A fault of the disk or the shards that all nodes have is not theirs: code 2, and another try would not help. A bad node
is noted in RUN/slurm/bad_nodes, and the code is 70, as if a rank had been lost: `requeue.py` tries again, and without
nodes that were bad twice.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.environment import commit, versions
from pipeline.errors import EXIT_DONE, EXIT_HUNG, UserError, run_entry_point
from pipeline.files import writing
from slurm.record import FOLDER
from slurm.requeue import BAD_NODES

CLOCK_SECONDS = 60
"""How far a node's clock may be from that of the first node."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Name the bad nodes of a job; for slurm/train.sbatch.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--since", type=float, required=True, metavar="SECONDS", help="when the check began")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    found = dict(read(sys.stdin.read()))
    bad = judge(node_names(), found, arguments.since, time.time())
    if not bad:
        print(f"{len(found)} nodes are fit to train", flush=True)
        return EXIT_DONE
    with writing(arguments.run), open(arguments.run / FOLDER / BAD_NODES, "a", encoding="utf-8") as stream:
        for name, reason in bad.items():
            stream.write(f"{name}: {reason}\n")
            print(f"error: node {name}: {reason}", file=sys.stderr, flush=True)
    return EXIT_HUNG


def read(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each node said, by its name. Other lines are of libraries, or of SLURM."""
    for line in text.splitlines():
        try:
            found = json.loads(line)
            yield found["node"], found
        except (ValueError, KeyError, TypeError):
            print(line, flush=True)


def node_names() -> list[str]:
    """The nodes of this job, the first one first."""
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def judge(names: list[str], found: dict[str, dict[str, Any]], since: float, now: float) -> dict[str, str]:
    """The bad nodes and what is wrong with each, in one sentence.

    Args:
        names: all nodes, the first of them the one this runs on.
        found: what `check_node.py` said.
        since: when the check began, in seconds since the epoch.
        now: when it was over.

    Raises:
        UserError: every node has the same fault in what they share.
    """
    shared = set.intersection(*(set(found[name]["common"]) if name in found else set() for name in names))
    if shared:
        raise UserError(*sorted(shared))
    faults = {name: list(node_faults(found.get(name), since, now)) for name in names}
    return {name: "; ".join(sentences) for name, sentences in faults.items() if sentences}


def node_faults(node: dict[str, Any] | None, since: float, now: float) -> Iterator[str]:
    """What is wrong with one node."""
    if node is None:
        yield "its check gave no answer"
        return
    yield from node["own"]
    yield from node["common"]
    here = {**versions(), "code": commit()}
    for name, version in {**node["versions"], "code": node["commit"]}.items():
        if version != here.get(name):
            yield f"{name} is {version} there and {here.get(name)} on the first node"
    if not since - CLOCK_SECONDS <= node["time"] <= now + CLOCK_SECONDS:
        yield f"its clock is {abs(node['time'] - now):.0f} seconds off the first node's"


if __name__ == "__main__":
    run_entry_point(main)
