"""What becomes of a document before it is tokenized: lines are joined, and the empty and the short left out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from preprocessing.build.reflow import reflow
from preprocessing.readers.documents import Piece, Tally
from preprocessing.readers.formats import read_piece


@dataclass(frozen=True)
class Cleaning:
    """The rules.

    `reflow` is a mode of reflow.py, `min_length` the characters a document needs, and `skip_faults` whether the run
    goes on after undecodable bytes and malformed records.
    """

    reflow: str = "auto"
    min_length: int = 1
    skip_faults: bool = False

    @property
    def settings(self) -> str:
        """What of this decides the output; without `skip_faults` a run gives the same documents or none."""
        return f"reflow={self.reflow} min_length={self.min_length}"


def clean_texts(pieces: Iterable[Piece], cleaning: Cleaning, tally: Tally) -> Iterator[str]:
    """Texts of the pieces that pass every filter but that of duplicates; the others are counted in `tally`."""
    for piece in pieces:
        for document in read_piece(piece, tally):
            text = reflow(document.text, cleaning.reflow)
            if not text:
                tally.drop("empty")
            elif len(text) < cleaning.min_length:
                tally.drop("short")
            else:
                yield text
