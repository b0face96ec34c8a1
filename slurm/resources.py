"""The site file: what every stage gets of a cluster, as sbatch's options."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pipeline.errors import UserError, refuse
from pipeline.parsing import build, read_sections

STAGES = ("shards", "merge", "verify", "train", "fold", "evaluate", "report")
"""All that is queued, in order."""
SHARDING = ("shards", "merge")
"""Stages whose outcome runs share."""
DEFAULTS = "defaults"
"""Section of what holds for every stage that says nothing else."""
_TIME = re.compile(r"(\d+-)?\d+(:\d\d){1,2}|\d+-\d+")
"""SLURM's forms but plain minutes: without quotes, YAML makes 90000 of 25:00:00."""


@dataclass
class Resources:
    """What one stage gets. A stage runs one task per GPU, or one per node without any."""

    nodes: int = 1
    gpus: int = 0
    """Of each node."""
    cpus: int = 2
    """Of each task."""
    time: str | None = None
    """Limit, as [DAYS-]HOURS:MINUTES:SECONDS; of each job."""
    memory: str | None = None
    """Of each node, such as 64G; the partition's default without."""
    partition: str | None = None
    account: str | None = None
    array: int = 1
    """Jobs side by side that share the work; for shards and evaluate."""
    extra: Any = None
    """A list of further options for sbatch, each with its two dashes."""

    def problems(self) -> Iterator[str]:
        """The end of a sentence for each value that cannot be, from its key on."""
        for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1), ("array", 1)):
            if getattr(self, name) < least:
                yield f"{name} must be at least {least}, not {getattr(self, name)}"
        if self.time is not None and not _TIME.fullmatch(self.time):
            yield f'time must be written in quotes, such as "24:00:00" or "2-00:00:00", not {self.time}'
        extra = [] if self.extra is None else self.extra
        if not isinstance(extra, list) or not all(isinstance(option, str) and option[:2] == "--" for option in extra):
            yield f"extra must be a list of options such as --constraint=a100, not {self.extra!r}"

    @property
    def tasks(self) -> int:
        """Tasks of each node."""
        return max(self.gpus, 1)

    def options(self) -> list[str]:
        """What asks sbatch for it."""
        asked = {"memory": "mem", "time": "time", "partition": "partition", "account": "account"}
        return [
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.tasks}",
            f"--cpus-per-task={self.cpus}",
            *([f"--gres=gpu:{self.gpus}"] if self.gpus else []),
            *(f"--{option}={value}" for name, option in asked.items() if (value := getattr(self, name)) is not None),
            *([f"--array=1-{self.array}"] if self.array > 1 else []),
            *(self.extra or []),
        ]


@dataclass
class Site:
    """A cluster, as far as it must be known."""

    cache: str | None = None
    """Folder on the shared file system for what runs have in common: teachers, data sets, shards."""
    requeue: bool = True
    """Whether a job that is signalled may be put back into the queue under its own number."""
    train_jobs: int = 10
    """Without requeue: how many jobs train one after another at most."""
    shards: Resources = field(default_factory=Resources)
    merge: Resources = field(default_factory=Resources)
    verify: Resources = field(default_factory=Resources)
    train: Resources = field(default_factory=Resources)
    fold: Resources = field(default_factory=Resources)
    evaluate: Resources = field(default_factory=Resources)
    report: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        refuse(self.problems())

    def of(self, stage: str) -> Resources:
        """What the stage of this name gets."""
        return cast(Resources, getattr(self, stage))

    def problems(self) -> Iterator[str]:
        """A sentence for each value that cannot be."""
        if self.cache is None:
            yield "cache is missing: name a folder on the shared file system, for teachers, data sets and shards"
        if self.train_jobs < 1:
            yield f"train_jobs must be at least 1, not {self.train_jobs}"
        for name in STAGES:
            resources = self.of(name)
            yield from (f"{name}.{problem}" for problem in resources.problems())
            if resources.time is None:
                yield f'{name}.time is missing: give the stage, or {DEFAULTS}, a limit such as "24:00:00"'
            if resources.array > 1 and name not in ("shards", "evaluate"):
                yield f"{name}.array must be 1: only shards and evaluate can be shared among jobs"
            if name != "train" and (resources.nodes > 1 or resources.gpus > 1):
                yield f"{name} has one process: give it one node, and one GPU at most"


def load_site(path: Path) -> Site:
    """Read a site file.

    Raises:
        UserError: it is missing or no YAML, or entries are missing, unknown or wrong; one sentence for each.
    """
    content = read_sections(path, "site file")
    where = f"site file {path}"
    defaults = content.pop(DEFAULTS, None) or {}
    build(Resources, defaults, where, f"{DEFAULTS}.")
    for name in STAGES:
        own = content.get(name)
        content[name] = {**defaults, **(own or {})} if own is None or isinstance(own, dict) else own
    try:
        return cast(Site, build(Site, content, where))
    except UserError as error:
        # What a class has against its values does not know the file.
        raise UserError(*(s if s.startswith(where) else f"{where}: {s}" for s in error.sentences)) from error
