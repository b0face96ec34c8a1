"""How fast text is read ahead of the training, and what it takes from the loop that launches the training.

    python benchmarks/loader.py --json FILE [--before REV] [--rounds N] [--seconds S] [--tokens N]

Two corpora of random ids are written, one in shards as build_shards.py makes them and one in a thousand small ones, in
which nearly every window of a micro-batch lies in another shard. For both, the thread of an earlier revision, today's
thread and the process are measured in turn, each in a new process on at most two cores (loader_worker.py):

- tokens per second, where nothing else is done;
- the rate at which the main thread launches small operations while 5 M tokens per second are read, in per cent of its
  rate alone, and the share of time in which it waits for text;
- seconds until the first micro-batch, at step 0 and at step 300,000.

The machine must be quiet. It takes four minutes and 500 MB of disk.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks.compare_commits import ROOT, checked_out, commit_of
from pipeline.data.indexed import IndexedWriter
from pipeline.data.manifest import Manifest
from pipeline.environment import measured
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import temporary_folder, write_atomically
from pipeline.launch import positive_int
from pipeline.reporting.tables import markdown_table

LAST_WITH_LOOPS = "25640b1"
"""The last revision whose thread read window by window."""
VOCABULARY = 30_522
SHARDS = {"large shards": 25, "1,000 shards": 1000}
COLUMNS = ("M tokens/s", "launches beside it, %", "waits, %", "first at step 0, s", "at step 300,000, s")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    parser.add_argument("--before", default=LAST_WITH_LOOPS, metavar="REV", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--tokens", type=positive_int, default=100_000_000, help="in a corpus (default: %(default)s)")
    return parser.parse_args()


def write_corpus(directory: Path, shards: int, tokens: int) -> Path:
    """Shards of random ids, documents of some 300 tokens."""
    directory.mkdir()
    draw, written = np.random.default_rng(0), []
    for number in range(shards):
        lengths = np.maximum(1, draw.lognormal(5.2, 1.0, max(tokens // shards // 300, 1))).astype(np.int64)
        writer = IndexedWriter(directory / f"s{number}", VOCABULARY)
        writer.add(draw.integers(1000, VOCABULARY, int(lengths.sum())), lengths)
        written.append(writer.finish())
    Manifest("0" * 64, "0" * 64, VOCABULARY, {}, tuple(written)).write(directory)
    return directory


def measure(tree: Path, kind: str, corpus: Path, seconds: float) -> dict[str, Any]:
    """What loader_worker.py finds."""
    worker = Path(__file__).with_name("loader_worker.py")
    command = [sys.executable, str(worker), str(tree), kind, str(corpus), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{kind} cannot be measured: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def summed_up(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, and the range of each where it is a number of its own."""
    row: dict[str, Any] = {}
    for name, first in rounds[0].items():
        if isinstance(first, dict):
            row[name] = {key: statistics.median(found[name][key] for found in rounds) for key in first}
        else:
            values = [found[name] for found in rounds]
            row[name], row[f"{name}_range"] = statistics.median(values), [min(values), max(values)]
    return row


def cells(name: str, row: dict[str, Any]) -> list[str]:
    shares = (f"{100 * row[share]:.0f}" for share in ("launches_share", "waiting_share"))
    return [name, f"{row['tokens_per_s'] / 1e6:.1f}", *shares, *(f"{s:.3f}" for s in row["first_batch_s"].values())]


def main() -> int:
    arguments = parse_arguments()
    head = measured(not_measured="GPUs and pinned memory, several ranks, disks: the text lies in the page cache")
    rows: dict[str, dict[str, Any]] = {}
    with temporary_folder() as folder, checked_out(arguments.before, folder / "before") as before:
        kinds = {f"thread at {commit_of(arguments.before)}": (before, "before")}
        kinds |= {kind: (ROOT, kind) for kind in ("thread", "process")}
        for corpus_name, shards in SHARDS.items():
            corpus = write_corpus(folder / str(shards), shards, arguments.tokens)
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
            for number in range(arguments.rounds):
                for name, (tree, kind) in kinds.items():
                    found[name].append(measure(tree, kind, corpus, arguments.seconds))
                    print(f"{corpus_name}, round {number + 1}: {name}", file=sys.stderr, flush=True)
            rows |= {f"{name}, {corpus_name}": summed_up(rounds) for name, rounds in found.items()}
    print(markdown_table(["", *COLUMNS], [cells(name, row) for name, row in rows.items()]))
    write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
