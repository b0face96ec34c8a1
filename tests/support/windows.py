"""Windows to read and mask: real ones of made-up documents, and a source that is a function."""

from types import SimpleNamespace

import numpy as np

from pipeline.data.manifest import Manifest
from pipeline.data.masking import Vocabulary
from pipeline.data.windows import WindowSource
from tests.support.shards import write_shard

CLS, SEP, MASK, SIZE = 1, 2, 3, 1000
VOCABULARY = Vocabulary(SIZE, CLS, SEP, MASK, continues_word=np.arange(SIZE) % 3 == 0)


def documents(seed: int, count: int = 40, longest: int = 60) -> list[list[int]]:
    """Documents of random ids, empty ones among them."""
    draw = np.random.default_rng(seed)
    return [draw.integers(4, SIZE, int(draw.integers(0, longest))).tolist() for _ in range(count)]


def open_source(directory, shards: dict[str, list[list[int]]], seq_len: int, vocabulary=VOCABULARY) -> WindowSource:
    """Write shards (name -> documents) and open them; only the names in the manifest matter here."""
    directory.mkdir(exist_ok=True)
    written = tuple(write_shard(directory / name, docs) for name, docs in shards.items())
    return WindowSource(directory, Manifest("", "", SIZE, {}, written), vocabulary, seq_len)


def expected_windows(shards: list[list[list[int]]], seq_len: int) -> np.ndarray:
    stream = [token for docs in shards for doc in docs for token in [*doc, SEP]]
    width = seq_len - 2
    return np.array([[CLS, *stream[i : i + width], SEP] for i in range(0, len(stream) - width + 1, width)])


def fake_source(windows: int, seq_len: int = 12) -> WindowSource:
    """A source whose window w holds token w everywhere, so that a batch tells which windows it was made of."""

    def read(wanted: np.ndarray) -> np.ndarray:
        rows = np.repeat(np.asarray(wanted, np.int64)[:, None] + 10, seq_len, axis=1)
        rows[:, 0], rows[:, -1] = CLS, SEP
        return rows

    vocabulary = Vocabulary(10**6, CLS, SEP, MASK, np.zeros(10**6, bool))
    return SimpleNamespace(windows=windows, content=seq_len - 2, vocabulary=vocabulary, read=read, directory="fake")


def windows_of(batch) -> list[int]:
    """The window of each row of a fake source's batch; labels are the original tokens."""
    return (batch.labels[:, 0] - 10).tolist()
