"""The directory of one run: who owns it, what is recorded at the start, and the records that grow.

config.yaml       the resolved recipe        ds_config.json    the completed DeepSpeed configuration
environment.txt   machine, versions, commit        metrics.jsonl     one object per logged step
selection.jsonl   every retirement           tensorboard/  checkpoints/
"""

import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Recipe
from pipeline.engine.checkpoint import newest_complete
from pipeline.environment import commit, machine, versions
from pipeline.errors import DataError, UserError
from pipeline.files import write_atomically, writing


def resume_point(directory: Path, recipe: Recipe) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from (None for a new run) and sentences about broken newer ones. Changes nothing.

    Raises:
        UserError: the directory belongs to something else, or to a run of another recipe.
        DataError: it has checkpoints, and all are broken. To begin anew would drop the run's records.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is no directory: choose another --output")
    # A run that was killed while it wrote its very first file leaves only that file's temporary name.
    if not directory.exists() or all(path.match(".*.tmp") for path in directory.iterdir()):
        return None, []
    recorded = _recorded_recipe(directory)
    difference = _difference(recorded, recipe.to_dict())
    if difference:
        raise UserError(f"{directory} holds another run: {difference}; choose another --output")
    if recipe.train.steps < recorded["train"]["steps"]:
        raise UserError(
            f"{directory} was started for {recorded['train']['steps']} steps; train.steps may grow, not shrink to "
            f"{recipe.train.steps}"
        )
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


def _difference(recorded: Any, wanted: dict[str, Any], prefix: str = "") -> str | None:
    """The first key in which two recipes differ, train.steps aside."""
    for key in sorted(set(recorded) | set(wanted)):
        old, new = recorded.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found = _difference(old, new, f"{prefix}{key}.")
            if found:
                return found
        elif old != new and prefix + key != "train.steps":
            return f"its {prefix}{key} is {old!r}, not {new!r}"
    return None


def record_start(directory: Path, recipe: Recipe, deepspeed_config: dict[str, Any], command: list[str]) -> None:
    """Write what a run is, before its first step."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    # First of all: it is what makes this a run directory, also if the next line is never reached.
    write_atomically(directory / "config.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False).encode())
    write_atomically(directory / "ds_config.json", (json.dumps(deepspeed_config, indent=1) + "\n").encode())
    write_atomically(directory / "environment.txt", _environment(command).encode())
    with writing(directory):
        (directory / "checkpoints").mkdir(exist_ok=True)


def _environment(command: list[str]) -> str:
    lines = {"command": " ".join(command), "machine": machine(), **versions(), "commit": commit()}
    return "".join(f"{name}: {value}\n" for name, value in lines.items())


class JsonLines:
    """A file of one JSON object per line, which a resumed run cuts back to where it goes on."""

    def __init__(self, path: Path, until_step: int) -> None:
        self.path = path
        kept = [line for line in read_json_lines(path) if line["step"] <= until_step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def append(self, **fields: Any) -> None:
        with writing(self.path), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(fields) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of the file; nothing if it does not exist. A last line cut by a kill is left out."""
    objects = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return objects
