"""What the trainer reads: windows, their order, their masks, and who reads which.

Windows are compared with a stream that is built in plain Python; orders, masks and shares with brute-force counts.
"""

import threading
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.config import DataConfig
from pipeline.data.indexed import HEADER, MAGIC, ShardInfo
from pipeline.data.loader import HeldOutData, Masking, TrainingData, collate, micro_batches
from pipeline.data.manifest import Manifest
from pipeline.data.masking import Vocabulary, mask_windows
from pipeline.data.open import open_training_data
from pipeline.data.order import hash_bits, permute
from pipeline.data.vocabulary import load_vocabulary
from pipeline.data.windows import WindowSource
from pipeline.errors import DataError, UserError
from tests.support.runs import make_shards
from tests.support.shards import write_shard

CLS, SEP, MASK, SIZE = 1, 2, 3, 1000
VOCABULARY = Vocabulary(SIZE, CLS, SEP, MASK, continues_word=np.arange(SIZE) % 3 == 0)
EMPTY = ShardInfo("", 0, 0, 0, "", "")


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


# Masks


def some_windows(rows: int, seq_len: int = 64, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(4, SIZE, (rows, seq_len))
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    tokens[:, 20] = SEP
    return tokens


def masked(tokens, windows=None, epochs=None, seed=5, fraction=0.15, whole_word=False):
    windows = np.arange(len(tokens)) if windows is None else windows
    epochs = np.zeros(len(tokens), int) if epochs is None else epochs
    return mask_windows(tokens, windows, epochs, VOCABULARY, seed, fraction, whole_word)


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("seq_len,fraction,count", [(128, 0.15, 19), (64, 0.15, 9), (64, 0.4, 25), (512, 0.15, 76)])
def test_every_window_predicts_the_same_number_of_tokens(whole_word, seq_len, fraction, count):
    tokens = some_windows(50, seq_len)
    batch = masked(tokens, fraction=fraction, whole_word=whole_word)
    assert batch.positions.shape == batch.labels.shape == (50, count)
    assert (np.diff(batch.positions, axis=1) > 0).all()
    assert batch.positions.min() >= 1 and batch.positions.max() <= seq_len - 2
    assert not (np.take_along_axis(tokens, batch.positions, 1) == SEP).any()
    restored = batch.input_ids.copy()
    np.put_along_axis(restored, batch.positions, batch.labels, axis=1)
    np.testing.assert_array_equal(restored, tokens)


def test_every_token_is_in_the_document_it_came_from(tmp_path):
    """Whatever masking puts in place of separators, and whatever [SEP] it draws elsewhere."""
    shards = [[[], *documents(seed, longest=20), []] for seed in (1, 2)]
    source = open_source(tmp_path, dict(zip("ab", shards, strict=True)), 16)
    origins = [n for n, doc in enumerate(doc for docs in shards for doc in docs) for _ in range(len(doc) + 1)]
    tokens = source.read(np.arange(source.windows))
    found = masked(tokens, fraction=0.9).documents
    for window, row in enumerate(found.tolist()):
        content = origins[14 * window : 14 * window + 14]
        assert row[:-1] == [number - content[0] for number in (content[0], *content)]  # [CLS] is of the first
        # The last [SEP] ends what the window breaks off, and stands alone behind a document that was whole.
        assert row[-1] == row[-2] + int(tokens[window, -2] == SEP)
    assert found.max() == 3


def test_eighty_ten_ten():
    tokens = some_windows(3000, 128)
    batch = masked(tokens)
    shown = np.take_along_axis(batch.input_ids, batch.positions, axis=1)
    n = shown.size
    hidden, kept = (shown == MASK).mean(), ((shown == batch.labels) & (batch.labels != MASK)).mean()
    random = shown[(shown != MASK) & (shown != batch.labels)]
    for share, wanted in ((hidden, 0.8), (kept, 0.1), (random.size / n, 0.1)):
        assert abs(share - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / n) + 2 / SIZE
    counts = np.histogram(random, bins=10, range=(0, SIZE))[0]
    assert abs(counts / random.size - 0.1).max() < 5 * np.sqrt(0.09 / random.size)
    # Every place of the window is predicted equally often (the separator at 20 never).
    places = np.bincount(batch.positions.ravel(), minlength=128)[1:127]
    assert places[19] == 0
    expected = n / 125
    assert abs(np.delete(places, 19) - expected).max() < 5 * np.sqrt(expected)


def test_separators_only_serve_where_there_is_nothing_else():
    tokens = np.full((2, 12), SEP)
    tokens[:, 0] = CLS
    tokens[0, 4] = tokens[0, 7] = 50
    batch = masked(tokens, fraction=0.4)  # 4 of 10 places
    assert batch.positions.shape == (2, 4)
    assert {4, 7} <= set(batch.positions[0].tolist())
    assert sorted(batch.labels[0].tolist()) == [SEP, SEP, 50, 50]


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_mask_depends_on_seed_epoch_and_window_alone(whole_word):
    tokens = some_windows(16)
    epochs = np.arange(16) // 4
    whole = masked(tokens, epochs=epochs, whole_word=whole_word)
    again = masked(tokens[::-1], np.arange(16)[::-1], epochs[::-1], whole_word=whole_word)
    np.testing.assert_array_equal(again.input_ids[::-1], whole.input_ids)
    for row in range(16):
        one = masked(tokens[row : row + 1], np.array([row]), epochs[row : row + 1], whole_word=whole_word)
        np.testing.assert_array_equal(one.input_ids[0], whole.input_ids[row])
        np.testing.assert_array_equal(one.positions[0], whole.positions[row])
    same_text = np.repeat(tokens[:1], 16, axis=0)
    for changed in (
        masked(same_text),
        masked(same_text, np.zeros(16, int), np.arange(16)),
    ):
        assert len({tuple(row) for row in changed.positions.tolist()}) == 16
    assert (masked(tokens, seed=6).positions != masked(tokens, seed=5).positions).mean() > 0.5


def test_whole_words_are_taken_whole_and_the_last_one_is_cut():
    tokens = some_windows(400, 64)
    tokens[:, 21] = 4  # text goes on with a new word after the separator at 20
    batch = masked(tokens, whole_word=True)
    cut_windows = 0
    for row, positions in zip(tokens, batch.positions, strict=True):
        starts = [p for p in range(1, 63) if p == 1 or not VOCABULARY.continues_word[row[p]]]
        words = [set(range(start, end)) for start, end in zip(starts, [*starts[1:], 63], strict=True)]
        chosen = set(positions.tolist())
        parts = [(word & chosen, word) for word in words if word & chosen]
        cut = [(part, word) for part, word in parts if part != word]
        assert len(cut) <= 1
        assert all(part == set(sorted(word)[: len(part)]) for part, word in cut)
        cut_windows += len(cut)
    assert 20 < cut_windows < 300


# Order


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4097, 30_000])
def test_permute_is_a_permutation(size):
    assert sorted(permute(np.arange(size), size, 1, 2).tolist()) == list(range(size))


def test_permute_is_pointwise_and_follows_its_keys():
    order = permute(np.arange(1000), 1000, 7, 0)
    assert [int(permute(np.array([i]), 1000, 7, 0)[0]) for i in range(0, 1000, 97)] == order[::97].tolist()
    for other in (permute(np.arange(1000), 1000, 7, 1), permute(np.arange(1000), 1000, 8, 0), np.arange(1000)):
        assert (order == other).mean() < 0.01


@pytest.mark.parametrize("size", [64, 100])
def test_permute_looks_uniform(size):
    """Every element at every place equally often over many keys: chi-square with its own mean and deviation."""
    keys = 1500
    table = np.zeros((size, size))
    for key in range(keys):
        table[np.arange(size), permute(np.arange(size), size, key)] += 1
    freedom = (size - 1) ** 2
    chi_square = ((table - keys / size) ** 2 / (keys / size)).sum()
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)
    steps = np.diff(permute(np.arange(20_000), 20_000, 3))
    assert abs((steps > 0).mean() - 0.5) < 0.02 and abs((np.abs(steps) < 200).mean() - 0.02) < 0.005


def test_hash_bits_are_fair_and_depend_on_every_key():
    bits = hash_bits(3, np.arange(20_000), 4)
    ones = [(bits >> np.uint64(b) & np.uint64(1)).mean() for b in range(64)]
    assert np.abs(np.array(ones) - 0.5).max() < 0.02
    assert len({int(hash_bits(*keys)) for keys in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (3,), (1, -2)]}) == 6


# Which sample is which window


def test_every_epoch_of_every_source_reads_each_window_once():
    sources = [fake_source(37), fake_source(11), fake_source(300)]
    data = TrainingData(sources, [3, 1, 6], Masking(seed=9), reserved=4)
    source, epoch, window = data.locate(np.arange(3000))
    for s, reader in enumerate(sources):
        mine = source == s
        assert window[mine].max() < reader.windows - 4  # held-out windows are never trained on
        assert (np.diff(epoch[mine]) >= 0).all()
        for e in range(epoch[mine].max()):
            assert sorted(window[mine & (epoch == e)].tolist()) == list(range(reader.windows - 4))
    first, second = (window[(source == 0) & (epoch == e)].tolist() for e in (0, 1))
    assert first != second != sorted(second)


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [3, 1, 6], [0.5, 0.25, 0.125, 0.125], [1, 2], [997, 1, 1, 1]])
def test_shares_are_exact_and_consumed_counts_them(weights):
    data = TrainingData([fake_source(50 + s) for s in range(len(weights))], weights, Masking(seed=2))
    source, _, _ = data.locate(np.arange(5000))
    for block in source.reshape(5, 1000):
        share = np.bincount(block, minlength=len(weights))
        assert np.abs(share - 1000 * np.array(weights) / sum(weights)).max() < 1
    for samples in (0, 1, 999, 1000, 1001, 2345, 5000):
        assert data.consumed(samples) == np.bincount(source[:samples], minlength=len(weights)).tolist()


def test_a_source_that_would_never_be_read_is_refused():
    with pytest.raises(UserError, match="source 2 of 2 has less than 1/1000 of the weight"):
        TrainingData([fake_source(50), fake_source(50)], [1, 1e-4], Masking(seed=1))


def test_samples_are_located_alike_in_any_batch():
    data = TrainingData([fake_source(37), fake_source(11)], [2, 1], Masking(seed=9))
    whole = np.stack(data.locate(np.arange(2500)))
    order = np.random.default_rng(1).permutation(2500)
    np.testing.assert_array_equal(np.stack(data.locate(order)), whole[:, order])
    np.testing.assert_array_equal(
        np.concatenate([np.stack(data.locate(np.arange(i, i + 7))) for i in range(994, 1015, 7)], 1), whole[:, 994:1015]
    )


def test_equal_windows_of_two_sources_get_different_masks():
    """Both sources hold the same windows: their masks differ, as the text of the same number usually does."""
    data = TrainingData([fake_source(64, 64), fake_source(64, 64)], [1, 1], Masking(seed=1))
    source, epoch, window = data.locate(np.arange(128))
    positions = {
        (s, w): row
        for s, e, w, row in zip(source, epoch, window, data.batch(np.arange(128)).positions.tolist(), strict=True)
        if e == 0
    }
    both = [w for w in range(64) if (0, w) in positions and (1, w) in positions]
    assert len(both) > 20 and all(positions[0, w] != positions[1, w] for w in both)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_the_samples_of_a_step_do_not_depend_on_ranks_or_accumulation(micro_batch):
    data = TrainingData([fake_source(1000)], [1], Masking(seed=4))
    reference = None
    for ranks in (1, 2, 4):
        steps = []
        accumulation = 16 // (micro_batch * ranks)
        readers = [micro_batches(data, 5, 16, micro_batch, rank, ranks) for rank in range(ranks)]
        for _ in range(3):
            rows = [
                row
                for reader in readers
                for batch in islice(reader, accumulation)
                for row in zip(windows_of(batch), batch.input_ids.tolist(), strict=True)
            ]
            assert len(rows) == 16
            steps.append(sorted(rows))
        assert steps == (reference or steps)
        reference = steps
    _, _, window = data.locate(np.arange(5 * 16, 8 * 16))
    assert [w for step in reference for w, _ in step] == [
        w for s in range(3) for w in sorted(window[16 * s : 16 * s + 16])
    ]


def test_micro_batches_become_tensors_beside_the_training_thread():
    data, threads = TrainingData([fake_source(64)], [1], Masking(seed=4)), set()

    def prepare(batch):
        threads.add(threading.get_ident())
        return collate(batch, documents=False)

    plain = islice(micro_batches(data, 3, 8, 4, 0, 2), 5)
    for tensors, batch in zip(micro_batches(data, 3, 8, 4, 0, 2, prepare), plain, strict=False):
        assert tensors.keys() == {"input_ids", "positions", "labels"}
        assert all(tensor.tolist() == getattr(batch, name).tolist() for name, tensor in tensors.items())
        assert all(tensor.is_pinned() == torch.cuda.is_available() for tensor in tensors.values())
    assert len(threads) == 1 and threading.get_ident() not in threads
    with_documents = collate(data.batch(np.arange(4)), documents=True)
    assert with_documents["documents"].tolist() == data.batch(np.arange(4)).documents.tolist()


def test_a_huge_sample_number_is_reached_at_once():
    data = TrainingData([fake_source(10**9), fake_source(123_456_789)], [5, 1], Masking(seed=4))
    started = time.perf_counter()
    batch = next(micro_batches(data, 10**10, 960, 8, rank=3, ranks=8))
    assert len(batch.windows) == 8
    data.consumed(960 * 10**10 + 77)
    assert time.perf_counter() - started < 0.5


# Held-out text


def test_held_out_rows_are_the_same_for_any_number_of_ranks(tmp_path):
    source = open_source(tmp_path, {"a": documents(1, 200)}, 16)
    heldout = HeldOutData(source, np.arange(9, 32), fraction=0.15)

    def rows(ranks: int, size: int) -> list[tuple]:
        found, counts = [], []
        for rank in range(ranks):
            batches = list(heldout.batches(size, rank, ranks))
            counts.append([len(batch.windows) for batch, _ in batches])
            for batch, valid in batches:
                found += [
                    (batch.windows[i], *batch.input_ids[i], *batch.positions[i], *batch.labels[i]) for i in range(valid)
                ]
        assert all(count == counts[0] and set(count) == {size} for count in counts)
        return sorted(found)

    reference = rows(1, 1)
    assert [row[0] for row in reference] == list(range(9, 32))
    for ranks, size in ((1, 5), (2, 4), (3, 5), (4, 2), (5, 100), (30, 3)):
        assert rows(ranks, size) == reference


def test_the_recipes_data_section_opens_training_and_held_out_text(tmp_path):
    shards = make_shards(tmp_path / "shards", words=1600)
    data, heldout, _ = open_training_data(DataConfig(shards=str(shards), seq_len=16, heldout_windows=10), seed=3)
    windows = data.sources[0].windows
    assert data.windows == [windows - 10] and heldout.windows.tolist() == list(range(windows - 10, windows))
    batch = data.batch(np.arange(4))
    assert batch.input_ids.shape == (4, 16) and batch.positions.shape == (4, 2)
    assert (batch.input_ids[:, 0] == data.sources[0].vocabulary.cls_id).all()

    other = make_shards(tmp_path / "other", words=400, seed=1)
    both = DataConfig(shards=[{"path": str(shards), "weight": 3}, {"path": str(other), "weight": 1}], seq_len=16)
    with pytest.raises(UserError, match="too few to keep 256 of them back"):
        open_training_data(both, seed=3)
    both.heldout = str(other)
    data, heldout, _ = open_training_data(both, seed=3)
    assert data.windows == [source.windows for source in data.sources] and data.windows[0] == windows
    assert len(heldout.windows) == min(256, data.windows[1])


def test_word_boundaries_follow_the_tokenizer(tmp_path):
    shards = make_shards(tmp_path / "shards", words=400)
    vocabulary = load_vocabulary(shards / "tokenizer")
    pieces = (shards / "tokenizer" / "vocab.txt").read_text().splitlines()
    assert vocabulary.continues_word.tolist() == [piece.startswith("##") for piece in pieces]
    assert 0 < vocabulary.continues_word.sum() < vocabulary.size == len(pieces)


class FakeTokenizer:
    """A tokenizer with these pieces and no special tokens among them."""

    cls_token_id = sep_token_id = mask_token_id = 9
    all_special_ids = (9,)

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]


@pytest.mark.parametrize(
    "pieces,continues",
    [
        (["a", "##b", "\u2581", "##c"], [False, True, False, True]),
        (["\u2581a", "b", "\u2581", "##"], [False, True] * 2),
        (["\u0120a", "b", "\u0120", "##"], [False, True] * 2),
    ],
)
def test_one_odd_character_does_not_change_the_kind_of_a_vocabulary(monkeypatch, pieces, continues):
    """A WordPiece vocabulary may hold the character that begins words in SentencePiece's, and vice versa."""
    monkeypatch.setattr("pipeline.data.vocabulary.load_tokenizer", lambda directory: FakeTokenizer(pieces))
    assert load_vocabulary(Path()).continues_word.tolist() == continues
