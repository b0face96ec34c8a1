"""Windows of fixed length, compared with a stream that is built in plain Python."""

import numpy as np
import pytest

from pipeline.data.indexed import HEADER, MAGIC, ShardInfo
from pipeline.data.manifest import Manifest
from pipeline.data.masking import Vocabulary
from pipeline.data.windows import WindowSource
from pipeline.errors import DataError
from tests.support.windows import CLS, MASK, SEP, SIZE, VOCABULARY, documents, expected_windows, open_source


@pytest.mark.parametrize("seq_len", [8, 9, 16, 64, 131])
def test_windows_are_those_of_the_joined_text(tmp_path, seq_len):
    shards = {
        "a": documents(1),
        "empty": [],
        "b": [[], [], *documents(2, longest=4), []],
        "c": [documents(3, 1, 9000)[0]],
    }
    shards["c"][0] = shards["c"][0] or [7] * 500
    source = open_source(tmp_path, shards, seq_len)
    expected = expected_windows(list(shards.values()), seq_len)
    assert source.windows == len(expected) > 5
    np.testing.assert_array_equal(source.read(np.arange(source.windows)), expected)
    order = np.random.default_rng(0).permutation(source.windows)
    np.testing.assert_array_equal(source.read(order), expected[order])


def test_every_single_window_of_awkward_documents(tmp_path):
    """Documents that end just before, on and after every window edge."""
    for length in range(12):
        shards = {"a": [[10 + i] * length for i in range(9)], "b": [[50 + i] * (length + 1) for i in range(9)]}
        source = open_source(tmp_path / str(length), shards, seq_len=8)
        expected = expected_windows(list(shards.values()), 8)
        for window in range(source.windows):
            np.testing.assert_array_equal(source.read(np.array([window])), expected[window : window + 1])


def test_documents_of_several_sequences(tmp_path):
    """Megatron's own tools may write one sequence per sentence; a document is all of them."""
    sequences = [[11, 12], [13], [14, 15, 16], [], [17, 18, 19, 20, 21]]
    ends = [0, 2, 2, 4, 5]  # documents: first two sequences, none, two (one of them empty), one
    raw = np.concatenate([np.array(s, "<u2") for s in sequences])
    lengths = np.array([len(s) for s in sequences], "<i4")
    offsets = 2 * np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype("<i8")
    header = HEADER.pack(MAGIC, 1, 8, len(sequences), len(ends))
    (tmp_path / "a.bin").write_bytes(raw.tobytes())
    (tmp_path / "a.idx").write_bytes(header + lengths.tobytes() + offsets.tobytes() + np.array(ends, "<i8").tobytes())
    info = ShardInfo("a", raw.size, 4, raw.nbytes, "", "")
    source = WindowSource(tmp_path, Manifest("", "", SIZE, {}, (info,)), VOCABULARY, 9)
    joined = [[11, 12, 13], [], [14, 15, 16], [17, 18, 19, 20, 21]]
    np.testing.assert_array_equal(source.read(np.arange(source.windows)), expected_windows([joined], 9))


def test_an_id_outside_the_vocabulary_is_named_with_file_and_byte(tmp_path):
    shards = {"a": [[5] * 30], "b": [[5] * 3, [5, 5, 999, 5] * 5]}
    small = Vocabulary(999, CLS, SEP, MASK, np.zeros(999, bool))
    source = open_source(tmp_path, shards, 8, small)
    source.read(np.arange(5))
    with pytest.raises(
        DataError, match=r"b\.bin: byte 10: expected a token id below the vocabulary size 999, found 999"
    ):
        source.read(np.arange(source.windows))


def test_too_little_text_is_said(tmp_path):
    with pytest.raises(DataError, match="shorter than one window of 64 tokens"):
        open_source(tmp_path, {"a": [[5] * 60]}, 64)  # 60 tokens and [SEP]: one too few
    assert open_source(tmp_path, {"a": [[5] * 61]}, 64).windows == 1
    with pytest.raises(DataError, match="shorter"):
        WindowSource(tmp_path, Manifest("", "", SIZE, {}, ()), VOCABULARY, 64)
