"""TSV files as GLUE has them: quotes that mean nothing, utf-8."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import DataError


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
        DataError: a row of a wrong length too many, or bytes that are not utf-8.
    """
    broken = [] if broken is None else broken
    columns = list(header)
    for line, raw in _lines(path):
        fields = _decode(raw, path, line).rstrip("\r\n").split("\t")
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


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line with its number from 1, but for the blank ones at the end, which editors and exports leave behind."""
    blank: list[tuple[int, bytes]] = []
    # Lines end at \n only: sentences contain other characters that str.splitlines would break at.
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                blank.append((line, raw))
                continue
            yield from blank
            blank.clear()
            yield line, raw


def _decode(raw: bytes, path: Path, line: int) -> str:
    """One line as text, without the byte order mark that some official files begin with."""
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {line}: byte {error.start} of the line is not utf-8") from None
