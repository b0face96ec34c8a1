"""Checkpoints that can be trusted: whole or not there, and checked before they are believed.

checkpoints/step_N/parameters.safetensors   fp32 parameters by name
                   exp_avg.safetensors      Adam's first moments
                   exp_avg_sq.safetensors   Adam's second moments
                   compaction.safetensors   what was retired when, and the running scores
                   trainer.json             format, step, optimizer steps, loss scale, what is known of anomalies
                   config.json              the BERT configuration of the model that is trained
                   complete.json            size and SHA-256 of every file above; written last
checkpoints/latest                          name of the newest, replaced atomically
"""

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.engine.conversion import from_format_1
from pipeline.errors import DataError, UserError
from pipeline.files import sha256_of, sync_directory, write_atomically, writing

MARKER = "complete.json"
TENSOR_FILES = ("parameters", "exp_avg", "exp_avg_sq", "compaction")
FORMAT = 2
"""How these files and the recipe beside them are to be read; stands in trainer.json. To be raised with every change
after which this program would misread what was written before."""
CONVERTED = 1
"""The older format that is read too, see `conversion`."""


@dataclass
class Checkpoint:
    """Contents of one checkpoint: tensors per file, and plain values."""

    tensors: dict[str, dict[str, Tensor]]
    trainer: dict[str, Any]
    bert_config: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.trainer["step"])


def save_checkpoint(directory: Path, checkpoint: Checkpoint, keep: int, keep_every: int = 0) -> Path:
    """Write `directory`/step_N under a temporary name, rename it, point `latest` to it, drop older ones.

    Args:
        directory: the run's `checkpoints`.
        checkpoint: what to write.
        keep: whole checkpoints that stay, the new one included.
        keep_every: besides, those stay whose step is a multiple of this; 0 for none.

    Raises:
        UserError: there is no room for it, or it cannot be written.
    """
    final = directory / f"step_{checkpoint.step}"
    temporary = directory / f".{final.name}.{os.getpid()}.tmp"
    with writing(final):
        for leftover in directory.glob(".step_*.tmp"):  # of runs that were killed here
            shutil.rmtree(leftover)
        directory.mkdir(parents=True, exist_ok=True)
        _require_space(final, checkpoint)
        temporary.mkdir()
        files = _write_files(temporary, checkpoint)
        write_atomically(temporary / MARKER, (json.dumps(files, indent=1) + "\n").encode())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync_directory(directory)
    write_atomically(directory / "latest", f"{final.name}\n".encode())
    for path in _superseded(directory, final, keep, keep_every):
        # What somebody still reads cannot be deleted everywhere (NFS); the next time will do.
        shutil.rmtree(path, ignore_errors=True)
    return final


def _write_files(directory: Path, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Write all files but the marker, and make them durable: name -> size and hash, by name.

    One is synced and hashed while the next is written.
    """
    signatures: dict[str, Future[dict[str, Any]]] = {}
    with ThreadPoolExecutor() as pool:
        for name in TENSOR_FILES:
            path = directory / f"{name}.safetensors"
            save_file(checkpoint.tensors[name], path)
            signatures[path.name] = pool.submit(_synced_signature, path)
        trainer = {"format": FORMAT, **checkpoint.trainer}
        for name, content in (("trainer.json", trainer), ("config.json", checkpoint.bert_config)):
            path = directory / name
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            signatures[name] = pool.submit(_synced_signature, path)
    return {name: signatures[name].result() for name in sorted(signatures)}


def _superseded(directory: Path, final: Path, keep: int, keep_every: int) -> list[Path]:
    """The checkpoints that are of no use once `final` is there."""
    others = [path for path in all_checkpoints(directory) if path != final]
    older = [path for path in others if step_of(path) < step_of(final)]
    # Newer ones were broken, or this run would have gone on from them. They must not push out this one.
    gone = [path for path in others[len(older) :] if why_incomplete(path)]
    whole = 1
    while older and whole < keep:  # one that lost a file since it was written does not count
        whole += why_incomplete(older.pop(), hashes=False) is None
    return gone + [path for path in older if not keep_every or step_of(path) % keep_every]


def _require_space(final: Path, checkpoint: Checkpoint) -> None:
    """A disk that fills up half-way costs the time of writing, and often the logs of the run as well."""
    needed = sum(t.numel() * t.element_size() for tensors in checkpoint.tensors.values() for t in tensors.values())
    free = shutil.disk_usage(final.parent).free
    if needed > free:
        raise UserError(
            f"{final}: cannot write: it needs {needed / 1e6:.1f} MB and that disk has {free / 1e6:.1f} MB left; make "
            "room and start the same command again"
        )


def why_incomplete(path: Path, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint, in a sentence; None if every file is what was written.

    This is the only place that says what a complete checkpoint is.

    Args:
        path: the checkpoint's directory.
        hashes: read every file; without, sizes alone are compared. Reading gigabytes again at every save takes about
            half as long as writing them.
    """
    try:
        files = json.loads((path / MARKER).read_bytes())
        missing = {f"{name}.safetensors" for name in TENSOR_FILES} | {"trainer.json", "config.json"}
        if not missing <= files.keys():
            return f"{path / MARKER} does not list {', '.join(sorted(missing - files.keys()))}"
        for name, signature in files.items():
            size = (path / name).stat().st_size
            if size != signature["bytes"] or (hashes and _signature(path / name) != signature):
                return f"{path / name} is not what was written (size or hash differs)"
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return f"{path} has no readable {MARKER}, or a file is missing ({error})"
    return None


def all_checkpoints(directory: Path) -> list[Path]:
    """Directories with the name of a checkpoint, oldest first, complete or not."""
    found = [path for path in directory.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def newest_complete(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes every check, and a sentence for each newer one that does not."""
    faults: list[str] = []
    for path in reversed(all_checkpoints(directory)):
        fault = why_incomplete(path)
        if fault is None:
            return path, faults
        faults.append(fault)
    return None, faults


def load_checkpoint(path: Path) -> Checkpoint:
    """Check a checkpoint and read it.

    Raises:
        DataError: it is not complete.
        UserError: it is of another format.
    """
    fault = why_incomplete(path)
    if fault:
        raise DataError(fault)
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that `newest_complete` has just found: one rank hashes it, all read it.

    Raises:
        UserError: it is of another format.
    """
    trainer = _read_trainer(path)
    tensors = {name: load_file(path / f"{name}.safetensors") for name in TENSOR_FILES}
    if trainer.pop("format") == CONVERTED:
        tensors |= {name: from_format_1(tensors[name]) for name in TENSOR_FILES if name != "compaction"}
        trainer["anomalies"] = trainer.pop("judge")
    return Checkpoint(tensors, trainer, json.loads((path / "config.json").read_text(encoding="utf-8")))


def check_format(directory: Path) -> None:
    """Refuse checkpoints of another format before anything else of them is judged: what they lack may be in order.

    Raises:
        UserError: the newest one whose trainer.json is what was written is of another format.
    """
    for path in reversed(all_checkpoints(directory)):
        try:
            signature = json.loads((path / MARKER).read_bytes())["trainer.json"]
            sound = _signature(path / "trainer.json") == signature
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if sound:
            _read_trainer(path)
            return


def _read_trainer(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, whose format must be one that this program reads."""
    trainer: dict[str, Any] = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
    found = trainer.get("format")
    if found not in (CONVERTED, FORMAT):
        raise UserError(
            f"{path} is of format {found} and this program reads formats {CONVERTED} and {FORMAT} (trainer.json says "
            "which): use the version that wrote it, or begin anew in another directory"
        )
    return trainer


def require_checkpoint(run_directory: Path, step: int | None = None) -> tuple[Path, list[str]]:
    """The newest complete checkpoint of a run that must have one, and a sentence for each broken newer one.

    Args:
        run_directory: what pipeline/train.py wrote.
        step: this one instead of the newest.

    Raises:
        UserError: the directory is no run, or has no usable checkpoint of this format.
    """
    if not (run_directory / "config.yaml").is_file():
        raise UserError(f"{run_directory} is no run directory of pipeline/train.py (it has no config.yaml)")
    checkpoints = run_directory / "checkpoints"
    check_format(checkpoints)
    if step is not None:
        steps = {step_of(path): path for path in all_checkpoints(checkpoints)}
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{run_directory} has no checkpoint of step {step}; there are: {there}")
        if fault := why_incomplete(steps[step]):
            raise UserError(fault)
        return steps[step], []
    path, faults = newest_complete(checkpoints)
    if path is None:
        reason = f": {faults[0]}" if faults else "; train on until one is written"
        raise UserError(f"{run_directory} has no usable checkpoint{reason}")
    return path, faults


def _signature(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _synced_signature(path: Path) -> dict[str, Any]:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    return _signature(path)
