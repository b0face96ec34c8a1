"""Shards seen as one stream: every document of every shard, each followed by one [SEP].

Documents, tokens and positions are counted through all shards. Everything is asked for in ascending order: then a
shard answers one slice of the question, and numpy does so at once. There is no loop over windows or documents; the one
loop is over the shards that are touched, and does nothing but look up.
"""

import numpy as np

from pipeline.data.indexed import IndexedReader
from pipeline.errors import DataError

_STRIDE = 64
"""Documents to one entry of the table that is kept in memory, which takes an eighth of a byte for each document."""


class Stream:
    """The stream of some shards, whose ids are of one type. The first reading walks once over all indices.

    Attributes:
        length: positions in the stream.
    """

    def __init__(self, readers: list[IndexedReader]) -> None:
        self._readers = readers
        self._tokens = _Counted([reader.token_count for reader in readers])
        self._documents = _Counted([len(reader) for reader in readers])
        self._begins: list[np.ndarray] = []
        self._landmarks = np.empty(0, dtype=np.int64)
        self.length = self._tokens.total + self._documents.total

    def __reduce__(self) -> tuple[type["Stream"], tuple[list[IndexedReader]]]:
        # A reader process makes its own table: what is mapped here would be copied there.
        return Stream, (self._readers,)

    def read(self, begins: np.ndarray, width: int, sep_id: int, vocabulary_size: int) -> np.ndarray:
        """The stream from each position of `begins` (n,) on: token ids (n, width) int64.

        Args:
            begins: ascending, at least `width` apart, and each row inside the stream.
            width: positions in each row.
            sep_id: what stands after a document.
            vocabulary_size: below which every stored id must be.

        Raises:
            DataError: an id is outside the vocabulary, or an index is damaged; the sentence names file and byte.
        """
        known, separators = self._separators_around(begins, begins + width - 1)
        first, last = np.searchsorted(separators, (begins, begins + width - 1))
        # Rows are cut into pieces, one for each document that is met: (pieces,) from here on. Each goes up to its
        # separator, or to the end of the row where that comes before.
        row, piece = _ranges(first, last)
        document, place = known[piece], separators[piece] - begins[row]
        ends = row * width + np.minimum(place + 1, width)
        # A token's number is its position less the separators before it, of which there is one for each document. A
        # separator gets the number of the token behind it, if there is one, and is put in its place below.
        numbers = np.repeat(begins[row] - row * width - document, np.diff(ends, prepend=0))
        numbers += np.arange(len(numbers))
        tokens = self._tokens.look_up([reader.tokens for reader in self._readers], numbers)
        tokens[ends[place < width] - 1] = sep_id
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary_size:
            wrong = int(np.argmax((tokens < 0) | (tokens >= vocabulary_size)))
            shard, _ = self._tokens.locate(numbers[wrong : wrong + 1])
            raise _unknown_id(self._readers[int(shard[0])], vocabulary_size)
        return tokens.reshape(-1, width)

    def _separators_around(self, begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All documents from the one that covers position `begins[i]` to the one that covers `ends[i]`, and some more.

        Returns:
            Documents (m,), ascending, and the stream positions (m,) of their separators, which belong to them.
        """
        if not len(self._landmarks):
            self._make_landmarks()
        first, last = np.searchsorted(self._landmarks, (begins, ends)) - 1
        strides = np.unique(_ranges(first, last)[1])
        documents = np.minimum(strides[:, None] * _STRIDE + np.arange(_STRIDE), self._documents.total - 1)
        separators = self._separators(documents.ravel()).reshape(documents.shape)
        self._require_order(documents, np.concatenate([self._landmarks[strides, None], separators], axis=1))
        return documents.ravel(), separators.ravel()

    def _make_landmarks(self) -> None:
        """Note the position of every `_STRIDE`-th separator, behind one before the stream."""
        self._begins = [reader.document_begins() for reader in self._readers]
        documents = np.arange(_STRIDE - 1, self._documents.total, _STRIDE)
        landmarks = np.concatenate([[-1], self._separators(documents)])
        self._require_order(documents, landmarks)
        self._landmarks = landmarks

    def _separators(self, documents: np.ndarray) -> np.ndarray:
        """Stream positions (n,) of the separators of ascending documents (n,)."""
        shard, _ = self._documents.locate(documents)
        last = documents + 1 == self._documents.ends[shard]
        # A document ends where the next begins.
        ends = self._documents.look_up(self._begins, documents + ~last) // self._readers[0].tokens.itemsize
        return np.where(last, self._tokens.ends[shard], ends + self._tokens.starts[shard]) + documents

    def _require_order(self, documents: np.ndarray, separators: np.ndarray) -> None:
        """Raise a DataError unless separators ascend along the last axis: all that is computed relies on it.

        Args:
            documents: (..., n) of which the last in the stream may stand repeatedly.
            separators: (..., n + 1), theirs behind one that is known to stand before.
        """
        good = (np.diff(separators) > 0) & (separators[..., 1:] < self.length)
        good[..., 1:] |= np.diff(documents) == 0
        if not good.all():
            shard, own = self._documents.locate(documents[~good][:1])
            reader = self._readers[int(shard[0])]
            raise DataError(
                f"{reader.idx_path}: byte {reader.byte_of_end(int(own[0]))}: expected documents in the order of their "
                f"tokens, found document {int(own[0])} to end out of it; build the shards again"
            )


class _Counted:
    """What is counted through all shards: where each shard starts and ends. `sizes` says how much is in each."""

    def __init__(self, sizes: list[int]) -> None:
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self.starts = self.ends - np.array(sizes, dtype=np.int64)
        self.total = int(self.ends[-1]) if sizes else 0

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ascending numbers (n,) -> the shard of each, and its number within that."""
        shard = np.repeat(np.arange(len(self.ends)), np.diff(np.searchsorted(numbers, self.ends), prepend=0))
        return shard, numbers - self.starts[shard]

    def look_up(self, arrays: list[np.ndarray], numbers: np.ndarray) -> np.ndarray:
        """The elements (n,) int64 of the shards' arrays at ascending numbers (n,); 0 beyond the last."""
        found = np.zeros(len(numbers), dtype=np.int64)
        edges = [0, *np.searchsorted(numbers, self.ends).tolist()]
        for array, start, begin, end in zip(arrays, self.starts.tolist(), edges[:-1], edges[1:], strict=True):
            if begin < end:
                found[begin:end] = array[numbers[begin:end] - start]
        return found


def _ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers `first[i]` to `last[i]` of every i, one range behind the other, and before them the i of each."""
    counts = last - first + 1
    row = np.repeat(np.arange(len(first)), counts)
    return row, np.arange(len(row)) + (first - np.cumsum(counts) + counts)[row]


def _unknown_id(reader: IndexedReader, vocabulary_size: int) -> DataError:
    """What is wrong with a shard: its first unknown id, whichever of them was met."""
    bad = int(np.argmax((reader.tokens < 0) | (reader.tokens >= vocabulary_size)))
    return DataError(
        f"{reader.bin_path}: byte {bad * reader.tokens.itemsize}: expected a token id below the vocabulary size "
        f"{vocabulary_size}, found {int(reader.tokens[bad])}; build the shards again"
    )
