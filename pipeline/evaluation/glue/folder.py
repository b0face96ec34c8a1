"""GLUE tasks from files in the official layout: a folder per task.

Beside the official names (`train.tsv`, `dev.tsv`, `dev_matched.tsv`, ...) a folder may hold a subset
(`train_subset*.tsv`) or another partition (`partition_dev*.tsv`); those are used where the official file is
not there, and named as what they are. MRPC may come as the original `msr_paraphrase_train.txt` with the
`dev_ids.tsv` that says which of its pairs are the dev set.
"""

import math
from pathlib import Path

from pipeline.errors import DataError
from pipeline.evaluation.glue.rows import Example, Split, TaskData
from pipeline.evaluation.glue.tasks import DevSet, GlueTask
from pipeline.evaluation.glue.tsv import read_columns

MRPC_ORIGINAL = "msr_paraphrase_train.txt"
MRPC_DEV_IDS = "dev_ids.tsv"
"""A pair of ids a line, without a header."""


def load(task: GlueTask, root: Path) -> TaskData:
    """Read a task from its folder under `root`; a second dev set (MNLI mismatched) may be missing.

    Raises:
        DataError: the folder, the training file or the first dev file is missing, or a row is bad.
    """
    folder = root / task.folder
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; task {task.name} needs its TSV files there")
    if task.name == "mrpc" and not (folder / "train.tsv").is_file() and (folder / MRPC_ORIGINAL).is_file():
        return _split_original_mrpc(task, folder)
    data = TaskData(task, read_split(task, find_file(folder, "train")), {})
    for position, dev in enumerate(task.dev_sets):
        try:
            path = find_file(folder, dev.stem)
        except MissingFileError:
            if position == 0:
                raise
            data.missing[dev.name] = f"{task.folder}/{dev.stem}.tsv is not in the data directory"
        else:
            data.dev[dev.name] = read_split(task, path, dev)
    return data


class MissingFileError(DataError):
    """A file of a task that is not there; the only error a second dev set survives."""


def find_file(folder: Path, stem: str) -> Path:
    """`STEM.tsv`, else the one subset or partition of it.

    Raises:
        DataError: there is none, or there are several.
    """
    official = folder / f"{stem}.tsv"
    if official.is_file():
        return official
    others = sorted([*folder.glob(f"{stem}_subset*.tsv"), *folder.glob(f"partition_{stem}*.tsv")])
    if not others:
        raise MissingFileError(f"{official}: there is no such file, and no {stem}_subset*.tsv in its place")
    if len(others) > 1:
        raise DataError(f"{folder}: no {stem}.tsv, and several in its place: {', '.join(p.name for p in others)}")
    return others[0]


def read_split(task: GlueTask, path: Path, dev: DevSet | None = None) -> Split:
    """All rows of one file.

    Raises:
        DataError: a row has the wrong length or label, or there are no rows.
    """
    broken: list[int] = []
    examples = []
    rows = read_columns(path, [*task.texts, task.label], task.header, broken, task.broken_rows)
    for index, (line, values) in enumerate(rows):
        examples.append(Example(index, tuple(values[:-1]), parse_label(task, values[-1], path, line)))
    if not examples:
        raise DataError(f"{path}: there are no rows in it")
    official = path.name == f"{dev.stem if dev else 'train'}.tsv"
    notes = (f"{len(broken)} broken rows skipped",) if broken else ()
    return Split(examples, path.name, official, notes)


def parse_label(task: GlueTask, text: str, path: Path, line: int) -> int | float:
    """Class id, or the value of a regression label.

    Raises:
        DataError: it is neither.
    """
    if not task.regression:
        if text in task.classes:
            return task.classes.index(text)
        raise DataError(f"{path}, line {line}: label '{text}' where one of {', '.join(task.classes)} was expected")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}: label '{text}' where a number was expected")
    return value


def _split_original_mrpc(task: GlueTask, folder: Path) -> TaskData:
    """Train and dev rows from the original MRPC file, parted by the id pairs in `dev_ids.tsv`."""
    path, ids_path = folder / MRPC_ORIGINAL, folder / MRPC_DEV_IDS
    if not ids_path.is_file():
        raise MissingFileError(f"{ids_path}: there is no such file; it says which pairs of {path.name} are dev")
    dev_ids = {tuple(ids) for _, ids in read_columns(ids_path, ["1", "2"], ["1", "2"])}
    train: list[Example] = []
    dev: list[Example] = []
    for line, (*ids, first, second, text) in read_columns(path, ["#1 ID", "#2 ID", *task.texts, task.label]):
        rows = dev if tuple(ids) in dev_ids else train
        rows.append(Example(len(rows), (first, second), parse_label(task, text, path, line)))
    if not train or not dev:
        raise DataError(
            f"{path}: {'no rows' if not train else 'none of its pairs'} left for {'train' if not train else 'dev'}"
        )
    return TaskData(task, Split(train, path.name), {task.name: Split(dev, path.name)})
