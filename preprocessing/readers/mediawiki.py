"""The reader of MediaWiki's XML dumps (pages-articles): a page at a time, in memory that does not grow.

A dump is cut at its `<page>` tags, which cannot occur in escaped text, and each page is parsed on its own: a fault
costs one page. So any byte of a plain dump can begin a range. In a .bz2 the streams are looked for instead: a
multistream dump has one for every hundred pages, and a stream's header, ten bytes, does not occur by chance.
"""

import bz2
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mwparserfromhell.parser import use_c

from pipeline.errors import UserError
from preprocessing.readers.compressed import DAMAGED, open_text
from preprocessing.readers.documents import Document, Piece, Tally
from preprocessing.readers.wikitext import LINK_NAMESPACES, WikitextError, plain_text

_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 17
"""Of compressed bytes, which become five times as many and more."""
_OPENING = 64
"""Longer than any tag that is looked for, and enough of a page to show."""
_HEAD = 1 << 16
_OPEN, _CLOSE = b"<page>", b"</page>"
_LARGEST_PAGE = 1 << 26
"""MediaWiki allows 2 MB of wikitext; what never closes must not fill the memory."""
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_STREAM_HEADER = 10
_NAMESPACE = re.compile(r'<namespace key="(?:-2|6|14)"[^>]*>([^<]+)</namespace>')
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)


def read_pages(piece: Piece, tally: Tally) -> Iterator[Document]:
    """Articles as plain text; redirects, disambiguation pages and other namespaces are told the tally."""
    if not use_c:
        raise UserError(
            "mwparserfromhell is installed without its C tokenizer; the one in Python is too slow for a dump"
        )
    link_namespaces = _link_namespaces(piece, tally)
    blocks = _Blocks(piece, tally)
    for offset, raw in _pages(blocks, tally):
        text = _article(raw, offset, blocks, link_namespaces, tally)
        if text is not None:
            yield Document(text, piece.path, offset)


def _article(raw: bytes, offset: int, blocks: "_Blocks", link_namespaces: frozenset[str], tally: Tally) -> str | None:
    if tally.decode(raw, blocks.path, offset, blocks.unit) is None:
        return None
    try:
        page = ElementTree.fromstring(raw)
    except ElementTree.ParseError as error:
        tally.fault("malformed", blocks.path, offset, f"expected a well-formed <page>: {error}", blocks.unit)
        return None
    title = page.findtext("title", "")
    wikitext = page.findtext("revision[last()]/text") or ""
    if page.findtext("ns", "0") != "0" or page.findtext("revision[last()]/model", "wikitext") != "wikitext":
        tally.drop("namespace")
    elif page.find("redirect") is not None or _REDIRECT.match(wikitext):
        tally.drop("redirect")
    elif title.endswith("(disambiguation)"):
        tally.drop("disambiguation")
    else:
        try:
            text = plain_text(wikitext, link_namespaces)
        except WikitextError as error:
            expected = f"expected wikitext in page {title!r}: {error}"
            tally.fault("malformed", blocks.path, offset, expected, blocks.unit)
            return None
        if text is not None:
            return text
        tally.drop("disambiguation")
    return None


def _link_namespaces(piece: Piece, tally: Tally) -> frozenset[str]:
    """Lower-case names of the file, media and category namespaces, from the head of the dump."""
    try:
        with open_text(Path(piece.path)) as stream:
            head = stream.read(_HEAD)
    except DAMAGED:
        return LINK_NAMESPACES  # reading the pages will say so
    if b"<mediawiki" not in head and piece.start == 0:
        tally.malformed(piece.path, 0, "<mediawiki ...>", head)
    names = _NAMESPACE.findall(head.decode(errors="replace"))
    return LINK_NAMESPACES.union(name.lower() for name in names)


def _pages(blocks: "_Blocks", tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, `<page>...</page>`) of the pages that begin in the piece."""

    def malformed(at: int, expected: str) -> None:
        tally.malformed(blocks.path, base + at, expected, buffer[at : at + _OPENING], blocks.unit)

    buffer, base = b"", blocks.start  # `base` is the offset of the buffer's first byte
    seen = False
    for block in blocks:
        buffer, at = buffer + block, 0
        while True:
            begin = buffer.find(_OPEN, at)
            if blocks.end is not None and (begin if begin >= 0 else len(buffer) - len(_OPEN)) + base >= blocks.end:
                return
            end = buffer.find(_CLOSE, begin) if begin >= 0 else -1
            if end < 0:
                break
            # A page that lost its end runs into the next one.
            inner = buffer.rfind(_OPEN, begin, end)
            if inner != begin:
                malformed(begin, "</page> before the next <page>")
                if blocks.end is not None and base + inner >= blocks.end:
                    return
            at = end + len(_CLOSE)
            seen = True
            yield base + inner, buffer[inner:at]
        if begin >= 0 and len(buffer) - begin > _LARGEST_PAGE:
            malformed(begin, f"</page> within {_LARGEST_PAGE} bytes")
            begin = -1
        keep = begin if begin >= 0 else max(at, len(buffer) - _OPENING)
        buffer, base = buffer[keep:], base + keep
    if buffer.startswith(_OPEN):
        malformed(0, "</page>, the file ended first")
    elif seen and b"</mediawiki>" not in buffer:  # a piece without a page may begin within the tag
        malformed(len(buffer), "</mediawiki>, the file ended first")


class _Blocks:
    """Blocks of a dump's text from a piece's start on, to the end of the file.

    `end` is the offset from which on pages belong to the next piece, None until that is known. Offsets are those of
    the text; in a later piece of a .bz2, whose place in the text nobody knows, they count from its first stream.
    """

    def __init__(self, piece: Piece, tally: Tally) -> None:
        self.path = piece.path
        self.unit = "byte"
        self._piece = piece
        self._tally = tally
        in_streams = piece.path.endswith(".bz2") and (piece.start, piece.end) != (0, None)
        self.start = 0 if in_streams else piece.start
        self.end = None if in_streams else piece.end
        self._read = self._from_streams if in_streams else self._from_text

    def __iter__(self) -> Iterator[bytes]:
        position = self.start
        try:
            for block in self._read():
                yield block
                position += len(block)
        except DAMAGED as error:
            self._tally.fault("damaged", self.path, position, f"expected whole, undamaged data: {error}", self.unit)

    def _from_text(self) -> Iterator[bytes]:
        with open_text(Path(self._piece.path)) as stream:
            if self.start:
                stream.seek(self.start)
            while block := stream.read(_BLOCK):
                yield block

    def _from_streams(self) -> Iterator[bytes]:
        piece = self._piece
        limit = piece.end
        begin = _next_stream(piece)
        if begin is None:
            return
        self.unit = f"bzip2 stream at {begin}, byte"
        position = 0
        with open(piece.path, "rb") as source:
            source.seek(begin)
            stream, packed = bz2.BZ2Decompressor(), b""
            while block := packed or source.read(_PACKED_BLOCK):
                if stream.eof:
                    stream = bz2.BZ2Decompressor()
                    if self.end is None and limit is not None and source.tell() - len(block) >= limit:
                        self.end = position
                text = stream.decompress(block)
                packed = stream.unused_data if stream.eof else b""
                position += len(text)
                yield text
            if not stream.eof:
                raise EOFError("the file ends inside a bzip2 stream")


def _next_stream(piece: Piece) -> int | None:
    """Byte of the file at which the first bzip2 stream of the piece begins; None if none does."""
    try:
        with open(piece.path, "rb") as source:
            source.seek(piece.start)
            at, tail = piece.start, b""
            while block := source.read(_BLOCK):
                found = _STREAM.search(tail + block)
                if found:
                    begin = at - len(tail) + found.start()
                    return begin if piece.end is None or begin < piece.end else None
                at += len(block)
                tail = (tail + block)[1 - _STREAM_HEADER :]
                if piece.end is not None and at - len(tail) >= piece.end:
                    return None
    except OSError as error:
        raise UserError(f"{piece.path}: cannot open: {error.strerror or error}") from error
    return None
