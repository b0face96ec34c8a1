"""The whole pipeline on a small default, with the very commands that a real run uses.

    make demo                              the shipped teacher and text that every installation has, no downloads
    make demo DATA=SPEC TEACHER=DIR        your own text and teacher

1. Text: documentation strings of the installed packages, or DATA; every 20th document is held out. Beside it, text of
   the kind that the shipped teacher was trained on: prose written for this project.
2. Shards of all three, and a sentence task made of the text (find sentences in which words have changed places).
3. Four trainings on the same number of tokens: the teacher trained on as it is; WID, the teacher compacted to a third
   of its encoder; the same slice of the teacher without compactors; the student's size from scratch.
4. Fold, and score all five models on held-out text, on prose, on the sentence task and by their speed.
5. Table and plots.

Everything lies under runs/demo. A demo that was interrupted goes on where it stopped.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from demo.word_order import sentences, write_task
from pipeline.errors import EXIT_DONE, DataError, UserError, run_entry_point
from pipeline.files import write_atomically
from pipeline.stages import ROOT, StageRunner, cpu_precision, say

SHIPPED_TEACHER = ROOT / "teachers" / "wiki_books_4x192"
PROSE = ROOT / "demo" / "prose.txt"
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


class Demo:
    """The stages, each skipped where its result is already there."""

    def __init__(self, output: Path, quick: bool) -> None:
        self.output, self.quick = output, quick
        # The demo shows the CPU path; on a machine with GPUs the launcher would take those.
        self.stages = StageRunner(output / "logs")
        self.teacher = output / "teacher"
        self.evaluation_data = output / "evaluation_data"

    def prepare_text(self, data: str | None) -> None:
        """Write train.txt and heldout.txt, one document a line, and the sentence task made of them."""
        if (self.output / "heldout.txt").is_file():
            return
        say("collecting text")
        lines: dict[bool, list[str]] = {True: [], False: []}
        for number, text in enumerate(documents(data)):
            if self.quick and number >= QUICK_DOCUMENTS:
                break
            lines[number % HOLD_OUT_EVERY == 0].append(" ".join(text.split()))
        if not lines[False]:
            raise DataError(f"{data}: the demo needs at least two documents, one of them to hold out")
        write_task(sentences(lines[False]), sentences(lines[True]), self.evaluation_data, WORD_ORDER_ROWS)
        for name, held_out in (("train", False), ("heldout", True)):
            write_atomically(self.output / f"{name}.txt", ("\n".join(lines[held_out]) + "\n").encode())

    def build_shards(self) -> None:
        places = {
            self.output / "train.txt": self.output / "shards",
            self.output / "heldout.txt": self.evaluation_data / "heldout",
            PROSE: self.evaluation_data / "prose",
        }
        for text, shards in places.items():
            spec = ("--input", f"lines:{text}", "--tokenizer", self.teacher, "--workers", self.stages.ranks)
            self.stages.run("preprocessing/build_shards.py", *spec, "--output", shards)

    def train_all(self) -> None:
        """The four trainings."""
        config = json.loads((self.teacher / "config.json").read_text())
        heads = config["num_attention_heads"]
        head_size = math.ceil(config["hidden_size"] // heads * STUDENT_WIDTH)
        shape = ("--target.hidden", heads * head_size, "--target.head_size", head_size)
        teacher, schedule = ("--teacher.path", self.teacher), QUICK_SCHEDULE if self.quick else ()
        self.train("continued", "continued", *teacher)
        self.train("student", "student", *teacher, *shape, *schedule)
        self.train("slice", "student", *teacher, *shape, *schedule, "--train.compactor_lr", 0)
        self.train("scratch", "scratch", *shape, "--target.layers", config["num_hidden_layers"])

    def train(self, name: str, recipe: str, *overrides: object) -> None:
        """Train recipes/demo_RECIPE.yaml into runs/NAME and fold it into the directory NAME."""
        if (self.output / name).exists():
            return
        run = self.output / "runs" / name
        how = (
            "--config",
            f"recipes/demo_{recipe}.yaml",
            "--deepspeed_config",
            f"ds_configs/demo_cpu_{cpu_precision()}.json",
        )
        data = ("--data.shards", self.output / "shards", "--data.heldout", self.evaluation_data / "heldout")
        quick = QUICK_TRAINING if self.quick else ()
        self.stages.run("pipeline/train.py", *how, *data, *overrides, *quick, "--output", run, launcher=True)
        self.stages.run("pipeline/fold.py", "--run", run, "--output", self.output / name)

    def evaluate(self) -> None:
        settings = (*FINE_TUNING, *(QUICK_FINE_TUNING if self.quick else ()))
        for name in MODELS:
            places = ("--data", self.evaluation_data, "--output", self.output / "evaluations" / name)
            tasks = ("--model", self.output / name, "--tasks", "mlm,latency,word_order")
            self.stages.run("pipeline/evaluate.py", *tasks, *places, *settings)
        runs = [self.output / "runs" / name for name in MODELS[1:]]
        evaluations = [self.output / "evaluations" / name for name in MODELS]
        self.stages.run("pipeline/report.py", "--runs", *runs, *evaluations, "--output", self.output / "report")


def documents(data: str | None) -> Iterable[str]:
    """The documents of a SPEC, or of the installed packages."""
    if data is None:
        from demo.docstrings import installed_docstrings

        return installed_docstrings()
    from preprocessing.readers.specs import read_documents

    return (document.text for document in read_documents([data]))


def claim(output: Path, data: str | None, teacher: Path, quick: bool) -> None:
    """Make the directory belong to this demo, or refuse one that belongs to another."""
    wanted = {"data": data, "teacher": str(teacher), "quick": quick}
    record = output / "demo.json"
    if record.is_file() and json.loads(record.read_text()) != wanted:
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
    demo = Demo(output, arguments.quick)
    demo.prepare_text(arguments.data)
    demo.build_shards()
    demo.train_all()
    demo.evaluate()
    say(f"done in {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"student:   {output / 'student'}")
    print(f"picture:   {output / 'report' / 'report.png'}")
    print(f"curves:    tensorboard --logdir {output / 'runs'}")
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
