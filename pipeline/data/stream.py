"""Shards seen as one stream: every document of every shard, each followed by one [SEP].

Documents, tokens and positions are counted through all shards. Whatever is asked for comes in ascending order, so what
a shard has to give is one slice of the question, and numpy answers it at once. There is no loop over documents or
windows; the one loop is over the shards that are touched.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pipeline.data.indexed import IndexedReader
from pipeline.errors import DataError

_STRIDE = 64
"""Documents to one entry of the table that is kept in memory: an eighth of a byte for each document."""


class Stream:
    """The stream of some shards. Opening reads nothing; the first reading walks once over the indices.

    Attributes:
        length: positions in the stream.
    """

    def __init__(self, readers: list[IndexedReader]) -> None:
        self._readers = readers
        self._token_ends = np.cumsum([reader.token_count for reader in readers], dtype=np.int64)
        self._document_ends = np.cumsum([len(reader) for reader in readers], dtype=np.int64)
        self._tokens = int(self._token_ends[-1]) if readers else 0
        self._documents = int(self._document_ends[-1]) if readers else 0
        self._landmarks: np.ndarray | None = None
        self.length = self._tokens + self._documents

    def read(self, begins: np.ndarray, width: int, sep_id: int, vocabulary_size: int) -> np.ndarray:
        """The stream from each position of `begins` (n,) on: token ids (n, width) int64.

        Args:
            begins: strictly ascending, at least `width` apart, and all of each row inside the stream.
            width: positions in each row.
            sep_id: what stands after a document.
            vocabulary_size: below which every stored id must be.

        Raises:
            DataError: an id is outside the vocabulary, or an index is damaged; the sentence names file and byte.
        """
        edges = np.stack([begins, begins + width - 1], axis=1)
        first, last = self._documents_at(edges.ravel()).reshape(-1, 2).T
        ends = self._separator_places(begins, first, last, width)
        # A token's number is its position less the separators before it; a separator gets the number of the token
        # behind it, or of the last one.
        numbers = np.cumsum(ends, axis=1, dtype=np.int64)
        numbers -= ends
        np.subtract((begins - first)[:, None] + np.arange(width), numbers, out=numbers)
        np.minimum(numbers, self._tokens - 1, out=numbers)
        tokens = self._gather(numbers.ravel(), self._token_ends, lambda reader, own: reader.tokens[own])
        tokens[ends.ravel()] = sep_id
        if not 0 <= tokens.min() <= tokens.max() < vocabulary_size:
            wrong = np.argmax((tokens < 0) | (tokens >= vocabulary_size))
            raise self._unknown_id(int(numbers.flat[wrong]), vocabulary_size)
        return tokens.reshape(-1, width)

    def _separator_places(self, begins: np.ndarray, first: np.ndarray, last: np.ndarray, width: int) -> np.ndarray:
        """Where the rows hold a separator: (n, width) bool.

        Args:
            begins: (n,) stream position of each row.
            first: (n,) the document that covers the first position of each row.
            last: (n,) the one that covers the last.
            width: positions in each row.
        """
        counts = last - first + 1
        row = np.repeat(np.arange(len(begins)), counts)
        document = np.arange(len(row)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        place = self._separators(document) - begins[row]
        inside = place < width  # the last document may go on behind the row
        ends = np.zeros((len(begins), width), dtype=bool)
        ends[row[inside], place[inside]] = True
        return ends

    def _documents_at(self, positions: np.ndarray) -> np.ndarray:
        """The documents (n,) that cover the ascending stream positions (n,); a separator belongs to its document.

        The table finds the `_STRIDE` documents among which each is, and their separators are counted.
        """
        if self._landmarks is None:
            self._landmarks = self._make_landmarks()
        strides, row = np.unique(np.searchsorted(self._landmarks, positions) - 1, return_inverse=True)
        documents = np.minimum(strides[:, None] * _STRIDE + np.arange(_STRIDE), self._documents - 1)
        separators = self._separators(documents.ravel()).reshape(documents.shape)
        self._require_order(documents, np.concatenate([self._landmarks[strides, None], separators], axis=1))
        return strides[row] * _STRIDE + (separators[row] < positions[:, None]).sum(axis=1)

    def _make_landmarks(self) -> np.ndarray:
        """Position of every `_STRIDE`-th separator, behind one before the stream."""
        documents = np.arange(_STRIDE - 1, self._documents, _STRIDE)
        landmarks = np.concatenate([[-1], self._separators(documents)])
        self._require_order(documents, landmarks)
        return landmarks

    def _separators(self, documents: np.ndarray) -> np.ndarray:
        """Stream positions (n,) of the separators of ascending documents (n,)."""
        tokens = self._gather(
            documents, self._document_ends, lambda reader, own: reader.first_tokens(own + 1), self._token_ends
        )
        return tokens + documents

    def _gather(
        self,
        numbers: np.ndarray,
        ends: np.ndarray,
        read: Callable[[IndexedReader, np.ndarray], np.ndarray],
        add: np.ndarray | None = None,
    ) -> np.ndarray:
        """What `read` finds in the shards for ascending numbers (n,) of documents or tokens: (n,) int64.

        Args:
            numbers: counted through all shards.
            ends: (shards,) the first number that is no longer in each shard.
            read: takes a shard and numbers within it.
            add: (shards,) of which the entry of the shard before is added to what is read.
        """
        found = np.zeros(len(numbers), dtype=np.int64)
        for shard, part in _parts(numbers, ends):
            before = int(ends[shard - 1]) if shard else 0
            found[part] = read(self._readers[shard], numbers[part] - before)
            if add is not None and shard:
                found[part] += add[shard - 1]
        return found

    def _require_order(self, documents: np.ndarray, separators: np.ndarray) -> None:
        """Raise a DataError unless separators ascend along the last axis: all that is computed relies on it.

        Args:
            documents: (..., n) whose separators are the last n; the last document may stand there repeatedly.
            separators: (..., n + 1) with one known position before them.
        """
        good = np.diff(separators) > 0
        good[..., 1:] |= np.diff(documents) == 0
        if good.all() and (separators < self.length).all():
            return
        wrong = ~good | (separators[..., 1:] >= self.length)
        document = int(documents[np.unravel_index(np.argmax(wrong), wrong.shape)])
        shard = int(np.searchsorted(self._document_ends, document, side="right"))
        own = document - (int(self._document_ends[shard - 1]) if shard else 0)
        raise DataError(
            f"{self._readers[shard].idx_path}: byte {self._readers[shard].end_byte(own)}: expected documents in the "
            f"order of their tokens, found the end of document {own} out of it; build the shards again"
        )

    def _unknown_id(self, token: int, vocabulary_size: int) -> DataError:
        """What is wrong with the shard of a token: its first unknown id, whichever of them was met."""
        reader = self._readers[int(np.searchsorted(self._token_ends, token, side="right"))]
        bad = int(np.argmax((reader.tokens < 0) | (reader.tokens >= vocabulary_size)))
        return DataError(
            f"{reader.bin_path}: byte {bad * reader.tokens.itemsize}: expected a token id below the vocabulary size "
            f"{vocabulary_size}, found {int(reader.tokens[bad])}; build the shards again"
        )


def _parts(numbers: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Which shards ascending numbers are in, and which slice of them is in each."""
    bounds = np.searchsorted(numbers, ends)
    begins = np.concatenate([[0], bounds[:-1]])
    for shard in np.flatnonzero(bounds > begins).tolist():
        yield shard, slice(int(begins[shard]), int(bounds[shard]))
