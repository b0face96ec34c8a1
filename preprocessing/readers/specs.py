"""From `FORMAT:PATH` to files, and the documents in them."""

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.errors import UserError
from preprocessing.readers.compressed import Compression, compression_of
from preprocessing.readers.documents import Document, Piece
from preprocessing.readers.formats import FORMATS, read_piece

_TEXT_PER_BYTE = 4
"""Text compresses to a quarter (gzip, zstd) or less (xz); only the grouping of small files depends on it."""

SPEC_HELP = (
    f"FORMAT:PATH, PATH may be a glob; formats: {', '.join(FORMATS)}; text is a document per file, "
    "and a data set of the hub is hub:NAME?config=C&split=S&field=F&revision=R"
)


@dataclass(frozen=True)
class Source:
    """One input and the format to read it in; for `hub:` the path is what stands behind the colon."""

    format: str
    path: Path

    @cached_property
    def compression(self) -> Compression | None:
        """How the file is compressed."""
        return compression_of(self.path)

    @property
    def text_bytes(self) -> int:
        """Bytes of text: exact for a plain text file, an estimate for others."""
        size = self.path.stat().st_size * (_TEXT_PER_BYTE if self.compression else 1)
        return int(size * FORMATS[self.format].text_share)


def expand_specs(specs: Iterable[str]) -> list[Source]:
    """Files of the SPECs, in the order given, those of a glob sorted. UserError names what is wrong with a SPEC."""
    return [source for spec in specs for source in _expand(spec)]


def read_documents(specs: Iterable[str]) -> Iterator[Document]:
    """Every document of the SPECs in order."""
    for source in expand_specs(specs):
        yield from read_piece(Piece(source.format, str(source.path)))


def sample_texts(texts: Iterable[str], limit: int) -> list[str]:
    """Return every n-th text, in order, with n the smallest power of two that keeps their UTF-8 within `limit` bytes.

    Reads all of `texts` and never holds more than `limit` bytes and one text. A text longer than `limit` is cut.
    """
    kept, step, size = list[tuple[str, int]](), 1, 0
    for index, text in enumerate(texts):
        if index % step:
            continue
        raw = text.encode()
        if len(raw) > limit:
            raw = raw[:limit]
            text = raw.decode(errors="ignore")
        kept.append((text, len(raw)))
        size += len(raw)
        while size > limit:
            kept, step = kept[::2], 2 * step
            size = sum(length for _, length in kept)
    return [text for text, _ in kept]


def _expand(spec: str) -> list[Source]:
    name, colon, pattern = spec.partition(":")
    if not colon or name not in FORMATS:
        known = ", ".join(f"{known}:PATH" for known in FORMATS)
        raise UserError(f"input {spec!r} is not FORMAT:PATH with a known format; known are {known}")
    if FORMATS[name].count_shards is not None:
        return [Source(name, Path(pattern))]
    if Path(pattern).is_file():
        return [Source(name, Path(pattern))]
    if Path(pattern).is_dir():
        raise UserError(f"input {spec!r} is a directory; name its files, for example {name}:{pattern.rstrip('/')}/*")
    files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
    if not files:
        raise UserError(f"input {spec!r}: no such file")
    return [Source(name, path) for path in files]
