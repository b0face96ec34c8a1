"""The whole pipeline on a small default, with the very commands that a real run uses.

    make demo                              the shipped teacher and text that every installation has, no downloads
    make demo DATA=SPEC TEACHER=DIR        your own text and teacher

1. Text: documentation strings of the installed packages, or DATA; every 20th document is held out. Beside it, text of
   the kind that the shipped teacher was trained on: prose written for this project.
2. Shards of all three, and a sentence task made of the text (find sentences in which words have changed places).
3. Four trainings on the same number of tokens: the teacher trained on as it is; WID, the teacher compacted to a third
   of its encoder; the same slice of the teacher without compactors; the student's size from scratch.
4. Fold, and score all five models on held-out text, on prose, on the sentence task and by their speed.
5. Table, plots and a page with all of it.

Everything lies under runs/demo. A demo that was interrupted goes on where it stopped.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from demo.docstrings import installed_docstrings
from demo.word_order import sentences, write_task
from pipeline.errors import EXIT_DONE, DataError, UserError, run_entry_point
from pipeline.files import write_atomically
from pipeline.stages import (
    ROOT,
    Stage,
    StageRunner,
    cpu_precision,
    evaluate_stage,
    fold_stage,
    report_stage,
    say,
    shards_stage,
    train_stage,
)
from preprocessing.readers.specs import read_documents

SHIPPED_TEACHER = ROOT / "teachers" / "wiki_books_4x192"
PROSE = ROOT / "demo" / "prose.txt"
EVALUATION_DATA = "evaluation_data"
"""Folder of what is measured on: held-out shards, prose, the sentence task."""
TASKS = "mlm,latency,word_order"
HOLD_OUT_EVERY = 20
STUDENT_WIDTH = 0.5625
"""Share of the hidden size that the student keeps: a third of the encoder's parameters."""
WORD_ORDER_ROWS = (3000, 1000)
FINE_TUNING = ("--seeds", "1,2,3", "--learning-rate", 1e-3, "--epochs", 2)
MODELS = ("teacher", "continued", "student", "slice", "scratch")
QUICK_DOCUMENTS = 400
QUICK_TRAINING = ("--train.steps", 16, "--train.log_every", 4, "--train.evaluate_every", 8)
QUICK_SCHEDULE = (
    *("--compaction.start_step", 2, "--compaction.interval_steps", 2),
    *("--compaction.decay_steps", 4, "--compaction.increments", 4),
)
QUICK_FINE_TUNING = ("--seeds", "1,2", "--epochs", 0.1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="SPEC", help="your own text as FORMAT:PATH, see the README")
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="your own BERT with its tokenizer")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: shows that it runs, no more")
    return parser.parse_args()


def collect_text(output: Path, data: str | None, quick: bool) -> None:
    """Write train.txt and heldout.txt, one document a line, and the sentence task made of them."""
    if (output / "heldout.txt").is_file():
        return
    say("collecting text")
    lines: dict[bool, list[str]] = {True: [], False: []}
    for number, text in enumerate(documents(data)):
        if quick and number >= QUICK_DOCUMENTS:
            break
        lines[number % HOLD_OUT_EVERY == 0].append(" ".join(text.split()))
    if not lines[False]:
        raise DataError(f"{data}: the demo needs at least two documents, one of them to hold out")
    write_task(sentences(lines[False]), sentences(lines[True]), output / EVALUATION_DATA, WORD_ORDER_ROWS)
    for name, held_out in (("train", False), ("heldout", True)):
        write_atomically(output / f"{name}.txt", ("\n".join(lines[held_out]) + "\n").encode())


def documents(data: str | None) -> Iterable[str]:
    """The documents of a SPEC, or of the installed packages."""
    if data is None:
        return installed_docstrings()
    return (document.text for document in read_documents([data]))


def stages(output: Path, quick: bool, ranks: int) -> list[Stage]:
    """Everything from text to report, in order."""
    evaluations = [output / "evaluations" / name for name in MODELS]
    return [
        *_shards(output, ranks),
        *(stage for training in trainings(output / "teacher", quick) for stage in training.stages(output, quick)),
        *_evaluations(output, evaluations, quick),
        report_stage("report", [*(output / "runs" / name for name in MODELS[1:]), *evaluations], output / "report"),
    ]


def _shards(output: Path, ranks: int) -> Iterator[Stage]:
    places = {
        output / "train.txt": output / "shards",
        output / "heldout.txt": output / EVALUATION_DATA / "heldout",
        PROSE: output / EVALUATION_DATA / "prose",
    }
    for text, shards in places.items():
        yield shards_stage(f"shards of {text.stem}", [f"lines:{text}"], output / "teacher", shards, ranks)


def _evaluations(output: Path, evaluations: list[Path], quick: bool) -> Iterator[Stage]:
    settings = (*FINE_TUNING, *(QUICK_FINE_TUNING if quick else ()))
    for name, evaluation in zip(MODELS, evaluations, strict=True):
        data = output / EVALUATION_DATA
        yield evaluate_stage(f"scores of {name}", output / name, TASKS, data, evaluation, *settings)


@dataclass(frozen=True)
class Training:
    """One of the demo's trainings: its name, the recipe demo_RECIPE.yaml, and what it sets in it."""

    name: str
    recipe: str
    options: tuple[object, ...]

    def stages(self, output: Path, quick: bool) -> tuple[Stage, Stage]:
        """Train into runs/NAME, fold into NAME."""
        run = output / "runs" / self.name
        data = ("--data.shards", output / "shards", "--data.heldout", output / EVALUATION_DATA / "heldout")
        options = (*data, *self.options, *(QUICK_TRAINING if quick else ()))
        how = (f"recipes/demo_{self.recipe}.yaml", f"ds_configs/demo_cpu_{cpu_precision()}.json")
        return train_stage(self.name, *how, run, *options), fold_stage(f"fold {self.name}", run, output / self.name)


def trainings(teacher: Path, quick: bool) -> list[Training]:
    """The four trainings; the student's shape follows from the teacher's."""
    config = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    head_size = math.ceil(config["hidden_size"] // heads * STUDENT_WIDTH)
    shape = ("--target.hidden", heads * head_size, "--target.head_size", head_size)
    start = ("--teacher.path", teacher)
    schedule = QUICK_SCHEDULE if quick else ()
    return [
        Training("continued", "continued", start),
        Training("student", "student", (*start, *shape, *schedule)),
        Training("slice", "student", (*start, *shape, *schedule, "--train.compactor_lr", 0)),
        Training("scratch", "scratch", (*shape, "--target.layers", config["num_hidden_layers"])),
    ]


def claim(output: Path, data: str | None, teacher: Path, quick: bool) -> None:
    """Make the directory belong to this demo, or refuse one that belongs to another."""
    wanted = {"data": data, "teacher": str(teacher), "quick": quick}
    record = output / "demo.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != wanted:
        raise UserError(f"{output} holds a demo of other text or another teacher: move it away or remove it")
    if not record.is_file() and output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty and no demo: choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(record, (json.dumps(wanted) + "\n").encode())
    if not (output / "teacher").exists():
        (output / "teacher").symlink_to(teacher)


def main() -> int:
    arguments = parse_arguments()
    output = arguments.output.resolve()
    teacher = (arguments.teacher or SHIPPED_TEACHER).resolve()
    if not (teacher / "config.json").is_file():
        raise UserError(f"teacher {teacher} is no model directory: it has no config.json")
    if shutil.which("deepspeed") is None:
        raise UserError("the deepspeed command is not on PATH: activate the environment (source .venv/bin/activate)")
    started = time.monotonic()
    claim(output, arguments.data, teacher, arguments.quick)
    collect_text(output, arguments.data, arguments.quick)
    # The demo shows the CPU path; on a machine with GPUs the launcher would take those.
    runner = StageRunner(output / "logs")
    runner.run(stages(output, arguments.quick, runner.ranks))
    say(f"done in {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"student:   {output / 'student'}")
    print(f"picture:   {output / 'report' / 'report.png'}")
    print(f"curves:    tensorboard --logdir {output / 'runs'}")
    print(f"page:      {output / 'report' / 'report.html'}")
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
