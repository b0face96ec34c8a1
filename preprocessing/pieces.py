"""What readers take and give."""

from dataclasses import dataclass


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
