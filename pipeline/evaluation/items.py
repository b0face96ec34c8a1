"""The items of an evaluation: the least that a process does at once, such as one fine-tuning under one seed.

Any number of processes share the items of one output directory. Nothing here is heavy.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.errors import UserError

Values = Mapping[str, Mapping[int, float | None]]
"""Of every metric the values by seed; None where one is undefined. What no seed changes has the seed 0."""


class DivergedError(UserError):
    """A fine-tuning ended without numbers: its settings are at fault, not the machine."""


class When(StrEnum):
    """What may run at the same time."""

    ALONE = "alone"
    """Nothing else of this process and its workers: it measures time."""
    ANY = "any"
    LAST = "last"
    """What all other items have made must be there."""


@dataclass(frozen=True)
class Item:
    """One line of the task list.

    Attributes:
        task: what is fine-tuned or measured: a name of `--tasks`, and for texts the text's behind it.
        seed: of a fine-tuning.
        point: learning rate and batch size, where a grid is searched.
        entries: by scored name what `results.json` says of it beside its scores: `data`, `data_sha256` and more.
        chosen_on: the rows by which a point of the grid is chosen, in words.
        settings: of a fine-tuning, `Settings` as a mapping.
        missing: by name why something that belongs to the task cannot be scored.
        files: what it leaves, relative to the output directory.
        flops: estimated floating-point operations.
        when: what may run beside it.
    """

    task: str
    seed: int | None = None
    point: str = ""
    chosen_on: str = ""
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()
    flops: float = 0.0
    when: When = When.ANY

    @property
    def name(self) -> str:
        """What it is called in file names and by `--list`."""
        return self.task if self.seed is None else suffixed(self.task, self.seed, self.point)

    @property
    def label(self) -> str:
        """What it is called in sentences."""
        parts = (self.task, "" if self.seed is None else f"seed {self.seed}", self.point)
        return ", ".join(filter(None, parts))


def suffixed(name: str, seed: int, point: str = "") -> str:
    """`NAME_SEED`, with the point of a grid behind it."""
    return "_".join(filter(None, (name, str(seed), point)))


@dataclass(frozen=True)
class Outcome:
    """What an item found.

    Attributes:
        scores: by scored name.
        verdicts: by scored name what follows from its scores, in a sentence.
        selection: what a point of a grid is chosen by; more is better.
        failure: why a point of a grid has no scores.
        submission: what `results.json` says of the zip for the GLUE server.
    """

    scores: Mapping[str, Values] = field(default_factory=dict)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    selection: float | None = None
    failure: str | None = None
    submission: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Part:
    """Every `count`-th item, from the `number`-th on (from 1)."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The value of `--items`.

        Raises:
            UserError: it is not I/N with I from 1 to N.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        part = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= part.number <= part.count:
            raise UserError(f"--items '{text}': I/N was expected, with I from 1 to N, as in 2/4")
        return part

    def within(self, rank: int, ranks: int) -> "Part":
        """The share of one of several ranks (from 0) that share this part."""
        return Part(self.number + self.count * rank, self.count * ranks)

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Its items; those that need the others belong to every part, and whoever finds all others done runs them."""
        shared = [item for item in items if item.when is not When.LAST]
        return shared[self.number - 1 :: self.count] + [item for item in items if item.when is When.LAST]


WHOLE = Part(1, 1)
