"""GLUE tasks from files in the official layout: a folder per task.

A file is TSV as officially released, or JSON lines with the names of the hub (`train.jsonl`). Beside the official
names (`train.tsv`, `dev.tsv`, `dev_matched.tsv`, ...) a folder may hold a subset (`train_subset*.tsv`) or another
partition (`partition_dev*.tsv`); those are used where the official file is not there, and named as what they are.
MRPC may come as the original `msr_paraphrase_train.txt` with the `dev_ids.tsv` that says which of its pairs are the
dev set.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import DataError
from pipeline.evaluation.glue import jsonl
from pipeline.evaluation.glue.rows import FULL, Example, Split, TaskData
from pipeline.evaluation.glue.tasks import DevSet, GlueTask
from pipeline.evaluation.glue.tsv import read_columns

JSON_LINES = ".jsonl"
SUFFIXES = (".tsv", JSON_LINES)
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
        raise DataError(f"{folder}: there is no such folder; task {task.name} needs its files there")
    if task.name == "mrpc" and (folder / MRPC_ORIGINAL).is_file() and not any(folder.glob("train.*")):
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


def find_official(folder: Path, stem: str) -> Path | None:
    """`STEM.tsv` or `STEM.jsonl`, if it is there.

    Raises:
        DataError: both are.
    """
    return _only([path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()], stem)


def find_file(folder: Path, stem: str) -> Path:
    """`STEM.tsv` or `STEM.jsonl`, else the one subset or partition of it.

    Raises:
        DataError: there is none, or there are several.
    """
    patterns = [f"{name}{suffix}" for name in (f"{stem}_subset*", f"partition_{stem}*") for suffix in SUFFIXES]
    found = find_official(folder, stem) or _only(sorted(p for pattern in patterns for p in folder.glob(pattern)), stem)
    if found is None:
        others = f"{stem}.jsonl or {stem}_subset*.tsv"
        raise MissingFileError(f"{folder / stem}.tsv: there is no such file, and no {others} in its place")
    return found


def _only(found: Sequence[Path], stem: str) -> Path | None:
    """The one file that was found, if any."""
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{found[0].parent}: {names} are there for the {stem} rows, keep one of them")
    return found[0] if found else None


def read_split(task: GlueTask, path: Path, dev: DevSet | None = None) -> Split:
    """All rows of one file.

    Raises:
        DataError: a row has the wrong length or label or an empty text, or there are no rows.
    """
    broken: list[int] = []
    lines: list[int] = []
    examples: list[Example] = []
    for line, texts, label in _read_rows(task, path, broken):
        examples.append(Example(len(examples), texts, label))
        lines.append(line)
    if not examples:
        raise DataError(f"{path}: there are no rows in it")
    notes = (f"{len(broken)} broken rows skipped",) if broken else ()
    split = Split(examples, path.name, path.stem == (dev.stem if dev else "train"), notes)
    if split.describe([dev.rows] if dev else task.train_rows) != FULL:
        _refuse_empty_texts(task, split, path, lines)
    return split


def _read_rows(task: GlueTask, path: Path, broken: list[int]) -> Iterator[tuple[int, tuple[str, ...], int | float]]:
    """Line number, texts and label of every row; `broken` takes the lines that are skipped."""
    if path.suffix == JSON_LINES:
        for line, texts, row in jsonl.read_texts(task, path):
            yield line, texts, jsonl.parse_label(task, row, path, line)
    else:
        for line, values in read_columns(path, [*task.texts, task.label], task.header, broken, task.broken_rows):
            yield line, tuple(values[:-1]), parse_label(task, values[-1], path, line)


def _refuse_empty_texts(task: GlueTask, split: Split, path: Path, lines: Sequence[int]) -> None:
    """An empty text is a mistake, but for an official file, which is taken as it is: QQP has empty questions."""
    columns = task.hub_columns if path.suffix == JSON_LINES else task.texts
    for line, row in zip(lines, split.examples, strict=True):
        for column, text in zip(columns, row.texts, strict=True):
            if not text.strip():
                raise DataError(f"{path}, line {line}: '{column}' is empty where a text was expected")


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
