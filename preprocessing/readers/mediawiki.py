"""The reader of MediaWiki's XML dumps (pages-articles): a page at a time, in memory that does not grow.

A dump is cut at its `<page>` tags, which cannot occur in escaped text, and each page is parsed on its own: a fault
costs one page. So any byte of a plain dump can begin a range. In a .bz2 the streams are looked for instead: a
multistream dump has one for every hundred pages, and a stream's header, ten bytes, does not occur by chance.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mwparserfromhell.parser import use_c

from pipeline.errors import UserError
from preprocessing.readers.compressed import BZIP2, DamagedError, compression_of, open_text, opening, unpack
from preprocessing.readers.documents import Document, Piece, Tally, mark_length
from preprocessing.readers.wikitext import LINK_NAMESPACES, WikitextError, plain_text

_BLOCK = 1 << 20
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
    head = _head(piece, tally)
    if head is None:
        return
    names = _NAMESPACE.findall(head.decode(errors="replace"))
    link_namespaces = LINK_NAMESPACES.union(name.lower() for name in names)
    blocks = _Blocks(piece)
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


def _head(piece: Piece, tally: Tally) -> bytes | None:
    """The first bytes of the dump, which name its namespaces; None if it is in another encoding than UTF-8."""
    head, whole = b"", True
    with open_text(Path(piece.path)) as stream:
        try:
            while len(head) < _HEAD and (block := stream.read1(_HEAD)):
                head += block
        except DamagedError:
            whole = False  # reading the pages will say so
    if mark_length(head, piece, tally) is None:
        return None
    if whole and piece.start == 0 and b"<mediawiki" not in head:
        tally.malformed(piece.path, 0, "<mediawiki ...>", head)
    return head


def _pages(blocks: "_Blocks", tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, `<page>...</page>`) of the pages that begin in the piece."""

    def malformed(at: int, expected: str) -> None:
        tally.malformed(blocks.path, base + at, expected, buffer[at : at + _OPENING], blocks.unit)

    def beyond(at: int) -> bool:
        return blocks.end is not None and base + at >= blocks.end

    buffer, base = b"", blocks.start  # `base` is the offset of the buffer's first byte
    seen = False
    for block in blocks:
        buffer, at = buffer + block, 0
        while True:
            begin = buffer.find(_OPEN, at)
            if beyond(begin if begin >= 0 else _next_tag(buffer)):
                return
            end = buffer.find(_CLOSE, begin) if begin >= 0 else -1
            if end < 0:
                break
            # A page that lost its end runs into the next one.
            while (inner := buffer.find(_OPEN, begin + 1, end)) >= 0:
                malformed(begin, "</page> before the next <page>")
                if beyond(inner):
                    return
                begin = inner
            at = end + len(_CLOSE)
            seen = True
            yield base + begin, buffer[begin:at]
        if begin >= 0 and len(buffer) - begin > _LARGEST_PAGE:
            malformed(begin, f"</page> within {_LARGEST_PAGE} bytes")
            begin = -1
        keep = begin if begin >= 0 else max(at, len(buffer) - _OPENING)
        buffer, base = buffer[keep:], base + keep
    if buffer.startswith(_OPEN):
        for opening_tag in re.finditer(_OPEN, buffer):
            if not beyond(opening_tag.start()):
                malformed(opening_tag.start(), "</page>, the file ended first")
    elif seen and b"</mediawiki>" not in buffer:  # a piece without a page may begin within the tag
        malformed(len(buffer), "</mediawiki>, the file ended first")


def _next_tag(buffer: bytes) -> int:
    """Where, in or behind a buffer without `<page>`, the next one begins at the earliest."""
    cut = next((size for size in range(len(_OPEN) - 1, 0, -1) if buffer.endswith(_OPEN[:size])), 0)
    return len(buffer) - cut


class _Blocks:
    """Blocks of a dump's text from a piece's start on, to the end of the file.

    `end` is the offset from which on pages belong to the next piece, None until that is known. Offsets are those of
    the text; in a later piece of a .bz2, whose place in the text nobody knows, they count from its first stream.
    """

    def __init__(self, piece: Piece) -> None:
        self.path = piece.path
        self.unit = "byte"
        self._piece = piece
        self._in_streams = (piece.start, piece.end) != (0, None) and compression_of(Path(piece.path)) is BZIP2
        self.start = 0 if self._in_streams else piece.start
        self.end = None if self._in_streams else piece.end

    def __iter__(self) -> Iterator[bytes]:
        return self._from_streams() if self._in_streams else self._from_text()

    def _from_text(self) -> Iterator[bytes]:
        with open_text(Path(self._piece.path)) as stream:
            if self.start:
                stream.seek(self.start)
            while block := stream.read1(_BLOCK):
                yield block

    def _from_streams(self) -> Iterator[bytes]:
        piece = self._piece
        first = _next_stream(piece)
        if first is None:
            return
        self.unit = f"bzip2 stream at {first}, byte"
        position = 0
        with opening(Path(piece.path)):
            source = open(piece.path, "rb")  # noqa: SIM115
        with source:
            source.seek(first)
            try:
                for begin, text in unpack(source, BZIP2):
                    if self.end is None and piece.end is not None and begin >= piece.end:
                        self.end = position
                    position += len(text)
                    yield text
            except DamagedError as error:
                error.unit = self.unit
                raise


def _next_stream(piece: Piece) -> int | None:
    """Byte of the file at which the first bzip2 stream of the piece begins; None if none does."""
    with opening(Path(piece.path)), open(piece.path, "rb") as source:
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
    return None
