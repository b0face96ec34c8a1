"""Text files line by line, as TSV and JSON lines have them."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import DataError


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line with its number from 1, without its end; blank lines at the end are left out.

    Raises:
        DataError: bytes that are not utf-8.
    """
    for line, raw in _lines(path):
        yield line, _decode(raw, path, line).rstrip("\r\n")


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
