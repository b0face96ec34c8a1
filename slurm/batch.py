"""The batch files of a run: options for sbatch, environment, commands."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.stages import ROOT
from slurm.chain import Link
from slurm.record import FOLDER

TRAIN = ROOT / "slurm" / "train.sbatch"
"""How training runs, in a chain or by hand: signals, requeue, checks of the nodes."""
FILES = {
    "preprocessing/build_shards.py": "slurm/shards.sbatch",
    "pipeline/evaluate.py": "slurm/evaluate.sbatch",
    "pipeline/report.py": "slurm/report.sbatch",
}
"""The batch files of other stages, which take the same arguments and find out their part of an array."""


def batch_file(link: Link, run: Path, name: str, variables: Mapping[str, str], requeue: bool) -> str:
    """The text of a stage's batch file.

    Args:
        link: the stage.
        run: the run directory.
        name: of the job.
        variables: to set for its commands.
        requeue: whether SLURM may start the job again under its own number.
    """
    log = run / FOLDER / "logs" / (f"{link.name}_%A_%a.log" if link.resources.array > 1 else f"{link.name}_%j.log")
    own = [
        f"--job-name={name}",
        f"--output={str(log.parent).replace('%', '%%')}/{log.name}",
        "--open-mode=append",
        "--requeue" if requeue else "--no-requeue",
        *link.resources.options(),
    ]
    inherited = _options(TRAIN) if link.name == "train" else []
    return "\n".join(
        [
            "#!/bin/bash",
            f"# Stage {link.name} of {run}, written by slurm/submit.py. The last of several equal options counts.",
            *(f"#SBATCH {_quoted(option)}" for option in (*inherited, *own)),
            "",
            f"cd {shlex.quote(str(ROOT))} || exit 2",
            *(f"export {key}={shlex.quote(value)}" for key, value in _variables(link, variables).items()),
            f"source slurm/stage.sh {shlex.quote(str(run))} {link.name}",
            *_commands(link),
            "",
        ]
    )


def _options(path: Path) -> list[str]:
    """The options in the head of a batch file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#SBATCH").strip() for line in lines if line.startswith("#SBATCH")]


def _quoted(option: str) -> str:
    """As SLURM reads it: like a shell, with a backslash before a quotation mark that means itself."""
    if option.isascii() and not set(option) & set(" '\"\\#"):
        return option
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _variables(link: Link, variables: Mapping[str, str]) -> dict[str, str]:
    if link.resources.gpus or not any(stage.resources == "gpu" for stage in link.stages):
        return dict(variables)
    cpu = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(link.resources.cpus)}
    return {**variables, **cpu}


def _commands(link: Link) -> Iterator[str]:
    for stage in link.stages:
        door, *arguments = stage.command
        if stage.launcher == "deepspeed":
            yield f"source slurm/train.sbatch {shlex.join(_train_arguments(arguments))}"
        elif door in FILES:
            yield f"bash {FILES[door]} {shlex.join(arguments)} || exit"
        else:
            yield f"python {shlex.join(stage.command)} || exit"


def _train_arguments(words: list[str]) -> list[str]:
    """What train.sbatch takes, out of the arguments of pipeline/train.py."""
    return [words[words.index(option) + 1] for option in ("--deepspeed_config", "--config", "--output")]
