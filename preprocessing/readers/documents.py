"""What a reader takes (`Piece`), what it gives (`Document`), and what it leaves out (`Tally`)."""

import codecs
import io
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from preprocessing.readers.compressed import DamagedError, open_text

_SHOWN_FAULTS = 100
"""A file in the wrong encoding has a fault on every line; the count tells the rest."""
_BLOCK = 1 << 20
_OTHER_MARKS = {
    # The marks of UTF-32 begin, in one of its two forms, with that of UTF-16.
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte-order marks of encodings that are not read."""


@dataclass(frozen=True)
class Piece:
    """The part [start, end) of the input at `path`; end None means to its end.

    The unit is a byte of the text of a file; of the file itself for a .bz2 in a format that can cut those; a shard
    for what is no file.
    """

    format: str
    path: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Document:
    """Text without surrounding white space, perhaps none, and where it begins: at `offset` of `path`."""

    text: str
    path: str
    offset: int


class Tally:
    """Counts of one task. A fault raises DataError, unless faults are to be skipped: then it is counted as well."""

    def __init__(self, skip_faults: bool = False) -> None:
        self.left_out = Counter[str]()
        self._skip_faults = skip_faults
        self._faults = 0
        self._lines = _Lines()

    def close(self) -> None:
        """Let go of the file that was read last, which is read again for the line numbers of its faults."""
        self._lines.close()

    def drop(self, reason: str) -> None:
        """Count a sound document that is not wanted."""
        self.left_out[reason] += 1

    def fault(self, reason: str, path: str, offset: int, expected: str, unit: str = "byte") -> None:
        """Report that `path` is not as expected at `offset`, counted in `unit`; the caller goes on behind it."""
        self.left_out[reason] += 1
        self._faults += 1
        if self._skip_faults and self._faults > _SHOWN_FAULTS:
            return
        where = f"{unit} {offset}"
        if unit == "byte" and reason != "damaged":
            where = f"line {self._lines.line_of(path, offset)} (byte {offset})"
        if not self._skip_faults:
            raise DataError(f"{path}, {where}: {expected}")
        print(f"skipped: {path}, {where}: {expected}", file=sys.stderr, flush=True)
        if self._faults == _SHOWN_FAULTS:
            print("skipped: further faults of this task are counted only", file=sys.stderr, flush=True)

    def damaged(self, path: str, error: DamagedError) -> None:
        """A fault: `path` cannot be read on, and the rest of it is lost."""
        self.fault("damaged", path, error.position, f"expected whole, undamaged data: {error}", error.unit)

    def decode(self, raw: bytes, path: str, offset: int, unit: str = "byte") -> str | None:
        """Text of the UTF-8 bytes that begin at `offset`; None, and a fault, if they are none."""
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            found = f"expected UTF-8, found byte 0x{raw[error.start]:02x}"
            self.fault("undecodable", path, offset + error.start, found, unit)
            return None

    def malformed(self, path: str, offset: int, expected: str, found: bytes, unit: str = "byte") -> None:
        """A fault: a record that begins or goes wrong at byte `offset`."""
        shown = found[:40].decode(errors="replace").strip()
        self.fault("malformed", path, offset, f"expected {expected}, found {shown!r}", unit)


def mark_length(head: bytes, piece: Piece, tally: Tally) -> int | None:
    """Bytes of the byte-order mark with which a file begins, perhaps 0.

    None if the file is in another encoding, a fault that its first piece alone reports: the others read nothing.
    """
    other = next((name for mark, name in _OTHER_MARKS.items() if head.startswith(mark)), None)
    if other is None:
        return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    if piece.start == 0:
        hint = f"convert it, for example with iconv -f {other} -t UTF-8"
        tally.fault(
            "undecodable", piece.path, 0, f"expected UTF-8, found the byte-order mark of a {other} file; {hint}"
        )
    return None


class _Lines:
    """Line numbers of a file, which is read again for them as far as the last fault: counting always would cost."""

    def __init__(self) -> None:
        self._path = ""
        self._stream: io.BufferedReader | None = None
        self._offset, self._line = 0, 1

    def line_of(self, path: str, offset: int) -> int:
        """Line, from 1, of a byte of the text; faults that come in their order cost one reading."""
        if self._stream is None or path != self._path or offset < self._offset:
            self.close()
            self._path, self._stream = path, open_text(Path(path))
            self._offset, self._line = 0, 1
        while self._offset < offset and (block := self._stream.read1(min(offset - self._offset, _BLOCK))):
            self._offset += len(block)
            self._line += block.count(b"\n")
        return self._line

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
