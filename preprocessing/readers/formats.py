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

from preprocessing.readers.compressed import DamagedError, open_text
from preprocessing.readers.documents import Document, Piece, Tally, mark_length
from preprocessing.readers.hub import count_shards, fingerprint, read_rows
from preprocessing.readers.mediawiki import read_pages

_TITLE = re.compile(r'\btitle="(.*?)"(?=\s*>|\s+\w+=)')


def read_text(piece: Piece, tally: Tally) -> Iterator[Document]:
    """One document per file; of a file that breaks, what comes before."""
    blocks, damage = list[bytes](), None
    with open_text(Path(piece.path)) as stream:
        try:
            while block := stream.read1():
                blocks.append(block)
        except DamagedError as error:
            damage = error
    raw = b"".join(blocks)
    blocks.clear()
    begin = mark_length(raw, piece, tally)
    if begin is None:
        return
    raw = raw[begin : _sound_bytes(raw) if damage else None]
    text = tally.decode(raw, piece.path, begin)
    if text is not None and (text or not damage):
        yield Document(text.strip(), piece.path, begin)
    if damage:
        raise damage


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
    for begin, raw in _articles(piece, tally):
        marked = tally.decode(raw, piece.path, begin)
        if marked is not None:
            yield Document(_article_text(marked), piece.path, begin)


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
    tally = tally or Tally()
    try:
        yield from FORMATS[piece.format].read(piece, tally)
    except DamagedError as error:
        tally.damaged(piece.path, error)
    finally:
        tally.close()


def _owned_lines(piece: Piece, tally: Tally) -> Iterator[tuple[int, bytes]]:
    for offset, line in _lines_from(piece, tally):
        if piece.end is not None and offset >= piece.end:
            return
        yield offset, line


def _lines_from(piece: Piece, tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, line) from the first line that begins at or after `piece.start` to the end of the file."""
    with open_text(Path(piece.path)) as stream:
        mark = mark_length(stream.peek(), piece, tally)
        if mark is None:
            return
        # The line that holds the byte before the range belongs to the range before.
        offset = stream.seek(piece.start - 1) + len(stream.readline()) if piece.start else len(stream.read(mark))
        for line in stream:
            yield offset, line
            offset += len(line)


def _articles(piece: Piece, tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, article without its `</doc>`) of the articles that begin in the piece."""
    begin, article = 0, list[bytes]()
    # A range may begin inside an article that the range before it reads to its end; what follows a fault is as foreign.
    inside_foreign = piece.start > 0
    # Articles that were left out because another began within them: the rest of their text is not counted again.
    around = 0
    stray: tuple[int, bytes] | None = None
    for offset, line in _lines_from(piece, tally):
        beyond = piece.end is not None and offset >= piece.end
        if beyond and not article:
            break
        if line.startswith(b"<doc "):
            if article:
                tally.malformed(piece.path, offset, f"</doc> of the document that begins at byte {begin}", line)
                if beyond:
                    return
                around += 1
            elif around and not stray:
                around = 0  # one article right behind another: it was a lost </doc>, and nothing is nested
            begin, article, inside_foreign = offset, [line], False
        elif line.startswith(b"</doc>"):
            if article:
                yield begin, b"".join(article)
                stray = None
            elif around:
                around, stray = around - 1, None
            elif not inside_foreign:
                tally.malformed(piece.path, offset, "<doc ...>", line)
            article, inside_foreign = [], False
        elif article:
            article.append(line)
        elif line.strip() and around:
            stray = stray or (offset, line)
        elif line.strip() and not inside_foreign:
            tally.malformed(piece.path, offset, "<doc ...>", line)
            inside_foreign = True
    if article:
        expected = "expected </doc> for the document that begins here, the file ended first"
        tally.fault("malformed", piece.path, begin, expected)
    elif stray:
        tally.malformed(piece.path, stray[0], "<doc ...>", stray[1])


def _sound_bytes(raw: bytes) -> int:
    """How many bytes, from the first on, are UTF-8: where decompression fails, what it made last may be anything."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(raw)


def _article_text(marked: str) -> str:
    header, _, body = marked.partition("\n")
    title = _TITLE.search(header)
    first, _, rest = body.partition("\n")
    if title and html.unescape(title[1]).strip() == html.unescape(first).strip():
        body = rest
    return body.strip()
