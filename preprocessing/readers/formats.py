"""Documents out of files: one reader per format, and the table of them.

A reader gets a `Piece`, a file or a range of one, and yields its documents in order. A range owns what begins in
it, so the ranges of a file together yield each of its documents once. What a reader leaves out, and every fault, it
tells the `Tally`. To add a format: write its reader and enter it in `FORMATS`.
"""

import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from preprocessing.readers.compressed import DAMAGED, open_text
from preprocessing.readers.documents import Document, Piece, Tally
from preprocessing.readers.hub import count_shards, fingerprint, read_rows
from preprocessing.readers.mediawiki import read_pages

BOM = b"\xef\xbb\xbf"
_TITLE = re.compile(r'\btitle="(.*?)"(?=\s*>|\s+\w+=)')


def read_text(piece: Piece, tally: Tally) -> Iterator[Document]:
    """One document per file."""
    try:
        with open_text(Path(piece.path)) as stream:
            raw = stream.read()
    except DAMAGED as error:
        tally.fault("damaged", piece.path, 0, f"expected whole, undamaged data: {error}")
        return
    skipped = len(BOM) if raw.startswith(BOM) else 0
    text = tally.decode(raw[skipped:], piece.path, skipped)
    if text is not None:
        yield Document(text.strip(), piece.path, skipped)


def read_lines(piece: Piece, tally: Tally) -> Iterator[Document]:
    """One document per line."""
    for offset, line in _owned_lines(piece, tally):
        text = tally.decode(line, piece.path, offset)
        if text is not None:
            yield Document(text.strip(), piece.path, offset)


def read_jsonl(piece: Piece, tally: Tally) -> Iterator[Document]:
    """The field `text` of one JSON object per line; blank lines do not count."""
    for offset, line in _owned_lines(piece, tally):
        decoded = tally.decode(line, piece.path, offset)
        if decoded is None or not decoded.strip():
            continue
        try:
            text = json.loads(decoded)["text"].strip()
            text.encode()  # JSON can spell lone surrogates, which are no text
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            tally.malformed(piece.path, offset, 'a JSON object with a string "text"', line)
            continue
        yield Document(text, piece.path, offset)


def read_wikiextractor(piece: Piece, tally: Tally) -> Iterator[Document]:
    """Articles between `<doc ...>` and `</doc>`; a first line that repeats the title attribute is dropped."""
    begin, article = 0, list[bytes]()
    # A range may begin inside an article that the range before it reads to its end; what follows a fault is as foreign.
    inside_foreign = piece.start > 0
    for offset, line in _lines_from(piece, tally):
        if not article and piece.end is not None and offset >= piece.end:
            return
        if line.startswith(b"<doc "):
            if article:
                tally.malformed(piece.path, offset, f"</doc> of the document that begins at byte {begin}", line)
            begin, article, inside_foreign = offset, [line], False
        elif line.startswith(b"</doc>"):
            if article:
                marked = tally.decode(b"".join(article), piece.path, begin)
                if marked is not None:
                    yield Document(_article_text(marked), piece.path, begin)
            elif not inside_foreign:
                tally.malformed(piece.path, offset, "<doc ...>", line)
            article, inside_foreign = [], False
        elif article:
            article.append(line)
        elif line.strip() and not inside_foreign:
            tally.malformed(piece.path, offset, "<doc ...>", line)
            inside_foreign = True
    if article:
        expected = "expected </doc> for the document that begins here, the file ended first"
        tally.fault("malformed", piece.path, begin, expected)


@dataclass(frozen=True)
class Format:
    """A reader, and how its inputs can be cut so that a big one keeps many processes busy."""

    read: Callable[[Piece, Tally], Iterator[Document]]
    splittable: bool = False
    """Byte ranges of a plain file can be read."""
    bz2_splittable: bool = False
    """So can those of a .bz2 file, which own the bzip2 streams that begin in them."""
    text_share: float = 1
    """Bytes of text in a byte of the file."""
    count_shards: Callable[[str], int] | None = None
    """For inputs that are no files: how many pieces a path has, and"""
    fingerprint: Callable[[str], str] | None = None
    """what identifies its content."""


FORMATS = {
    "text": Format(read_text),
    "lines": Format(read_lines, splittable=True),
    "jsonl": Format(read_jsonl, splittable=True),
    "wikiextractor": Format(read_wikiextractor, splittable=True),
    "mediawiki": Format(read_pages, splittable=True, bz2_splittable=True, text_share=0.5),
    "hub": Format(read_rows, count_shards=count_shards, fingerprint=fingerprint),
}


def read_piece(piece: Piece, tally: Tally | None = None) -> Iterator[Document]:
    """Yield the documents of a piece in order. Without a tally, a fault is a DataError that names file and place."""
    return FORMATS[piece.format].read(piece, tally or Tally())


def _owned_lines(piece: Piece, tally: Tally) -> Iterator[tuple[int, bytes]]:
    for offset, line in _lines_from(piece, tally):
        if piece.end is not None and offset >= piece.end:
            return
        yield offset, line


def _lines_from(piece: Piece, tally: Tally) -> Iterator[tuple[int, bytes]]:
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
        tally.fault("damaged", piece.path, offset, f"expected whole, undamaged data: {error}")


def _article_text(marked: str) -> str:
    header, _, body = marked.partition("\n")
    title = _TITLE.search(header)
    first, _, rest = body.partition("\n")
    if title and html.unescape(title[1]).strip() == html.unescape(first).strip():
        body = rest
    return body.strip()
