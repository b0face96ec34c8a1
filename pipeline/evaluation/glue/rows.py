"""The rows of a GLUE task, and an honest word on how much of the official task they are."""

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.evaluation.glue.tasks import GlueTask

FULL = "full"


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled row: its number in the source (from 0), one or two texts, class id or target value."""

    index: int
    texts: tuple[str, ...]
    label: int | float


@dataclass(frozen=True)
class Split:
    """The rows of one file or hub split; `official` says whether the file bears the official name."""

    examples: list[Example]
    source: str
    official: bool = True
    notes: tuple[str, ...] = ()

    def describe(self, official_rows: Iterable[int]) -> str:
        """`full` for the official file with an official row count, else file, rows and the official count if any."""
        counts = tuple(official_rows)
        if self.official and len(self.examples) in counts:
            return FULL
        official = f" (official: {counts[0]:,})" if any(counts) else ""
        text = f"{self.source}, {len(self.examples):,} rows{official}"
        return "".join([text, *(f", {note}" for note in self.notes)])


@dataclass
class TaskData:
    """All rows of a task: training rows, dev rows by scored name, and by the same name why one is missing."""

    task: GlueTask
    train: Split
    dev: dict[str, Split]
    missing: dict[str, str] = field(default_factory=dict)

    def describe(self, scored: str) -> str:
        """The word on training and dev rows of one scored name: `full`, or `train: ...; dev: ...`."""
        rows = next(dev.rows for dev in self.task.dev_sets if dev.name == scored)
        train, dev = self.train.describe(self.task.train_rows), self.dev[scored].describe([rows])
        return FULL if train == dev == FULL else f"train: {train}; dev: {dev}"

    def fingerprint(self, scored: str) -> str:
        """SHA-256 over the training rows and the dev rows of one scored name."""
        digest = hashlib.sha256()
        for split in (self.train, self.dev[scored]):
            for row in split.examples:
                digest.update(json.dumps([row.index, row.texts, row.label]).encode())
            digest.update(b"\0")
        return digest.hexdigest()


def without_a_tenth(split: Split) -> tuple[Split, Split]:
    """Nine tenths of the rows and the rest, chosen by chance but always the same, both in their order."""
    count = len(split.examples)
    held = set(random.Random(0).sample(range(count), max(1, count // 10)))
    parts = [[row for number, row in enumerate(split.examples) if (number in held) is one] for one in (False, True)]
    kept, rest = (Split(rows, split.source, False, split.notes) for rows in parts)
    return kept, rest
