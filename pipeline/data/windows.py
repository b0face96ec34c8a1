"""Shards seen as one stream of windows: [CLS] ... [SEP], documents joined by [SEP], no padding.

The stream is every document of every shard followed by one [SEP]. Window w covers the stream positions
[w (tokens - 2), (w + 1)(tokens - 2)); what is left at the end is not used. Nothing is computed ahead: a document
is found by binary search in the memory-mapped index, so a corpus of any size opens at once.
"""

from pathlib import Path

import numpy as np

from pipeline.data.indexed import IndexedReader
from pipeline.data.manifest import Manifest
from pipeline.data.masking import Vocabulary
from pipeline.errors import DataError


class WindowSource:
    """All windows of one shard directory.

    Args:
        directory: holds the shards that `manifest` names.
        window_tokens: length of a window with [CLS] and [SEP].

    Raises:
        DataError: a shard cannot be read, or there is not one whole window.
    """

    def __init__(self, directory: Path, manifest: Manifest, vocabulary: Vocabulary, window_tokens: int) -> None:
        self.directory = directory
        self.tokens_hash = manifest.tokens_hash
        self.vocabulary = vocabulary
        self.content = window_tokens - 2
        self.readers = [IndexedReader(directory / shard.name) for shard in manifest.shards]
        sizes = [reader.token_count + len(reader) for reader in self.readers]
        self._shard_ends = np.cumsum(sizes, dtype=np.int64)
        self.windows = int(self._shard_ends[-1]) // self.content if sizes else 0
        if not self.windows:
            raise DataError(f"{directory}: the text is shorter than one window of {window_tokens} tokens")

    def read(self, windows: np.ndarray) -> np.ndarray:
        """Window ids (n,) -> token ids (n, window_tokens) int64.

        Raises:
            DataError: a token id is outside the vocabulary; the sentence names shard and offset.
        """
        out = np.empty((len(windows), self.content + 2), dtype=np.int64)
        out[:, 0], out[:, -1] = self.vocabulary.cls_id, self.vocabulary.sep_id
        for row, window in zip(out, windows, strict=True):
            self._fill(row[1:-1], int(window) * self.content)
        return out

    def _fill(self, row: np.ndarray, position: int) -> None:
        """Copy the stream from `position` on into `row`."""
        filled = 0
        shard = int(np.searchsorted(self._shard_ends, position, side="right"))
        while filled < len(row):
            start = int(self._shard_ends[shard - 1]) if shard else 0
            filled += self._fill_from_shard(row[filled:], self.readers[shard], position + filled - start)
            shard += 1

    def _fill_from_shard(self, row: np.ndarray, reader: IndexedReader, position: int) -> int:
        document = _document_at(reader, position)
        filled = 0
        while filled < len(row) and document < len(reader):
            ids = reader[document][position + filled - _stream_start(reader, document) :]
            taken = min(len(ids), len(row) - filled)
            row[filled : filled + taken] = ids[:taken]
            self._check(reader, row[filled : filled + taken])
            filled += taken
            if filled < len(row):
                row[filled] = self.vocabulary.sep_id
                filled += 1
            document += 1
        return filled

    def _check(self, reader: IndexedReader, ids: np.ndarray) -> None:
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocabulary.size:
            bad = int(np.flatnonzero((reader.tokens < 0) | (reader.tokens >= self.vocabulary.size))[0])
            where = f"{reader.bin_path}: byte {bad * reader.tokens.itemsize}"
            raise DataError(
                f"{where}: expected a token id below the vocabulary size {self.vocabulary.size}, found "
                f"{int(reader.tokens[bad])}; build the shards again"
            )


def _stream_start(reader: IndexedReader, document: int) -> int:
    """Stream position of the first token of `document` within its shard: one [SEP] per document before it."""
    return reader.first_token(document) + document


def _document_at(reader: IndexedReader, position: int) -> int:
    """The document that covers stream position `position` of the shard (its [SEP] belongs to it)."""
    low, high = 0, len(reader) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if _stream_start(reader, middle) <= position:
            low = middle
        else:
            high = middle - 1
    return low
