"""Documents out of files: one reader per format, and the table of them.

A reader gets a `Piece`, a file or a byte range of one, and yields its documents in order. A range owns what begins
in it, so the ranges of a file together yield each of its documents once. To add a format: write its reader and
enter it in `FORMATS`.
"""

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from preprocessing.compressed import DAMAGED, open_text

BOM = b"\xef\xbb\xbf"
_TITLE = re.compile(r'\btitle="(.*?)"(?=\s*>|\s+\w+=)')


@dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of the (decompressed) file at `path`; end None means to its end."""

    format: str
    path: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Document:
    """Text without surrounding white space, perhaps none, and where it begins: byte `offset` of `path`."""

    text: str
    path: str
    offset: int


def read_text(piece: Piece) -> Iterator[Document]:
    """One document per file."""
    try:
        with open_text(Path(piece.path)) as stream:
            raw = stream.read()
    except DAMAGED as error:
        raise DataError(f"{piece.path}: expected whole, undamaged data: {error}") from error
    skipped = len(BOM) if raw.startswith(BOM) else 0
    yield Document(_decode(raw[skipped:], piece.path, skipped).strip(), piece.path, skipped)


def read_lines(piece: Piece) -> Iterator[Document]:
    """One document per line."""
    for offset, line in _lines_from(piece):
        if piece.end is not None and offset >= piece.end:
            return
        yield Document(_decode(line, piece.path, offset).strip(), piece.path, offset)


def read_wikiextractor(piece: Piece) -> Iterator[Document]:
    """Articles between `<doc ...>` and `</doc>`; a first line that repeats the title attribute is dropped."""
    begin, article = 0, list[bytes]()
    # A range may begin inside an article that the range before it reads to its end.
    inside_foreign = piece.start > 0
    for offset, line in _lines_from(piece):
        if not article and piece.end is not None and offset >= piece.end:
            return
        if line.startswith(b"<doc "):
            if article:
                raise _malformed(piece.path, offset, f"</doc> of the document that begins at byte {begin}", line)
            begin, article, inside_foreign = offset, [line], False
        elif line.startswith(b"</doc>"):
            if article:
                yield Document(_article_text(_decode(b"".join(article), piece.path, begin)), piece.path, begin)
            elif not inside_foreign:
                raise _malformed(piece.path, offset, "<doc ...>", line)
            article, inside_foreign = [], False
        elif article:
            article.append(line)
        elif line.strip() and not inside_foreign:
            raise _malformed(piece.path, offset, "<doc ...>", line)
    if article:
        where = f"{piece.path}, line {_line_number(piece.path, begin)} (byte {begin})"
        raise DataError(f"{where}: expected </doc> for the document that begins here, the file ended first")


@dataclass(frozen=True)
class Format:
    """A reader, and whether it can read byte ranges of a file (so that one big file keeps many processes busy)."""

    read: Callable[[Piece], Iterator[Document]]
    splittable: bool


FORMATS = {
    "text": Format(read_text, splittable=False),
    "lines": Format(read_lines, splittable=True),
    "wikiextractor": Format(read_wikiextractor, splittable=True),
}


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield the documents of a piece in order. DataError names the file and where it is not what it should be."""
    return FORMATS[piece.format].read(piece)


def _lines_from(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, line) from the first line that begins at or after `piece.start` to the end of the file."""
    offset = piece.start
    try:
        with open_text(Path(piece.path)) as stream:
            if piece.start:
                # The line that holds the byte before the range belongs to the range before.
                stream.seek(piece.start - 1)
                offset += len(stream.readline()) - 1
            for line in stream:
                if offset == 0 and line.startswith(BOM):
                    offset, line = len(BOM), line[len(BOM) :]
                yield offset, line
                offset += len(line)
    except DAMAGED as error:
        raise DataError(f"{piece.path}: byte {offset}: expected whole, undamaged data: {error}") from error


def _article_text(marked: str) -> str:
    header, _, body = marked.partition("\n")
    title = _TITLE.search(header)
    first, _, rest = body.partition("\n")
    if title and html.unescape(title[1]).strip() == html.unescape(first).strip():
        body = rest
    return body.strip()


def _decode(raw: bytes, path: str, offset: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        at = offset + error.start
        where = f"{path}, line {_line_number(path, at)} (byte {at})"
        raise DataError(f"{where}: expected UTF-8, found byte 0x{raw[error.start]:02x}") from error


def _malformed(path: str, offset: int, expected: str, line: bytes) -> DataError:
    found = line[:40].decode(errors="replace").strip()
    return DataError(f"{path}, line {_line_number(path, offset)} (byte {offset}): expected {expected}, found {found!r}")


def _line_number(path: str, offset: int) -> int:
    """Line, from 1, of a byte of the text. Reads the file again: errors are rare, counting always would cost."""
    count, left = 1, offset
    with open_text(Path(path)) as stream:
        while left and (block := stream.read(min(left, 1 << 20))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count
