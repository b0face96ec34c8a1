"""The whole pipeline on a small default, with the very commands that a real run uses.

    make demo                              text, teacher and student all made here, no downloads
    make demo DATA=SPEC TEACHER=DIR        your own text and teacher

1. Text: documentation strings of the installed packages, or DATA; every 50th document is held out.
2. Tokenizer (the teacher's, if there is one) and shards.
3. Teacher: a small BERT trained from scratch, or TEACHER.
4. WID: the teacher compacted to about a third of its encoder parameters, then folded.
5. The same size from scratch, on the same number of tokens.
6. Held-out masked-LM loss and accuracy of all three; table and plots.

Everything lies under runs/demo. A demo that was interrupted goes on where it stopped.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, DataError, UserError, run_entry_point
from pipeline.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RANKS = 2
HOLD_OUT_EVERY = 50
VOCABULARY = 4096
STUDENT_WIDTH = 0.5625
"""Share of the hidden size that the student keeps: a third of the encoder's parameters."""
QUICK_STEPS, QUICK_DOCUMENTS = 16, 400


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="SPEC", help="your own text as FORMAT:PATH, see the README")
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="your own BERT with its tokenizer")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: shows that it runs, no more")
    return parser.parse_args()


class Demo:
    """The stages, each skipped where its result is already there."""

    def __init__(self, output: Path, teacher: Path | None, quick: bool) -> None:
        self.output, self.quick = output, quick
        self.given_teacher = teacher
        self.teacher = teacher or output / "teacher"
        self.tokenizer = teacher or output / "tokenizer"

    def prepare_text(self, data: str | None) -> None:
        """Write train.txt and heldout.txt, one document a line."""
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
        for name, held_out in (("train", False), ("heldout", True)):
            write_atomically(self.output / f"{name}.txt", ("\n".join(lines[held_out]) + "\n").encode())

    def build_shards(self) -> None:
        if not self.tokenizer.exists():
            inputs = ("--input", f"lines:{self.output / 'train.txt'}", "--vocab-size", VOCABULARY)
            self.run("preprocessing/train_tokenizer.py", "--kind", "wordpiece", *inputs, "--output", self.tokenizer)
        for text, shards in (("train", "shards"), ("heldout", "heldout_shards")):
            spec = ("--input", f"lines:{self.output / text}.txt", "--tokenizer", self.tokenizer)
            self.run("preprocessing/build_shards.py", *spec, "--output", self.output / shards, "--workers", RANKS)

    def train(self, name: str, *overrides: object) -> None:
        """Train recipes/demo_NAME.yaml into runs/NAME and fold it into the directory NAME."""
        if (self.output / name).exists():
            return
        run = self.output / "runs" / name
        recipe = ("--config", f"recipes/demo_{name}.yaml", "--deepspeed_config", "ds_configs/demo_cpu.json")
        places = ("--data.shards", self.output / "shards", "--data.heldout", self.output / "heldout_shards")
        quick = (
            ("--train.steps", QUICK_STEPS, "--train.log_every", 4, "--train.evaluate_every", 8) if self.quick else ()
        )
        self.run("pipeline/train.py", *recipe, *places, *overrides, *quick, "--output", run, launcher=True)
        self.run("pipeline/fold.py", "--run", run, "--output", self.output / name)

    def train_student_and_rival(self) -> None:
        """WID from the teacher; and a BERT of the same shape from scratch."""
        config = json.loads((self.teacher / "config.json").read_text())
        heads = config["num_attention_heads"]
        head_size = math.ceil(config["hidden_size"] // heads * STUDENT_WIDTH)
        shape = ("--target.hidden", heads * head_size, "--target.head_size", head_size)
        schedule = ("--compaction.start_step", 2, "--compaction.interval_steps", 2, "--compaction.decay_steps", 4)
        quick = (*schedule, "--compaction.increments", 4) if self.quick else ()
        self.train("student", "--teacher.path", self.teacher, *shape, *quick)
        self.train("scratch", *shape, "--target.layers", config["num_hidden_layers"])

    def evaluate(self) -> None:
        models = {"teacher": self.teacher, "student": self.output / "student", "scratch": self.output / "scratch"}
        for name, model in models.items():
            results = ("--output", self.output / "evaluations" / name)
            data = ("--data", self.output / "heldout_shards", "--max-length", 64)
            self.run("pipeline/evaluate.py", "--model", model, "--tasks", "mlm", *data, *results)
        runs = [path for name in models if (path := self.output / "runs" / name).exists()]
        evaluations = [self.output / "evaluations" / name for name in models]
        self.run("pipeline/report.py", "--runs", *runs, *evaluations, "--output", self.output / "report")

    def run(self, script: str, *arguments: object, launcher: bool = False) -> None:
        """Run one command of the pipeline, show what it says, keep everything in logs/."""
        start = [sys.executable, script]
        if launcher:
            start = ["deepspeed", "--num_accelerators", str(RANKS), "--master_port", str(free_port()), script]
        command = [*start, *map(str, arguments)]
        say(shlex.join([Path(command[0]).name, *command[1:]]))
        # The demo shows the CPU path; on a machine with GPUs the launcher would take those.
        threads = max(1, (os.cpu_count() or RANKS) // RANKS)
        environment = {
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(threads),
        }
        log = self.output / "logs" / f"{Path(script).stem}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(log, "a", encoding="utf-8") as stream,
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process,
        ):
            for line in process.stdout or ():
                stream.write(line)
                # The launcher's own messages start with their date and stay in the log.
                if not line.startswith("[20"):
                    print(f"  {line}", end="", flush=True)
        if process.returncode:
            raise UserError(f"{script} ended with code {process.returncode}; everything it said is in {log}")


def documents(data: str | None) -> Iterable[str]:
    """The documents of a SPEC, or of the installed packages."""
    if data is None:
        from preprocessing.docstrings import installed_docstrings

        return installed_docstrings()
    from preprocessing.inputs import read_documents

    return (document.text for document in read_documents([data]))


def claim(output: Path, data: str | None, teacher: Path | None, quick: bool) -> None:
    """Make the directory belong to this demo, or refuse one that belongs to another."""
    wanted = {"data": data, "teacher": str(teacher) if teacher else None, "quick": quick}
    record = output / "demo.json"
    if record.is_file() and json.loads(record.read_text()) != wanted:
        raise UserError(f"{output} holds a demo of other text or another teacher: move it away or remove it")
    if not record.is_file() and output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty and no demo: choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(record, (json.dumps(wanted) + "\n").encode())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(sentence: str) -> None:
    print(f"\n== {sentence}", flush=True)


def main() -> int:
    arguments = parse_arguments()
    output = arguments.output.resolve()
    teacher = arguments.teacher.resolve() if arguments.teacher else None
    if teacher and not (teacher / "config.json").is_file():
        raise UserError(f"teacher {teacher} is no model directory: it has no config.json")
    if shutil.which("deepspeed") is None:
        raise UserError("the deepspeed command is not on PATH: activate the environment (source .venv/bin/activate)")
    started = time.monotonic()
    claim(output, arguments.data, teacher, arguments.quick)
    demo = Demo(output, teacher, arguments.quick)
    demo.prepare_text(arguments.data)
    demo.build_shards()
    if teacher is None:
        demo.train("teacher")
    demo.train_student_and_rival()
    demo.evaluate()
    say(f"done in {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"student:   {output / 'student'}")
    print(f"picture:   {output / 'report' / 'report.png'}")
    print(f"curves:    tensorboard --logdir {output / 'runs'}")
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
