"""Which of ds_configs/ train, resume, change ranks and fold here, as a table.

    python tests/engine/faults/configurations.py --output docs/configurations.md

1. Every configuration trains twelve tiny steps on two ranks (CPUs, gloo); gates close and the model narrows on the way.
2. Copies of the runs as they were at step 4 go on, on two ranks: the last checkpoint must be the same byte for byte.
3. Other copies go on on one rank: the loss must agree to what the precision resolves.
4. The runs are folded; the student's logits must be those of the trained model.

Jobs share a process group, as starting processes takes longer than they do. One that crashes it is written down, and
a new group takes the rest. Every cell is what came out.
"""

import argparse
import contextlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from pipeline.engine.deepspeed_config import precision
from pipeline.engine.student import fold_run
from pipeline.environment import commit, machine, versions
from pipeline.files import write_atomically
from pipeline.records import read_json_lines
from tests.engine.faults.harness import differences
from tests.engine.faults.processes import Job, launch
from tests.support.models import random_teacher
from tests.support.runs import make_shards, recipe_values, train_command, vocabulary_of, write_recipe

WORKER = Path(__file__).with_name("train_many.py")
STEPS, INTERRUPTED_AT = 12, 4
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}
"""Largest relative difference of a loss on another number of ranks: about five roundings of the precision, and what
follows from them in eight steps."""
NOT_MEASURED = "not measured"
ON_GPU = "benchmarks/results/2026-11-28_gpu_h200.json"
"""What benchmarks/gpu.py found on one."""
COLUMNS = ("trains", "resumes", "changes ranks", "folds")


class Table:
    """Every configuration's cells, and the tiny runs they come from, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        paths = sorted((ROOT / "ds_configs").glob("*.json"))
        self.configs = {path.stem: json.loads(path.read_text()) for path in paths}
        # A ZeRO-3 engine swaps torch's linear function for the rest of its process, which changes the last bits.
        self.names = sorted(self.configs, key=lambda name: self.stage(name) == 3)
        self.cells: dict[str, dict[str, str]] = {name: {} for name in self.configs}
        shards = make_shards(directory / "shards")
        random_teacher(2, 24, 3, vocab=vocabulary_of(shards)).save_pretrained(directory / "teacher")
        self.recipe = directory / "recipe.yaml"
        train = {"steps": STEPS, "global_batch": 32, "dropout": 0.0, "evaluate_every": 5}
        train |= {"checkpoint_every": INTERRUPTED_AT, "keep_checkpoints": 9}
        schedule = {"start_step": 2, "increments": 3, "decay_steps": 2}
        values = recipe_values(shards, directory / "teacher", compaction=schedule, train=train)
        write_recipe(self.recipe, values)

    def stage(self, name: str) -> int:
        return int(self.configs[name].get("zero_optimization", {}).get("stage", 0))

    def fill(self) -> None:
        for name, error in self.train(self.names, "straight", ranks=2).items():
            self.note(name, "trains", error, self.trained)
        done = [name for name in self.names if self.cells[name]["trains"] == "yes"]
        for column, kind, ranks in (("resumes", "resumed", 2), ("changes ranks", "moved", 1)):
            for name in done:
                interrupted_copy(self.run(name, "straight"), self.run(name, kind))
            for name, error in self.train(done, kind, ranks).items():
                self.note(name, column, error, self.resumed if kind == "resumed" else self.moved)
        for name in done:
            self.note(name, "folds", None, self.folded)

    def note(self, name: str, column: str, error: str | None, judge) -> None:
        """A job that the machine cannot run was not measured; one that failed says how; else `judge` looks."""
        if error is None:
            with contextlib.suppress(OSError, IndexError, KeyError):
                self.cells[name][column] = judge(name)
                return
            error = "its files are incomplete"
        self.cells[name][column] = f"{NOT_MEASURED} ({error})" if "does not run on this" in error else f"no: {error}"

    def train(self, names: list[str], kind: str, ranks: int) -> dict[str, str | None]:
        """Train the runs in as few process groups as it takes; what went wrong with each."""
        outcome: dict[str, str | None] = {}
        while waiting := [name for name in names if name not in outcome]:
            listing, results = self.directory / "jobs.json", self.directory / "results.jsonl"
            listing.write_text(json.dumps({name: self.arguments(name, kind) for name in waiting}))
            results.unlink(missing_ok=True)
            log = self.directory / f"{kind}_{len(outcome)}.log"
            group = Job(launch("torchrun", WORKER, listing, results, ranks=ranks), log)
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    group.process.wait(60 + 60 * len(waiting))
            finally:
                group.end()
            outcome |= {line["name"]: line["error"] for line in read_json_lines(results)}
            crashed = next((name for name in waiting if name not in outcome), None)
            if crashed:
                outcome[crashed] = f"{kind} run crashed: {last_error(log)}"
        return outcome

    def arguments(self, name: str, kind: str) -> list[str]:
        config = self.directory / f"{name}.json"
        config.write_text(json.dumps({**self.configs[name], "train_micro_batch_size_per_gpu": 8}))
        return train_command({"recipe": self.recipe, "deepspeed": config}, self.run(name, kind))

    def run(self, name: str, kind: str) -> Path:
        return self.directory / f"{name}_{kind}"

    def losses(self, name: str, kind: str) -> list[float]:
        return [line["loss"] for line in read_json_lines(self.run(name, kind) / "metrics.jsonl")]

    def trained(self, name: str) -> str:
        losses = self.losses(name, "straight")
        return "yes" if len(losses) == STEPS and all(map(math.isfinite, losses)) else f"no: losses are {losses}"

    def resumed(self, name: str) -> str:
        found = differences(self.run(name, "resumed"), self.run(name, "straight"))
        return f"no: differs in {', '.join(found)}" if found else "bit for bit"

    def moved(self, name: str) -> str:
        runs = [self.run(name, kind) for kind in ("straight", "moved")]
        straight, moved = (json.loads((run / "ds_config.json").read_text()) for run in runs)
        if moved["gradient_accumulation_steps"] != 2 * straight["gradient_accumulation_steps"]:
            return "no: it did not go on on half the ranks"
        pairs = zip(self.losses(name, "moved"), self.losses(name, "straight"), strict=True)
        apart = max(abs(a - b) / abs(b) for a, b in pairs)
        allowed = TOLERANCE[precision(self.configs[name])]
        if apart == 0:
            return "yes, loss equal"
        return f"yes, loss within {apart:.0e}" if apart <= allowed else f"no: loss within {apart:.0e} only"

    def folded(self, name: str) -> str:
        student = self.directory / f"{name}_student"
        fold_run(self.run(name, "straight"), student)
        report = json.loads((student / "fold.json").read_text())
        return f"yes, logits within {report['max_logit_diff_fp64']:.0e}"

    def markdown(self) -> str:
        found = versions()
        about = (
            "What came out of training with every file of `ds_configs/`, tiny shapes, micro-batches of 8, two ranks: "
            "`resumes` compares a run continued from step 4 of 12 with the uninterrupted one, `changes ranks` its loss "
            "on one rank from there on (largest relative difference), `folds` the logits of student and trained model "
            "(float64). Offloaded state and model lie on the CPU alike here. fp16 is allowed on CPUs for this test "
            "alone; the trainer refuses it there.",
            f"Written by `python tests/engine/faults/configurations.py` on {time.strftime('%Y-%m-%d')}: {machine()}, "
            f"CPUs (gloo); torch {found['torch']}, deepspeed {found['deepspeed']}, commit {commit()}. The last column "
            f"is of `benchmarks/gpu.py` ([results](../{ON_GPU})): the same files, one rank, another model.",
        )
        lines = [
            "# Configurations",
            *(f"\n{textwrap.fill(paragraph, 118, break_on_hyphens=False)}" for paragraph in about),
            "",
            f"| configuration | {' | '.join(COLUMNS)} | resumes on an NVIDIA H200 (nccl) |",
            f"|{'---|' * (len(COLUMNS) + 2)}",
        ]
        on_gpu = json.loads((ROOT / ON_GPU).read_text())["sections"]["zero"]["runs"]
        for name, cells in self.cells.items():
            values = [cells.get(column, NOT_MEASURED) for column in COLUMNS]
            values.append(on_gpu[name]["resumes"] if name in on_gpu else NOT_MEASURED)
            lines.append(f"| `{name}` | {' | '.join(values)} |")
        return "\n".join(lines) + "\n"


def interrupted_copy(run: Path, copy: Path) -> None:
    """A finished run as it was when its checkpoint of step `INTERRUPTED_AT` had just been written."""
    shutil.copytree(run, copy)
    for step in range(INTERRUPTED_AT + 1, STEPS + 1):
        shutil.rmtree(copy / "checkpoints" / f"step_{step}", ignore_errors=True)


def last_error(log: Path) -> str:
    """The last line of the first rank's own traceback in a log, or what is there instead."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if "Error: " in line]
    return lines[0].split("]: ")[-1].strip()[:120] if lines else "it hung"


def write_table(directory: Path, output: Path) -> Table:
    """Measure, and write the page; `directory` takes the runs."""
    table = Table(directory)
    table.fill()
    write_atomically(output, table.markdown().encode())
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="Which DeepSpeed configurations work on this machine.")
    parser.add_argument("--output", type=Path, required=True, help="the page to write")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="configurations_"))
    print(write_table(directory, arguments.output).markdown())
    print(f"runs and logs: {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
