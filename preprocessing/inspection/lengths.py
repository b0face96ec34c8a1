"""Counts over shards of any size in memory of fixed size."""

from dataclasses import dataclass, field

import numpy as np

from pipeline.data.indexed import IndexedReader

_BLOCK = 1 << 22
"""Ids or documents looked at in one go."""

EDGES = np.unique(np.round(2.0 ** (np.arange(0, 8 * 40 + 1) / 8)).astype(np.int64))
"""Lengths where the histogram's bins begin: eight to a doubling, single lengths up to 12, then ever wider.

Empty documents are in no bin; the build writes none.
"""


@dataclass(frozen=True)
class Counts:
    """`least` and `most` tokens in a document, tokens that are [UNK], and documents by length.

    `histogram` (len(EDGES) - 1,) int64: documents of EDGES[i] to EDGES[i + 1] - 1 tokens.
    """

    least: int = 1 << 62
    most: int = 0
    unknown: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            min(self.least, other.least),
            max(self.most, other.most),
            self.unknown + other.unknown,
            self.histogram + other.histogram,
        )


def count_shard(reader: IndexedReader, unknown_id: int) -> Counts:
    """Counts of one shard; reads every id once."""
    counts = Counts()
    for start in range(0, len(reader), _BLOCK):
        lengths = document_lengths(reader, start, min(start + _BLOCK, len(reader)))
        counts += Counts(int(lengths.min()), int(lengths.max()), 0, np.histogram(lengths, EDGES)[0])
    blocks = range(0, reader.token_count, _BLOCK)
    unknown = sum(int(np.count_nonzero(reader.tokens[start : start + _BLOCK] == unknown_id)) for start in blocks)
    return counts + Counts(unknown=unknown)


def document_lengths(reader: IndexedReader, start: int, end: int) -> np.ndarray:
    """Tokens (end - start,) int64 in each of the documents `start` to `end` - 1."""
    ends = reader.document_ends[start : end + 1]
    bounds = np.full(len(ends), reader.tokens.nbytes)
    inside = ends < len(reader.offsets)
    bounds[inside] = reader.offsets[ends[inside]]
    return np.diff(bounds) // reader.tokens.itemsize


def quantile(histogram: np.ndarray, share: float) -> float:
    """Length that `share` of the documents do not exceed, to the width of a bin (9 %)."""
    below = np.concatenate([[0], np.cumsum(histogram)])
    return float(np.interp(share * below[-1], below, EDGES))
