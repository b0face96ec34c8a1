"""What a reader takes (`Piece`), what it gives (`Document`), and what it leaves out (`Tally`)."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from preprocessing.readers.compressed import open_text

_SHOWN_FAULTS = 100
"""A file in the wrong encoding has a fault on every line; the count tells the rest."""


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

    def drop(self, reason: str) -> None:
        """Count a sound document that is not wanted."""
        self.left_out[reason] += 1

    def fault(self, reason: str, path: str, offset: int, expected: str, unit: str = "byte") -> None:
        """Report that `path` is not as expected at `offset`, counted in `unit`; the caller goes on behind it."""
        if not self._skip_faults:
            where = f"{unit} {offset}"
            if unit == "byte" and reason != "damaged":
                where = f"line {_line_number(path, offset)} (byte {offset})"
            raise DataError(f"{path}, {where}: {expected}")
        self.left_out[reason] += 1
        self._faults += 1
        if self._faults <= _SHOWN_FAULTS:
            print(f"skipped: {path}, {unit} {offset}: {expected}", file=sys.stderr, flush=True)
        if self._faults == _SHOWN_FAULTS:
            print("skipped: further faults of this task are counted only", file=sys.stderr, flush=True)

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


def _line_number(path: str, offset: int) -> int:
    """Line, from 1, of a byte of the text. Reads the file again: the run ends here, counting always would cost."""
    count, left = 1, offset
    with open_text(Path(path)) as stream:
        while left and (block := stream.read(min(left, 1 << 20))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count
