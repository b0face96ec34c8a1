"""Shards seen as one stream of windows: [CLS] ... [SEP], documents joined by [SEP], no padding.

The stream is every document of every shard followed by one [SEP]. Window w covers the stream positions
[w (tokens - 2), (w + 1)(tokens - 2)); what is left at the end is not used. The shards stay memory-mapped, and next to
nothing is kept of their indices, so a corpus of any size opens at once.
"""

from pathlib import Path

import numpy as np

from pipeline.data.indexed import IndexedReader
from pipeline.data.manifest import Manifest
from pipeline.data.masking import Vocabulary
from pipeline.data.stream import Stream
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
        self._stream = Stream([IndexedReader(directory / shard.name) for shard in manifest.shards])
        self.windows = self._stream.length // self.content
        if not self.windows:
            raise DataError(f"{directory}: the text is shorter than one window of {window_tokens} tokens")

    def read(self, windows: np.ndarray) -> np.ndarray:
        """Window ids (n,) -> token ids (n, window_tokens) int64.

        Raises:
            DataError: a token id is outside the vocabulary, or an index is damaged; the sentence names file and byte.
        """
        wanted, rows = np.unique(windows, return_inverse=True)
        vocabulary = self.vocabulary
        content = self._stream.read(wanted * self.content, self.content, vocabulary.sep_id, vocabulary.size)
        out = np.empty((len(windows), self.content + 2), dtype=np.int64)
        out[:, 0], out[:, -1] = vocabulary.cls_id, vocabulary.sep_id
        out[:, 1:-1] = content[rows]
        return out
