"""Masks: how many, which tokens, what stands in their place, and what all of it depends on."""

import numpy as np
import pytest

from pipeline.data.masking import mask_windows
from tests.support.windows import CLS, MASK, SEP, SIZE, VOCABULARY, documents, open_source


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
