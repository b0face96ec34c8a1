"""A GLUE task from wherever its rows are: a directory (`folder`) or the hub (`hub`)."""

from pathlib import Path

from pipeline.evaluation.glue import folder, hub
from pipeline.evaluation.glue.rows import FULL, Split, TaskData
from pipeline.evaluation.glue.tasks import GlueTask

HUB = "hub"


def load_task(task: GlueTask, source: str) -> TaskData:
    """Read `task` from the directory `source`, or from the hub when `source` is `hub`.

    Raises:
        DataError: files are missing or malformed; the sentence names the file and the line.
    """
    data = hub.load(task) if source == HUB else folder.load(task, Path(source))
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
