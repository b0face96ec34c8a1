"""The rows of a GLUE task, and an honest word on how much of the official task they are.

1. `load_task` reads a task from a directory of TSV files (`glue_tsv`) or from the hub (`glue_hub`); both hand
   over a `Split` for training and one for each dev set that is there.
2. `_drop_overlap` removes QQP dev pairs that are also trained on, where the files are not the official ones.
3. `TaskData` holds the rows, the description that `results.json` shows, and a hash by which a restart
   recognises that it is still about the same rows.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.evaluation.glue import GlueTask

FULL = "full"
HUB = "hub"


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


def load_task(task: GlueTask, source: str) -> TaskData:
    """Read `task` from the directory `source`, or from the hub when `source` is `hub`.

    Raises `DataError` for missing or malformed files, with the file and the line.
    """
    from pipeline.evaluation import glue_hub, glue_tsv

    data = glue_hub.load(task) if source == HUB else glue_tsv.load(task, Path(source))
    if task.name == "qqp":
        _drop_overlap(data)
    return data


def _drop_overlap(data: TaskData) -> None:
    """Leave out QQP dev pairs (in either order) that are trained on, unless all rows are the official ones.

    QQP has no official split outside GLUE, so a train file from one source and a dev file from another share
    pairs. The official dev set stays whole: its scores are compared with published ones.
    """
    trained = {frozenset(row.texts) for row in data.train.examples}
    for name, split in data.dev.items():
        if data.describe(name) == FULL:
            continue
        kept = [row for row in split.examples if frozenset(row.texts) not in trained]
        dropped = len(split.examples) - len(kept)
        if dropped:
            note = f"{dropped:,} pairs that are also in train left out"
            data.dev[name] = Split(kept, split.source, official=False, notes=(*split.notes, note))
