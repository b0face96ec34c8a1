"""JSON lines with the names and label numbers of the hub, as `Dataset.to_json` writes them: one object a row, utf-8."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.evaluation.glue.lines import text_lines
from pipeline.evaluation.glue.tasks import GlueTask

LABEL = "label"
"""What all tasks call it on the hub."""


def read_texts(task: GlueTask, path: Path) -> Iterator[tuple[int, tuple[str, ...], dict[str, Any]]]:
    """Line number (from 1), texts and the whole object of every row.

    Raises:
        DataError: a line is no JSON object, or a text is not there or no string.
    """
    for line, text in text_lines(path):
        row = _object(text, path, line)
        yield line, tuple(_text(row, column, path, line) for column in task.hub_columns), row


def _object(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {line}: one JSON object a line was expected")
    return row


def _text(row: dict[str, Any], column: str, path: Path, line: int) -> str:
    if column not in row:
        raise DataError(f"{path}, line {line}: there is no '{column}'")
    if not isinstance(row[column], str):
        raise DataError(f"{path}, line {line}: '{column}' is {json.dumps(row[column])} where a text was expected")
    if any("\ud800" <= character <= "\udfff" for character in row[column]):
        raise DataError(f"{path}, line {line}: '{column}' has half of a surrogate pair, which is no character")
    return row[column]


def parse_label(task: GlueTask, row: dict[str, Any], path: Path, line: int) -> int | float:
    """Class id in the order of the hub, or the value of a regression label.

    Raises:
        DataError: it is neither, or not there.
    """
    if LABEL not in row:
        raise DataError(f"{path}, line {line}: there is no '{LABEL}'")
    value = row[LABEL]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if task.regression and number and math.isfinite(value):
        return float(value)
    if not task.regression and number and value in range(len(task.classes)):
        return int(value)
    expected = "a number" if task.regression else f"one of {_numbered(task.labels)}"
    raise DataError(f"{path}, line {line}: label {json.dumps(value)} where {expected} was expected")


def _numbered(labels: Sequence[str]) -> str:
    return ", ".join(f"{number} ({label})" for number, label in enumerate(labels))
