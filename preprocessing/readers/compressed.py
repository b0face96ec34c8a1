"""One way to open any input, compressed or not."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from pipeline.errors import UserError

DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
"""What the decompressors raise on damaged or truncated data."""
_BUFFER = 1 << 20


def is_compressed(path: Path) -> bool:
    """Whether `open_text` decompresses this file; decided by its name."""
    return path.suffix in _OPENERS


def open_text(path: Path) -> BinaryIO:
    """Open the bytes of a text, decompressed. Errors met while reading on are those in `DAMAGED`."""
    try:
        if not is_compressed(path):
            return open(path, "rb", buffering=_BUFFER)
        # The decompressors' own readline is several times slower than that of BufferedReader.
        return io.BufferedReader(cast(io.RawIOBase, _OPENERS[path.suffix](path)), _BUFFER)
    except OSError as error:
        raise UserError(f"{path}: cannot open: {error.strerror or error}") from error


class _ZstdStream(io.RawIOBase):
    """Zstandard frames as one stream. The library's own reader takes a truncated file for a whole one."""

    def __init__(self, path: Path) -> None:
        self._source = open(path, "rb")  # noqa: SIM115
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._started = False
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = cast(memoryview, buffer)
        while not self._pending:
            block = self._frame.unused_data or self._source.read(_BUFFER)
            if not block:
                if self._started and not self._frame.eof:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._pending = self._frame.decompress(block)
            self._started = True
        count = min(len(target), len(self._pending))
        target[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        self._source.close()
        super().close()


_OPENERS: dict[str, Callable[[Path], object]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _ZstdStream,
}
