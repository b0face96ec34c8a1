"""Does over-parameterisation still pay after narrowing?

    python benchmarks/narrowed_or_folded.py --train SPEC... --heldout SPEC... --output DIR --json FILE

1. 25 MB of text, the same share of each SPEC, to shards; held-out text likewise.
2. `narrowed`: WID to the end. When the schedule has ended, the narrowed compactors train on.
3. `folded`: the same runs, folded when the schedule has ended (step 200); the plain student trains on alone, on as
   many tokens as the others have left, with a warm-up and a learning rate of its own.
4. Both with three learning rates under seed 1; the best by held-out loss again under seeds 2 and 3.
5. Table and FILE.

Started again with the same directory, it goes on where it stopped.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.trainings import BATCH, TOKENS, Trainings, add_arguments, best_of
from pipeline.environment import measured
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import write_atomically
from pipeline.records import markdown_table

FOLDED_AT = 200
"""The schedule of `recipes/demo_student.yaml` ends at step 160."""
NARROWED_RATES, FOLDED_RATES = (2.5e-4, 5e-4, 1e-3), (1e-3, 2e-3, 4e-3)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=1000)
    return parser.parse_args()


def narrowed_name(rate: float, seed: int) -> str:
    return f"narrowed_{rate:g}_{seed}"


def train_narrowed(trainings: Trainings, rate: float, seed: int) -> dict[str, float]:
    """WID to the end; the checkpoint at which the others fold is kept."""
    rates = ("--train.lr", rate, "--train.compactor_lr", 1e-3, "--train.seed", seed)
    keep = ("--train.checkpoint_every", FOLDED_AT, "--train.keep_every", FOLDED_AT)
    return trainings.train(narrowed_name(rate, seed), "student", "--teacher.path", trainings.teacher, *rates, *keep)


def train_folded(trainings: Trainings, start_rate: float, rate: float, seed: int) -> dict[str, float]:
    """The student of step `FOLDED_AT` of the same run, trained on as it is.

    Its windows come in another order than the run's own: it would begin with those that it has seen.
    """
    run = trainings.run(narrowed_name(start_rate, seed))
    start = trainings.fold(f"start_{start_rate:g}_{seed}", run, FOLDED_AT)
    rates = ("--train.lr", rate, "--train.seed", seed + 100)
    length = ("--train.steps", trainings.steps - FOLDED_AT, "--train.checkpoint_every", trainings.steps - FOLDED_AT)
    name = f"folded_{start_rate:g}_{rate:g}_{seed}"
    return trainings.train(name, "continued", "--teacher.path", start, *rates, *length)


def table(rows: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = []
    for name, row in rows.items():
        loss, accuracy = row["loss"], row["accuracy"]
        cells = [f"{row['rate']:g}", f"{loss['mean']:.3f} ± {loss['std']:.3f}", f"{100 * accuracy['mean']:.1f} %"]
        lines.append([name, *cells])
    return markdown_table(["", "learning rate", "held-out loss", "accuracy"], lines)


def main() -> int:
    arguments = parse_arguments()
    if arguments.steps <= FOLDED_AT or arguments.steps % FOLDED_AT:
        raise UserError(f"--steps {arguments.steps} must be a multiple of {FOLDED_AT}, and more")
    head = measured(not_measured="other teachers and numbers of steps; GLUE")
    trainings = Trainings(arguments)
    rows: dict[str, Any] = {}
    rows["narrowed"] = best_of(NARROWED_RATES, lambda rate, seed: train_narrowed(trainings, rate, seed))
    start = rows["narrowed"]["rate"]
    rows["folded"] = best_of(FOLDED_RATES, lambda rate, seed: train_folded(trainings, start, rate, seed))
    head |= {"steps": trainings.steps, "folded_at": FOLDED_AT, "tokens": trainings.steps * BATCH * TOKENS}
    write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
    print(table(rows))
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
