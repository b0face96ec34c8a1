"""The directory of one run: who owns it, what is recorded at the start, and the records that grow.

config.yaml       the resolved recipe        ds_config.json    the completed DeepSpeed configuration
environment.txt   machine, versions, commit        metrics.jsonl     one object per logged step
selection.jsonl   every retirement           tensorboard/  checkpoints/
lock              held by the run that writes here   stacks/  of the threads of every rank, if one hung or was lost
stop              asks the run to stop       stopped.json      what stopped it, until it is started again
slurm/            what the jobs of a cluster keep here, from before the first start
"""

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import yaml

from pipeline.config import DataConfig
from pipeline.engine.checkpoint import all_checkpoints, check_format, newest_complete
from pipeline.engine.stopping import STOPPED
from pipeline.environment import commit, machine, versions
from pipeline.errors import DataError, UserError
from pipeline.files import write_atomically, writing
from pipeline.recipe import DISTILLATIONS, HOW_IT_RUNS, MAY_CHANGE, Recipe

LOCK = "lock"
SLURM = "slurm"


class DirectoryLock:
    """Keeps a second run out of a directory. The system releases it with the process, however that ends.

    A context manager: it is released at the end of the block at the latest.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._path = directory, directory / LOCK
        self._stream: IO[str] | None = None

    @property
    def held(self) -> bool:
        return self._stream is not None

    def take(self, create: bool) -> None:
        """Hold the lock from here on. Does nothing if it is held already, or if there is no file and none is wanted.

        Raises:
            UserError: another process holds it.
        """
        if self._stream or not (create or self._path.exists()):
            return
        with writing(self._path):
            self._stream = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 (held until released)
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks: the run goes on, as it would have without this
            self._stream.seek(0)
            holder = self._stream.read().strip() or "unknown"
            self.release()
            raise UserError(
                f"{self._directory} is in use by another run ({holder}): wait for its end, or choose another --output"
            ) from error
        with writing(self._path):
            self._stream.truncate(0)
            self._stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._stream.flush()

    def release(self) -> None:
        if self._stream:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> "DirectoryLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def resume_point(directory: Path, recipe: Recipe, lock: DirectoryLock | None = None) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from (None for a new run) and sentences about broken newer ones. Changes nothing.

    Args:
        directory: the run directory, which need not exist.
        recipe: what is asked for now; a run of another recipe is refused.
        lock: taken, if there is a run, before its checkpoints are looked at: whoever held it may have written more.

    Raises:
        UserError: the directory belongs to something else, to a run of another recipe or format, or another process
            holds it.
        DataError: it has checkpoints, and all are broken. To begin anew would drop the run's records.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is no directory: choose another --output")
    # A run that was killed while it wrote its very first file leaves only its lock and that file's temporary name.
    # A job on a cluster has its folder before.
    if not directory.exists() or all(
        path.match(".*.tmp") or path.name in (LOCK, SLURM) for path in directory.iterdir()
    ):
        if lock:
            lock.take(create=False)
        return None, []
    recorded = _recorded_recipe(directory)
    check_format(directory / "checkpoints")
    trained = bool(all_checkpoints(directory / "checkpoints"))
    difference = _difference(recorded, recipe.to_dict(), trained, recipe.method in DISTILLATIONS)
    if difference:
        raise UserError(f"{directory} holds another run: {difference}; choose another --output")
    if recipe.train.steps < recorded["train"]["steps"]:
        raise UserError(
            f"{directory} was started for {recorded['train']['steps']} steps; train.steps may grow, not shrink to "
            f"{recipe.train.steps}"
        )
    if lock:
        lock.take(create=True)
    path, faults = newest_complete(directory / "checkpoints")
    if faults and path is None:
        raise DataError(f"{faults[0]}, and no older checkpoint is whole: delete {directory} to begin anew")
    return path, faults


def _recorded_recipe(directory: Path) -> dict[str, Any]:
    try:
        recorded = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        recorded = None
    if not isinstance(recorded, dict):
        raise UserError(f"{directory} is not empty and no run directory: choose another --output")
    return recorded


def _difference(recorded: Any, wanted: dict[str, Any], trained: bool, distilled: bool, prefix: str = "") -> str | None:
    """The first key in which two recipes differ, those aside that may.

    Args:
        recorded: what config.yaml holds, or a section of it.
        wanted: the recipe that was asked for, or the same section of it.
        trained: there are checkpoints, which know by a hash what the shards of the run hold.
        distilled: and what its teacher is.
        prefix: name of the section, with a dot.
    """
    for key in sorted(set(recorded) | set(wanted), key=lambda key: (key != "method", key)):
        old, new, name = recorded.get(key), wanted.get(key), prefix + key
        if isinstance(old, dict) and isinstance(new, dict):
            found = _difference(old, new, trained, distilled, f"{name}.")
            if found:
                return found
        elif old != new and not _may_differ(name, old, new, trained, distilled):
            return f"its {name} is {old!r}, not {new!r}"
    return None


def _may_differ(name: str, old: Any, new: Any, trained: bool, distilled: bool) -> bool:
    """Whether a resumed run may have another value of a key than it had.

    Shards may have moved, and so may the teacher of a distillation; what they hold is compared when they are opened.
    And a relative teacher.path stays relative where the teacher is there no longer, which a run that has its weights
    does not need.
    """
    if name in MAY_CHANGE or name in HOW_IT_RUNS:
        return old is not None or name in HOW_IT_RUNS
    if name == "data.shards":
        return trained and _weights(old) == _weights(new)
    if isinstance(old, str) and isinstance(new, str):
        moved = (name == "data.heldout" and trained) or (name == "teacher.path" and trained and distilled)
        return moved or (name == "teacher.path" and old == os.path.abspath(new))
    return False


def _weights(shards: Any) -> list[float] | None:
    try:
        return [weight for _, weight in DataConfig(shards=shards).sources()]
    except UserError:
        return None


def record_start(
    directory: Path,
    recipe: Recipe,
    deepspeed_config: dict[str, Any],
    command: list[str],
    lock: DirectoryLock | None = None,
) -> None:
    """Write what a run is and where its shards are now, before its first step.

    Args:
        directory: the run directory.
        recipe: as it is trained, with every override.
        deepspeed_config: as DeepSpeed gets it.
        command: the words of the command line.
        lock: taken before anything is written.

    Raises:
        UserError: another run holds the lock, or the directory cannot be written.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if lock and not lock.held:
        lock.take(create=True)
        if (directory / "config.yaml").exists():
            raise UserError(f"another run has just begun in {directory}: wait for its end, or choose another --output")
    # First of all: it is what makes this a run directory, also if the next line is never reached.
    values = recipe.to_dict()
    if (directory / "config.yaml").exists() and recipe.method not in DISTILLATIONS:
        # Its path is absolute, the recipe's only while the teacher is there.
        values["teacher"]["path"] = _recorded_recipe(directory)["teacher"]["path"]
    write_atomically(directory / "config.yaml", yaml.safe_dump(values, sort_keys=False).encode())
    write_atomically(directory / "ds_config.json", (json.dumps(deepspeed_config, indent=1) + "\n").encode())
    write_atomically(directory / "environment.txt", _environment(command).encode())
    with writing(directory):
        (directory / "checkpoints").mkdir(exist_ok=True)
        (directory / STOPPED).unlink(missing_ok=True)


def _environment(command: list[str]) -> str:
    lines = {"command": " ".join(command), "machine": machine(), **versions(), "commit": commit()}
    return "".join(f"{name}: {value}\n" for name, value in lines.items())
