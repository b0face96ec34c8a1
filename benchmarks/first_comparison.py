"""WID against the teacher's slice and a BERT from scratch, on real text, at equal tokens.

    python benchmarks/first_comparison.py --train SPEC... --heldout SPEC... --glue DIR --output DIR --json FILE

1. 25 MB of text, the same share of each SPEC, to shards; held-out text likewise.
2. Every variant with three learning rates under seed 1; the best by held-out loss again under seeds 2 and 3. All
   see the same number of tokens and end with the same shape, a third of the teacher's encoder.
3. Fold; held-out loss and accuracy of all three seeds on every window.
4. GLUE tasks (three fine-tuning seeds) of seed 1 of the main variants, and of the teacher.
5. Table, and FILE, after every row.

Started again with the same directory, it goes on where it stopped. With --only two processes can share the work, each
on its own cores; a start without it then has only the rest to do.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.trainings import BATCH, SEEDS, TOKENS, Trainings, add_arguments, best_of
from pipeline.environment import measured
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.evaluation.results import Results
from pipeline.files import write_atomically
from pipeline.records import markdown_table

GLUE = {"sst2": 1, "mrpc,cola,rte,stsb": 5}
"""Tasks and their epochs: SST-2 is ten times as long as the others."""
GLUE_TASKS = ",".join(GLUE).split(",")


@dataclass(frozen=True)
class Variant:
    """One way to a student.

    Attributes:
        recipe: of `recipes/demo_*.yaml`.
        options: for train.py; `{rate}` stands for the learning rate.
        rates: the three that are tried.
        glue: whether it is also fine-tuned.
    """

    name: str
    recipe: str
    options: tuple[str, ...]
    rates: tuple[float, ...]
    glue: bool = False


WID_RATES, RATES = (2.5e-4, 5e-4, 1e-3), (1e-3, 2e-3, 4e-3)
"""Each grid has its best inside, not at an end."""
WID = ("--train.lr", "{rate}", "--train.compactor_lr", "1e-3")
PENALTY = ("--compaction.decay", "penalty", "--compaction.decay_steps", "100")
"""The exponential of decay `penalty` needs more steps to come near 0 at this rate: 0.05 after 100."""
VARIANTS = (
    Variant("wid taylor anneal", "student", WID, WID_RATES, glue=True),
    Variant("slice", "student", ("--train.lr", "{rate}", "--train.compactor_lr", "0"), RATES, glue=True),
    Variant("scratch", "scratch", ("--train.lr", "{rate}"), RATES, glue=True),
    Variant("wid taylor penalty", "student", (*WID, *PENALTY), WID_RATES),
    Variant("wid norm anneal", "student", (*WID, "--compaction.selection", "norm"), (5e-4, 1e-3, 2e-3)),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=500)
    parser.add_argument("--glue", type=Path, metavar="DIR", help="GLUE in its official layout; without it no GLUE")
    parser.add_argument("--only", metavar="NAMES", help="comma-separated variants (default: all)")
    return parser.parse_args()


def compare(trainings: Trainings, variant: Variant) -> dict[str, Any]:
    """All runs of one variant, and what they come to."""
    start: tuple[object, ...] = ("--teacher.path", trainings.teacher)
    if variant.recipe == "scratch":
        config = json.loads((trainings.teacher / "config.json").read_text())
        start = ("--target.layers", config["num_hidden_layers"])

    def train(rate: float, seed: int) -> dict[str, float]:
        options = [option.format(rate=f"{rate:g}") for option in variant.options]
        return trainings.train(
            training_name(variant, rate, seed), variant.recipe, *start, *options, "--train.seed", seed
        )

    return best_of(variant.rates, train)


def training_name(variant: Variant, rate: float, seed: int) -> str:
    return f"{variant.name.replace(' ', '_')}_{rate:g}_{seed}"


def fine_tune(trainings: Trainings, model: Path, name: str, glue: Path) -> dict[str, Any]:
    """Scores of the GLUE tasks, each the mean of three fine-tuning seeds."""
    scores = {}
    for tasks, epochs in GLUE.items():
        output = trainings.output / "glue" / f"{name}_{epochs}"
        settings = ("--epochs", epochs, "--learning-rate", 3e-4)
        trainings.evaluate(name, model, tasks, glue.resolve(), output, *settings)
        results = Results.read(output)
        scores |= {task: {"data": results.data(task), **results.scores(task)} for task in results.names}
    return scores


def table(rows: dict[str, Any]) -> str:
    """The rows as Markdown."""
    header = ["variant", "learning rate", "held-out loss", "accuracy", *GLUE_TASKS]
    lines = []
    for name, row in rows.items():
        cells = [f"{row['rate']:g}" if "rate" in row else ""]
        cells += [f"{row['loss']['mean']:.3f} ± {row['loss']['std']:.3f}", f"{100 * row['accuracy']['mean']:.1f} %"]
        for task in GLUE_TASKS:
            metrics = {k: v for k, v in row.get("glue", {}).get(task, {}).items() if isinstance(v, dict)}
            first = next(iter(metrics.values()), None)
            cells.append(f"{first['mean']:.3f} ± {first['std']:.3f}" if first else "")
        lines.append([name, *cells])
    return markdown_table(header, lines)


def main() -> int:
    arguments = parse_arguments()
    names = [variant.name for variant in VARIANTS]
    only = arguments.only.split(",") if arguments.only else names
    if unknown := set(only) - set(names):
        raise UserError(f"--only: there is no variant {sorted(unknown)[0]!r}; known are {', '.join(names)}")
    left_out = f"other teachers and numbers of steps; GLUE{' of students of seeds 2 and 3' if arguments.glue else ''}"
    head = measured(not_measured=left_out)
    trainings = Trainings(arguments)
    teacher = trainings.score(trainings.teacher, "teacher")
    rows: dict[str, Any] = {"teacher": {key: {"mean": value, "std": 0.0} for key, value in teacher.items()}}
    head |= {"steps": trainings.steps, "tokens": trainings.steps * BATCH * TOKENS}

    def report(name: str, **columns: Any) -> None:
        """Keep what there is after every row."""
        rows[name] = {**rows.get(name, {}), **columns}
        write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
        print(table(rows), flush=True)

    variants = [variant for variant in VARIANTS if variant.name in only]
    for variant in variants:
        report(variant.name, recipe=variant.recipe, options=variant.options, **compare(trainings, variant))
    if arguments.glue:
        for variant in (variant for variant in variants if variant.glue):
            name = training_name(variant, rows[variant.name]["rate"], SEEDS[0])
            report(variant.name, glue=fine_tune(trainings, trainings.student(name), name, arguments.glue))
        report("teacher", glue=fine_tune(trainings, trainings.teacher, "teacher", arguments.glue))
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
