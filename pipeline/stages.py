"""The pipeline as data: what each stage runs, reads and leaves; and a runner for this machine.

A list of stages is a pipeline. `make demo` and the comparisons of `benchmarks/` are such lists, run one after another
by `StageRunner`. The command line of every stage is spelled here and nowhere else.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import UserError
from pipeline.launch import free_port
from pipeline.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline.

    Attributes:
        name: for people, and for log files.
        command: the script, from the repository's root, and its arguments.
        inputs: what must be there before.
        outputs: what is there afterwards, whole.
        launcher: `deepspeed` starts the script once per rank, `python` once.
        resources: what it works on: `cpu` cores alone, or a `gpu` where there is one.
        always: the command finds out by itself what is left to do, so that its outputs do not tell.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    launcher: Literal["python", "deepspeed"] = "python"
    resources: Literal["cpu", "gpu"] = "cpu"
    always: bool = False

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.always and all(path.exists() for path in self.outputs)


def shards_stage(
    name: str, specs: Iterable[str], tokenizer: Path, output: Path, workers: int, *options: object
) -> Stage:
    """Text to token shards; with the option `--merge`, the end of a build whose parts were made one by one."""
    arguments = ("--input", *specs, "--tokenizer", tokenizer, "--output", output, "--workers", workers)
    command = _command("preprocessing/build_shards.py", *arguments, *options)
    return Stage(name, command, (tokenizer,), (output / "manifest.json",))


def verify_stage(name: str, shards: Path) -> Stage:
    """Every byte of a shard directory, against its manifest."""
    return Stage(name, _command("preprocessing/verify_shards.py", shards), (shards,), (), always=True)


def train_stage(
    name: str, recipe: str, deepspeed_config: str, run: Path, *options: object, resolved: Recipe | None = None
) -> Stage:
    """A training run.

    Args:
        name: of the stage.
        recipe: file, from the repository's root.
        deepspeed_config: likewise.
        run: the run directory.
        options: recipe keys and their values, as on the command line.
        resolved: what the file will hold, where it is not written yet.
    """
    how = ("--config", recipe, "--deepspeed_config", deepspeed_config)
    resolved = resolved or load_recipe(ROOT / recipe, [str(option) for option in options])
    command = _command("pipeline/train.py", *how, *options, "--output", run)
    inputs = [ROOT / recipe, ROOT / deepspeed_config, *(ROOT / shards for shards, _ in resolved.data.sources())]
    last = run / "checkpoints" / f"step_{resolved.train.steps}" / "complete.json"
    return Stage(name, command, tuple(inputs), (last,), "deepspeed", "gpu")


def fold_stage(name: str, run: Path, student: Path, step: int | None = None) -> Stage:
    """The student of a run, or of one step of it."""
    at = () if step is None else ("--step", step)
    command = _command("pipeline/fold.py", "--run", run, "--output", student, *at)
    return Stage(name, command, (run,), (student / "fold.json",))


def evaluate_stage(name: str, model: Path, tasks: str, data: Path, output: Path, *options: object) -> Stage:
    """Scores of a model."""
    where = ("--data", data, "--output", output)
    command = _command("pipeline/evaluate.py", "--model", model, "--tasks", tasks, *where, *options)
    return Stage(name, command, (model, data), (output / "results.json",), resources="gpu", always=True)


def report_stage(name: str, directories: Iterable[Path], output: Path) -> Stage:
    """Tables, plots and a page of runs and evaluations."""
    read = tuple(directories)
    command = _command("pipeline/report.py", "--runs", *read, "--output", output)
    outputs = tuple(output / f"report.{kind}" for kind in ("md", "png", "html"))
    return Stage(name, command, read, outputs, always=True)


def _command(*parts: object) -> tuple[str, ...]:
    return tuple(map(str, parts))


@dataclass(frozen=True)
class StageRunner:
    """Runs stages on this machine, from the repository's root, and keeps what they say.

    Attributes:
        logs: directory for one log file per script.
        ranks: processes of a training run.
        cpu: hide the GPUs and share the cores among the ranks.
    """

    logs: Path
    ranks: int = 2
    cpu: bool = True

    def run(self, stages: Iterable[Stage]) -> None:
        """Run what is not done, one after another, and show what it says.

        Raises:
            UserError: an input is missing, or a command fails.
        """
        for stage in stages:
            if not stage.done:
                self._run(stage)

    def _run(self, stage: Stage) -> None:
        if missing := [path for path in stage.inputs if not path.exists()]:
            raise UserError(f"stage {stage.name} needs {missing[0]}, which is not there: run the stages before it")
        log = self.logs / f"{Path(stage.command[0]).stem}.log"
        code = self._execute(self._started(stage), self._environment(stage), log)
        if code:
            raise UserError(f"{stage.command[0]} ended with code {code}; everything it said is in {log}")

    def _execute(self, command: list[str], environment: dict[str, str], log: Path) -> int:
        """The exit code of a command whose lines go to the console and to `log`."""
        say(shlex.join([Path(command[0]).name, *command[1:]]))
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(log, "a", encoding="utf-8") as stream,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # A command may write in another encoding than this process.
                encoding="utf-8",
                errors="backslashreplace",
            ) as process,
        ):
            for line in process.stdout or ():
                stream.write(line)
                # The launcher's own messages start with their date and stay in the log.
                if not line.startswith("[20"):
                    print(f"  {line}", end="", flush=True)
        return process.returncode

    def _started(self, stage: Stage) -> list[str]:
        if stage.launcher == "python":
            return [sys.executable, *stage.command]
        launcher = ("deepspeed", "--num_accelerators", str(self.ranks), "--master_port", str(free_port()))
        return [*launcher, *stage.command]

    def _environment(self, stage: Stage) -> dict[str, str]:
        environment = dict(os.environ)
        if self.cpu:
            environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            if stage.launcher == "deepspeed":
                environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // self.ranks))
        return environment


def cpu_precision() -> str:
    """bf16 where the processor multiplies it faster than fp32, as Linux says; emulated, it would be slower."""
    processor = Path("/proc/cpuinfo")
    return "bf16" if processor.is_file() and "bf16" in processor.read_text(encoding="utf-8") else "fp32"


def say(sentence: str) -> None:
    """A heading between the output of two commands."""
    print(f"\n== {sentence}", flush=True)
