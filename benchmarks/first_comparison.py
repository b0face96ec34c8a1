"""WID against the teacher's slice and a BERT from scratch, on real text, at equal tokens.

    python benchmarks/first_comparison.py --train SPEC... --heldout SPEC... --glue DIR --output DIR --json FILE

1. 25 MB of text, the same share of each SPEC, to shards; held-out text likewise.
2. Every variant with three learning rates under seed 1; the best by held-out loss again under seeds 2 and 3. All
   see the same number of tokens and end with the same shape, a third of the teacher's encoder.
3. Fold; held-out loss and accuracy of all three seeds on every window.
4. GLUE tasks (three fine-tuning seeds) of the teacher and of seed 1 of the main variants.
5. Table, and FILE with machine, versions and commit, after every row.

Started again with the same directory, it goes on where it stopped. With --only two processes can share the work, each
on its own cores; a start without it then has only the rest to do.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.environment import commit, machine, versions
from pipeline.errors import EXIT_DONE, DataError, UserError, run_entry_point
from pipeline.evaluation.report_tables import markdown
from pipeline.files import write_atomically
from pipeline.launch import positive_int
from pipeline.stages import ROOT, StageRunner, cpu_precision
from preprocessing.inputs import read_documents

TRAIN_MEGABYTES, HELDOUT_MEGABYTES = 25.0, 1.5
SEEDS = (1, 2, 3)
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


# Each grid has its best inside, not at an end.
WID_RATES, RATES = (2.5e-4, 5e-4, 1e-3), (1e-3, 2e-3, 4e-3)
WID = ("--train.lr", "{rate}", "--train.compactor_lr", "1e-3")
# The exponential of decay `penalty` needs more steps to come near 0 at this rate: 0.05 after 100.
PENALTY = ("--compaction.decay", "penalty", "--compaction.decay_steps", "100")
VARIANTS = (
    Variant("wid taylor anneal", "student", WID, WID_RATES, glue=True),
    Variant("slice", "student", ("--train.lr", "{rate}", "--train.compactor_lr", "0"), RATES, glue=True),
    Variant("scratch", "scratch", ("--train.lr", "{rate}"), RATES, glue=True),
    Variant("wid taylor penalty", "student", (*WID, *PENALTY), WID_RATES),
    Variant("wid norm anneal", "student", (*WID, "--compaction.selection", "norm"), WID_RATES),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, metavar="SPEC", help="text to train on, FORMAT:PATH")
    parser.add_argument("--heldout", nargs="+", required=True, metavar="SPEC", help="text to measure on")
    parser.add_argument("--glue", type=Path, metavar="DIR", help="GLUE in its official layout; without it no GLUE")
    parser.add_argument("--teacher", type=Path, default=ROOT / "teachers" / "wiki_books_4x192", metavar="DIR")
    parser.add_argument("--steps", type=positive_int, default=500, help="of 32 x 128 tokens (default: %(default)s)")
    parser.add_argument("--only", metavar="NAMES", help="comma-separated variants (default: all)")
    parser.add_argument("--ranks", type=positive_int, default=2, help="of a training on CPUs (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="runs, students, evaluations")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    return parser.parse_args()


class Comparison:
    """Runs what is missing in the output directory."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output = arguments.output.resolve()
        self.teacher = arguments.teacher.resolve()
        self.glue, self.steps = arguments.glue, arguments.steps
        cpu = arguments.device == "cpu"
        self.stages = StageRunner(self.output / "logs", ranks=arguments.ranks if cpu else 1, cpu=cpu)
        self.deepspeed = f"demo_cpu_{cpu_precision()}" if cpu else "zero1_bf16"

    def build_shards(self, name: str, specs: list[str], megabytes: float) -> Path:
        """Shards of `megabytes` of text, the same share of each SPEC, from its beginning."""
        text, shards = self.output / f"{name}.txt", self.output / "shards" / name
        if not text.is_file():
            self.output.mkdir(parents=True, exist_ok=True)
            lines = (line for spec in specs for line in beginning(spec, megabytes * 1e6 / len(specs)))
            write_atomically(text, ("\n".join(lines) + "\n").encode())
        spec = ("--input", f"lines:{text}", "--tokenizer", self.teacher, "--workers", 2)
        self.stages.run("preprocessing/build_shards.py", *spec, "--output", shards)
        return shards

    def train(self, variant: Variant, rate: float, seed: int, target: tuple[object, ...]) -> dict[str, Any]:
        """One run and its student; the held-out loss at its end."""
        student = self.student(variant, rate, seed)
        run, evaluation = self.output / "runs" / student.name, self.output / "evaluations" / student.name
        if not student.exists():
            how = ("--config", f"recipes/demo_{variant.recipe}.yaml")
            how = (*how, "--deepspeed_config", f"ds_configs/{self.deepspeed}.json")
            shards = self.output / "shards"
            data = ("--data.shards", shards / "train", "--data.heldout", shards / "heldout")
            teacher = () if variant.recipe == "scratch" else ("--teacher.path", self.teacher)
            options = [option.format(rate=f"{rate:g}") for option in variant.options]
            length = ("--train.steps", self.steps, "--train.evaluate_every", self.steps, "--train.seed", seed)
            everything = (*how, *data, *teacher, *target, *options, *length, "--train.checkpoint_every", self.steps)
            self.stages.run("pipeline/train.py", *everything, "--output", run, launcher=True)
            self.stages.run("pipeline/fold.py", "--run", run, "--output", student)
        return {"rate": rate, "seed": seed, **self.score(student, evaluation)}

    def score(self, model: Path, evaluation: Path) -> dict[str, float]:
        """Held-out loss and accuracy of a model directory."""
        data = ("--data", self.output / "shards" / "heldout", "--output", evaluation)
        self.stages.run("pipeline/evaluate.py", "--model", model, "--tasks", "mlm", *data)
        entry = json.loads((evaluation / "results.json").read_text())["tasks"]["mlm heldout"]
        return {"loss": entry["loss"]["mean"], "accuracy": entry["accuracy"]["mean"]}

    def fine_tune(self, model: Path, name: str) -> dict[str, Any]:
        """Scores of the GLUE tasks, each the mean of three fine-tuning seeds."""
        scores = {}
        for tasks, epochs in GLUE.items():
            output = self.output / "glue" / f"{name}_{epochs}"
            data = ("--data", self.glue.resolve(), "--output", output, "--epochs", epochs, "--learning-rate", 3e-4)
            self.stages.run("pipeline/evaluate.py", "--model", model, "--tasks", tasks, *data)
            scores |= json.loads((output / "results.json").read_text())["tasks"]
        return scores

    def compare(self, variant: Variant) -> dict[str, Any]:
        """All runs of one variant, and what they come to."""
        config = json.loads((self.teacher / "config.json").read_text())
        target: tuple[object, ...] = ()
        if variant.recipe == "scratch":
            target = ("--target.layers", config["num_hidden_layers"])
        tried = [self.train(variant, rate, SEEDS[0], target) for rate in variant.rates]
        best = min(tried, key=lambda run: run["loss"])
        runs = [best, *(self.train(variant, best["rate"], seed, target) for seed in SEEDS[1:])]
        row = {"rate": best["rate"], "tried": tried, "runs": runs, "tokens": self.steps * 32 * 128}
        for metric in ("loss", "accuracy"):
            values = [run[metric] for run in runs]
            row[metric] = {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
        return row

    def student(self, variant: Variant, rate: float, seed: int) -> Path:
        """Where the student of one run lies."""
        return self.output / "students" / f"{variant.name.replace(' ', '_')}_{rate:g}_{seed}"


def beginning(spec: str, size: float) -> Iterator[str]:
    """Documents of a SPEC as lines until they are `size` bytes long."""
    taken = 0
    for document in read_documents([spec]):
        line = " ".join(document.text.split())
        taken += len(line.encode()) + 1
        yield line
        if taken >= size:
            return
    raise DataError(f"{spec}: it has {taken / 1e6:.1f} MB of text, and {size / 1e6:.1f} MB are wanted")


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
    return markdown(header, lines)


def main() -> int:
    arguments = parse_arguments()
    names = [variant.name for variant in VARIANTS]
    only = arguments.only.split(",") if arguments.only else names
    if unknown := set(only) - set(names):
        raise UserError(f"--only: there is no variant {sorted(unknown)[0]!r}; known are {', '.join(names)}")
    comparison = Comparison(arguments)
    comparison.build_shards("train", arguments.train, TRAIN_MEGABYTES)
    comparison.build_shards("heldout", arguments.heldout, HELDOUT_MEGABYTES)
    teacher = comparison.score(comparison.teacher, comparison.output / "evaluations" / "teacher")
    rows: dict[str, Any] = {"teacher": {key: {"mean": value, "std": 0.0} for key, value in teacher.items()}}
    head = {"machine": machine(), "versions": versions(), "commit": commit(), "steps": comparison.steps}

    def report(name: str, **columns: Any) -> None:
        """Keep what there is after every row."""
        rows[name] = {**rows.get(name, {}), **columns}
        write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
        print(table(rows), flush=True)

    variants = [variant for variant in VARIANTS if variant.name in only]
    for variant in variants:
        how = {"recipe": variant.recipe, "options": variant.options, "rates": variant.rates}
        report(variant.name, **how, **comparison.compare(variant))
    if arguments.glue:
        report("teacher", glue=comparison.fine_tune(comparison.teacher, "teacher"))
        for variant in (variant for variant in variants if variant.glue):
            student = comparison.student(variant, rows[variant.name]["rate"], SEEDS[0])
            report(variant.name, glue=comparison.fine_tune(student, student.name))
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
