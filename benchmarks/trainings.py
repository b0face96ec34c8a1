"""Trainings on real text that benchmarks compare: shards, runs, students, scores; what is there is not made again."""

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.evaluation.results import Results
from pipeline.files import write_atomically
from pipeline.launch import positive_int
from pipeline.stages import ROOT, StageRunner, cpu_precision, evaluate_stage, fold_stage, shards_stage, train_stage
from preprocessing.readers.specs import read_documents

TRAIN_MEGABYTES, HELDOUT_MEGABYTES = 25.0, 1.5
BATCH, TOKENS = 32, 128
"""Windows of a step and tokens of a window, as in the recipes of the demo."""
SEEDS = (1, 2, 3)


def add_arguments(parser: argparse.ArgumentParser, steps: int) -> None:
    """What every comparison of trainings is told."""
    parser.add_argument("--train", nargs="+", required=True, metavar="SPEC", help="text to train on, FORMAT:PATH")
    parser.add_argument("--heldout", nargs="+", required=True, metavar="SPEC", help="text to measure on")
    parser.add_argument("--teacher", type=Path, default=ROOT / "teachers" / "wiki_books_4x192", metavar="DIR")
    parser.add_argument("--steps", type=positive_int, default=steps, help=f"of {BATCH} x {TOKENS} tokens ({steps})")
    parser.add_argument("--ranks", type=positive_int, default=2, help="of a training on CPUs (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="runs, students, evaluations")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")


def deepspeed_config(cpu: bool) -> str:
    """The file of `ds_configs/` for a training.

    On GPUs, too, one of the demo's: its micro-batch of 16 divides the recipes' 32 windows, that of the others is 120.
    """
    return f"demo_cpu_{cpu_precision() if cpu else 'bf16'}"


class Trainings:
    """Makes shards, runs, students and scores under the output directory, as far as they are missing.

    Attributes:
        runner: runs the pipeline's stages.
        steps: of a training.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output = arguments.output.resolve()
        self.teacher = arguments.teacher.resolve()
        self.steps = arguments.steps
        cpu = arguments.device == "cpu"
        self.runner = StageRunner(self.output / "logs", ranks=arguments.ranks if cpu else 1, cpu=cpu)
        self.deepspeed = deepspeed_config(cpu)
        self._build_shards("train", arguments.train, TRAIN_MEGABYTES)
        self._build_shards("heldout", arguments.heldout, HELDOUT_MEGABYTES)

    def _build_shards(self, name: str, specs: list[str], megabytes: float) -> None:
        """Shards of `megabytes` of text, the same share of each SPEC, from its beginning."""
        text = self.output / f"{name}.txt"
        if not text.is_file():
            self.output.mkdir(parents=True, exist_ok=True)
            lines = (line for spec in specs for line in beginning(spec, megabytes * 1e6 / len(specs)))
            write_atomically(text, ("\n".join(lines) + "\n").encode())
        shards = self.output / "shards" / name
        self.runner.run([shards_stage(f"shards of {name}", [f"lines:{text}"], self.teacher, shards, workers=2)])

    def student(self, name: str) -> Path:
        """Where the student of a training lies."""
        return self.output / "students" / name

    def train(self, name: str, recipe: str, *options: object) -> dict[str, float]:
        """One run of a recipe, its student, and its scores."""
        shards = self.output / "shards"
        data = ("--data.shards", shards / "train", "--data.heldout", shards / "heldout")
        length: tuple[object, ...] = ("--train.steps", self.steps, "--train.evaluate_every", self.steps)
        options = (*data, *length, "--train.checkpoint_every", self.steps, *options)
        how = (f"recipes/demo_{recipe}.yaml", f"ds_configs/{self.deepspeed}.json")
        self.runner.run([train_stage(name, *how, self.run(name), *options)])
        self.fold(name, self.run(name))
        return self.score(self.student(name), name)

    def fold(self, name: str, run: Path, step: int | None = None) -> Path:
        """The student called `name`: of a run, or of one of its steps."""
        self.runner.run([fold_stage(f"fold {name}", run, self.student(name), step)])
        return self.student(name)

    def run(self, name: str) -> Path:
        """Where a training lies."""
        return self.output / "runs" / name

    def score(self, model: Path, name: str) -> dict[str, float]:
        """Held-out loss and accuracy of a model directory, on every window."""
        evaluation = self.output / "evaluations" / name
        self.evaluate(name, model, "mlm", self.output / "shards" / "heldout", evaluation)
        entry = Results.read(evaluation).scores("mlm heldout")
        return {"loss": entry["loss"]["mean"], "accuracy": entry["accuracy"]["mean"]}

    def evaluate(self, name: str, model: Path, tasks: str, data: Path, output: Path, *options: object) -> None:
        """Scores of a model directory, into `output`."""
        self.runner.run([evaluate_stage(f"scores of {name}", model, tasks, data, output, *options)])


def best_of(rates: tuple[float, ...], train: Callable[[float, int], dict[str, float]]) -> dict[str, Any]:
    """Every rate under the first seed; the best by held-out loss again under the other seeds.

    Args:
        rates: the learning rates to try.
        train: learning rate and seed -> loss and accuracy.
    """

    def run(rate: float, seed: int) -> dict[str, float]:
        return {"rate": rate, "seed": seed, **train(rate, seed)}

    tried = [run(rate, SEEDS[0]) for rate in rates]
    best = min(tried, key=lambda row: row["loss"])
    runs = [best, *(run(best["rate"], seed) for seed in SEEDS[1:])]
    row: dict[str, Any] = {"rates": rates, "rate": best["rate"], "tried": tried, "runs": runs}
    for metric in ("loss", "accuracy"):
        values = [run[metric] for run in runs]
        row[metric] = {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
    return row


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
