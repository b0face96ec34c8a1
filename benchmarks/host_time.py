"""What an optimizer step costs the host: the trainer, with models so small that the arithmetic costs little.

    python benchmarks/host_time.py --json FILE [--before REV] [--widths FROM:TO ...] [--precisions fp32 bf16]
        [--rounds N] [--steps N]

BERTs of 12 layers are narrowed from one width to another after a few steps; one window of 16 tokens a step, ZeRO 1, one
rank on one thread of a CPU. There is no dropout, which a CPU puts together from several operations where a GPU has one.
In every round an earlier revision and the files here train in turn, each in a process of its own. The files here read
ahead in another process, as they do on GPUs; the earlier revision can only do so in a thread.

Widths decide what a CPU adds that a GPU does not: from 16 to 8, no layer's product has more than 4,096
multiply-accumulates once narrowed; larger ones go through oneDNN in bf16, which takes 16 microseconds to begin one on
an Intel Xeon, where a small one takes 4. From 192 to 48 the arithmetic counts as well.

The milliseconds are those of `time_ms` in the runs' metrics.jsonl, without logging, evaluation and checkpoints: in each
round the median over the logged steps of the narrowed model, then the median over rounds, with their range. The
breakdown is by phase: medians over all logged steps of all rounds, whose sum need not be the whole.

The machine must be quiet. It takes some fifteen minutes.
"""

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.compare_commits import ROOT, checked_out, commit_of
from benchmarks.gpu_runs import Inputs
from pipeline.environment import commit, measured
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import temporary_folder, write_atomically
from pipeline.launch import positive_int
from pipeline.records import NOT_TRAINING, markdown_table
from pipeline.shapes import BertShape

LAST_COMPOSED_LAYER_BY_LAYER = "25640b1"
"""The last revision whose layers composed for themselves."""
WIDTHS = ((16, 8), (24, 12), (192, 48))
HEADS = 2
WINDOWS, TOKENS = 1, 16
NARROWED, LOG_EVERY = 4, 5
"""The step that narrows, and steps between two logged ones."""
SETTLED = 20
"""From this step on the times count: what the narrowed model needs for the first time is there."""
READER = ("--data.reader", "process")
"""As GPUs have it; on CPUs the default is a thread."""
PHASES = ("data", "compaction", "forward", "backward", "agree", "optimizer", "other")


def width_pair(text: str) -> tuple[int, int]:
    """Type of `--widths`."""
    wide, _, narrow = text.partition(":")
    if not (wide.isdecimal() and narrow.isdecimal() and 0 < int(narrow) < int(wide)):
        raise argparse.ArgumentTypeError(f"{text!r} is no FROM:TO, such as 24:12")
    if int(wide) % HEADS or int(narrow) % HEADS:
        raise argparse.ArgumentTypeError(f"{text!r}: both must be multiples of {HEADS}")
    return int(wide), int(narrow)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    earlier = LAST_COMPOSED_LAYER_BY_LAYER
    parser.add_argument("--before", default=earlier, metavar="REV", help="(default: %(default)s)")
    parser.add_argument("--widths", nargs="+", type=width_pair, default=list(WIDTHS), metavar="FROM:TO")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--steps", type=positive_int, default=120, help="of a run (default: %(default)s)")
    return parser.parse_args()


def sections(steps: int, narrow: int) -> dict[str, dict[str, Any]]:
    """Of the recipe that narrows to that width."""
    train = {"steps": steps, "global_batch": WINDOWS, "lr": 1e-4, "compactor_lr": 1e-4, "log_every": LOG_EVERY}
    train |= {"dropout": 0.0, "checkpoint_every": steps, "evaluate_every": steps}
    schedule = {"start_step": NARROWED - 2, "interval_steps": 1, "increments": 1, "decay_steps": 2}
    return {
        "data": {"seq_len": TOKENS, "heldout_windows": WINDOWS},
        "target": {"hidden": narrow, "head_size": narrow // HEADS},
        "compaction": schedule,
        "train": train,
    }


def times_of(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Milliseconds of the narrowed steps of a run, by phase; `step` is the whole of the training."""
    times = [line["time_ms"] for line in lines if line["step"] - LOG_EVERY >= SETTLED]
    return [{**row, "step": row["step"] - sum(row[phase] for phase in NOT_TRAINING)} for row in times]


def summed_up(rounds: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Of the rounds of one revision."""
    medians = [statistics.median(row["step"] for row in times) for times in rounds]
    every = [row for times in rounds for row in times]
    return {
        "host_ms": statistics.median(medians),
        "host_ms_range": [min(medians), max(medians)],
        "time_ms": {phase: statistics.median(row[phase] for row in every) for phase in PHASES},
        "rounds": medians,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = []
    for name, row in rows.items():
        low, high = row["host_ms_range"]
        cells = [f"{row['host_ms']:.1f}", f"{low:.1f} to {high:.1f}", *(f"{row['time_ms'][p]:.1f}" for p in PHASES)]
        lines.append([name, *cells])
    return markdown_table(["", "ms a step", "least to most", *PHASES], lines)


def measure(arguments: argparse.Namespace, trees: dict[str, Path], folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by precision, widths and revision."""
    inputs = {widths: Inputs(folder / "{}_{}".format(*widths), "cpu", threads=1) for widths in arguments.widths}
    for (wide, narrow), these in inputs.items():
        teacher = BertShape(12, wide, HEADS, 4 * wide, vocab_size=100, positions=32)
        these.make(teacher, tokens=20_000, sections=sections(arguments.steps, narrow))
    found: dict[str, list[list[dict[str, float]]]] = {}
    for number, precision, widths in itertools.product(range(arguments.rounds), arguments.precisions, inputs):
        for place, (revision, tree) in enumerate(trees.items()):
            name, run = "{}, {} to {}, {}".format(precision, *widths, revision), f"{precision}_{place}_{number}"
            found.setdefault(name, []).append(times_of(trained(inputs[widths], run, precision, tree)))
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
    return {name: summed_up(rounds) for name, rounds in found.items()}


def trained(inputs: Inputs, run: str, precision: str, tree: Path) -> list[dict[str, Any]]:
    """What a run of the trainer in `tree` logged."""
    options = READER if tree == ROOT else ()
    config = inputs.deepspeed(1, precision, WINDOWS)
    command = inputs.command(run, config, *options, script=(tree / "pipeline" / "train.py",))
    if errors := inputs.train({run: command}, at_once=1):
        raise UserError(f"{tree} cannot be measured: {errors[run]}")
    return inputs.metrics(run)


def main() -> int:
    arguments = parse_arguments()
    if arguments.steps < SETTLED + 2 * LOG_EVERY:
        raise UserError(f"--steps {arguments.steps} must be at least {SETTLED + 2 * LOG_EVERY}")
    head = measured(not_measured="GPUs, several ranks, accumulation, full width")
    with temporary_folder() as folder, checked_out(arguments.before, folder / "before") as before:
        trees = {commit_of(arguments.before): before, f"{commit()} (here)": ROOT}
        rows = measure(arguments, trees, folder)
    print(table(rows))
    head |= {"setting": {"layers": 12, "heads": HEADS, "windows": WINDOWS, "tokens": TOKENS, "steps": arguments.steps}}
    write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
