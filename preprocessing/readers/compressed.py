"""Any file as bytes of text, compressed or not, up to the place where it breaks.

How a file is compressed its first bytes say, whatever its name is. All decompressors run in one loop (`unpack`): the
standard library's own streams lose what they had made in the call that fails, and take the rest behind a damaged
header for padding.
"""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import zstandard

from pipeline.errors import UserError

_FAILURES = (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
"""What decompressors and files raise on damaged or truncated data."""
_BUFFER = 1 << 20
_PACKED_BLOCK = 1 << 16
"""Of compressed bytes, which become four times as many and more."""
_MAGIC_BYTES = 10
"""Enough of a file to tell every compression."""


class DamagedError(Exception):
    """A file cannot be read on.

    Args:
        position: how much of the text comes out, counted in `unit`.
    """

    def __init__(self, reason: str, position: int, unit: str = "byte") -> None:
        super().__init__(reason)
        self.position = position
        self.unit = unit


class Decompressor(Protocol):
    """One stream of a compressed file, as the libraries read it."""

    @property
    def eof(self) -> bool:
        """Whether the stream is at its end."""

    @property
    def unused_data(self) -> bytes:
        """What was given of the bytes behind it."""

    def decompress(self, data: bytes, /) -> bytes:
        """Text of the next bytes."""


@dataclass(frozen=True)
class Compression:
    """A way to compress: its name, the suffix of its files, how its streams begin, and what reads one."""

    name: str
    suffix: str
    magic: re.Pattern[bytes]
    start: Callable[[], Decompressor]


BZIP2 = Compression("bzip2", ".bz2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)"), bz2.BZ2Decompressor)
_COMPRESSIONS = (
    Compression("gzip", ".gz", re.compile(rb"\x1f\x8b\x08"), lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)),
    BZIP2,
    Compression("xz", ".xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMADecompressor),
    Compression(
        "zstd",
        ".zst",
        # A frame, or one to be skipped, with which the files of parallel compressors begin.
        re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
        lambda: cast(Decompressor, zstandard.ZstdDecompressor().decompressobj()),
    ),
)


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn an error of the file system inside the block into a sentence about `path`, which the user named."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from error


def compression_of(path: Path) -> Compression | None:
    """How a file is compressed; by its name where its first bytes are those of no stream, for they may be damaged."""
    head = b""
    with suppress(OSError), open(path, "rb", buffering=0) as stream:  # whoever reads on meets the error again
        head = stream.read(_MAGIC_BYTES)
    by_content = (known for known in _COMPRESSIONS if known.magic.match(head))
    by_name = (known for known in _COMPRESSIONS if known.suffix == path.suffix.lower())
    return next(by_content, None) or next(by_name, None)


def open_text(path: Path) -> io.BufferedReader:
    """Open the bytes of a text, decompressed. Reading on may raise `DamagedError`, behind all that is sound."""
    compression = compression_of(path)
    with opening(path):
        raw = _PlainFile(path) if compression is None else _UnpackedFile(path, compression)
    # The readline of BufferedReader is several times faster than one in Python.
    return io.BufferedReader(raw, _BUFFER)


def unpack(source: BinaryIO, compression: Compression) -> Iterator[tuple[int, bytes]]:
    """Yield (byte of the file at which its stream begins, text) from where `source` stands to its end.

    Each stream begins with an empty text. DamagedError, behind the last byte that comes out, where the file breaks.
    """
    position = 0
    try:
        for begin, text in _unpack(source, compression):
            position += len(text)
            yield begin, text
    except _FAILURES as error:
        raise DamagedError(str(error), position) from error


def _unpack(source: BinaryIO, compression: Compression) -> Iterator[tuple[int, bytes]]:
    stream, begin, streams = compression.start(), source.tell(), 0
    inside = False
    while block := source.read(_PACKED_BLOCK):
        while block := block if inside or not streams else block.lstrip(b"\0"):  # gzip and xz may be padded at the end
            if not inside:
                stream, begin, inside = compression.start(), source.tell() - len(block), True
                yield begin, b""
            try:
                text = stream.decompress(block)
            except _FAILURES:
                at = source.tell() - len(block)
                yield from ((begin, text) for text in _before_damage(source, compression, begin, at))
                raise
            yield begin, text
            block = stream.unused_data
            if stream.eof:
                inside, streams = False, streams + 1
    if inside or not streams:
        raise EOFError(f"the file ends inside a {compression.name} stream")


def _before_damage(source: BinaryIO, compression: Compression, begin: int, at: int) -> Iterator[bytes]:
    """Text of the stream at `begin` from byte `at` of the file on: byte by byte, until it does not decompress.

    A decompressor that fails gives nothing of what the same call has made, and none can go back: a new one is led up
    to the place.
    """
    stream = compression.start()
    source.seek(begin)
    while left := at - source.tell():
        stream.decompress(source.read(min(left, _PACKED_BLOCK)))
    with suppress(*_FAILURES):
        while byte := source.read(1):
            yield stream.decompress(byte)


class _PlainFile(io.FileIO):
    """A file that is not compressed, with the error that all share."""

    def readinto(self, buffer: object) -> int:
        try:
            return super().readinto(cast(memoryview, buffer))
        except OSError as error:
            raise DamagedError(error.strerror or str(error), self.tell()) from error


class _UnpackedFile(io.RawIOBase):
    """The streams of a compressed file as one."""

    def __init__(self, path: Path, compression: Compression) -> None:
        self._source = open(path, "rb")  # noqa: SIM115
        self._texts = unpack(self._source, compression)
        self._pending = memoryview(b"")
        self._damage: DamagedError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target, filled = cast(memoryview, buffer), 0
        while filled < len(target) and self._unpack_more():
            count = min(len(target) - filled, len(self._pending))
            target[filled : filled + count] = self._pending[:count]
            self._pending = self._pending[count:]
            filled += count
        if self._damage and not filled:
            raise self._damage
        return filled

    def _unpack_more(self) -> bool:
        """Whether there is text to give; at the damage there is none, and it is kept until all before it is given."""
        try:
            while not self._pending:
                self._pending = memoryview(next(self._texts)[1])
        except StopIteration:
            return False
        except DamagedError as error:
            self._damage = error
            return False
        return True

    def close(self) -> None:
        self._source.close()
        super().close()
