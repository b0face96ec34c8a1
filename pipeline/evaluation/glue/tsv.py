"""TSV files as GLUE has them: quotes that mean nothing, utf-8."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import DataError
from pipeline.evaluation.glue.lines import text_lines


def read_columns(
    path: Path, wanted: Sequence[str], header: Sequence[str] = (), broken: list[int] | None = None, allowed: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and the `wanted` columns of every row; the first line names them unless `header` does.

    Args:
        path: of the file.
        wanted: names of columns.
        header: names of all columns, for a file without a line of them.
        broken: where the line numbers of rows of a wrong length go, which are skipped.
        allowed: how many of them there may be; the official QQP file has rows torn apart by line breaks.

    Raises:
        DataError: a row of a wrong length too many, a column that is not there, or bytes that are not utf-8.
    """
    broken = [] if broken is None else broken
    columns = list(header)
    for line, text in text_lines(path):
        fields = text.split("\t")
        if not columns:
            columns = fields
            missing = [name for name in wanted if name not in columns]
            if missing:
                raise DataError(f"{path}, line 1: the header has no column '{missing[0]}'")
        elif len(fields) == len(columns):
            yield line, [fields[columns.index(name)] for name in wanted]
        elif len(broken) < allowed:
            broken.append(line)
        else:
            raise DataError(f"{path}, line {line}: {len(fields)} columns where {len(columns)} were expected")
