"""Windows, masks and order of awkward corpora, against plain Python that does one window and one token at a time."""

import hashlib
import pickle

import numpy as np
import pytest

from pipeline.data import stream
from pipeline.data.indexed import HEADER
from pipeline.data.loader import Masking, Share, TrainingData, micro_batches
from pipeline.data.masking import mask_windows
from pipeline.errors import DataError
from tests.support.windows import CLS, MASK, SEP, SIZE, VOCABULARY, expected_windows, open_source

WORD = 2**64 - 1
LENGTHS = {
    "empty and one-token documents": [0, 0, 1, 0, 1, 1, 0],
    "all sorts": [0, 1, 2, 7, 40, 3, 0, 90],
    "longer than many windows": [900, 0, 1, 700],
    "around the windows' edges": [5, 6, 7, 6, 5, 13, 12],
}


def corpus(kind: str, draw: np.random.Generator, shards: int = 6) -> dict[str, list[list[int]]]:
    """Shards of up to 200 documents, so that the table of separators has several entries; one without any document."""
    counts = draw.permutation([0, 1, *draw.integers(2, 200, shards - 2)])
    lengths = [draw.choice(LENGTHS[kind], count).tolist() for count in counts]
    return {f"s{i}": [draw.integers(4, SIZE, n).tolist() for n in of] for i, of in enumerate(lengths)}


@pytest.mark.parametrize("kind", LENGTHS)
def test_every_window_of_awkward_corpora_in_any_order_and_company(tmp_path, kind):
    draw = np.random.default_rng(len(kind))
    for trial, seq_len in enumerate((8, 9, 64)):
        shards = corpus(kind, draw)
        source, expected = (
            open_source(tmp_path / str(trial), shards, seq_len),
            expected_windows([*shards.values()], seq_len),
        )
        assert source.windows == len(expected)
        several = draw.integers(0, source.windows, 3 * source.windows)  # repeated ones among them
        for wanted in (np.arange(source.windows), several, several[:1], several[:0]):
            np.testing.assert_array_equal(source.read(wanted), expected[wanted])


def test_only_separators(tmp_path):
    """Documents without a single token are text of a kind."""
    source = open_source(tmp_path, {"a": [[]] * 30, "b": [], "c": [[]] * 100}, 8)
    assert source.windows == 21 and (source.read(np.arange(21))[:, 1:] == SEP).all()


def test_two_look_ups_whatever_is_asked_for(tmp_path, monkeypatch):
    """One for separators and one for tokens: a loop over windows would need more."""
    source, calls = open_source(tmp_path, {f"s{i}": [[10 + i] * 50] * 40 for i in range(3)}, 16), []
    source.read(np.arange(1))
    look_up = stream._Counted.look_up
    monkeypatch.setattr(stream._Counted, "look_up", lambda *asked: calls.append(asked) or look_up(*asked))
    source.read(np.arange(source.windows))
    assert len(calls) == 2


def mix(*keys: int) -> int:
    """splitmix64, key by key."""
    state = 0
    for key in keys:
        state = (state + 0x9E3779B97F4A7C15 + key) & WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & WORD
        state ^= state >> 31
    return state


def masked_plainly(tokens: list[int], key: tuple[int, int, int], count: int, whole_word: bool) -> tuple[list[int], ...]:
    """What `mask_windows` makes of one window: its input_ids, positions, labels and documents."""
    draws, unit = [], 0
    for place, token in enumerate(tokens[1:-1]):
        if not whole_word or not VOCABULARY.continues_word[token]:
            unit = place
        draws.append((token in (SEP, CLS), mix(*key, unit, 0) >> 1, place))
    chosen = sorted(place for _, _, place in sorted(draws)[:count])
    shown = list(tokens)
    for place in chosen:
        action = mix(*key, place, 1) % 10
        if action < 9:
            shown[place + 1] = MASK if action < 8 else mix(*key, place, 2) % SIZE
    ends = [token == SEP for token in tokens]
    documents = [sum(ends[:place]) for place in range(len(tokens))]
    return shown, [place + 1 for place in chosen], [tokens[place + 1] for place in chosen], documents


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("fraction", [0.15, 0.6, 0.97])
def test_masks_are_those_of_plain_python(tmp_path, whole_word, fraction):
    """Words are of several pieces here, and a large fraction takes separators where a window is short of text."""
    shards = corpus("all sorts", np.random.default_rng(3), 4)
    source = open_source(tmp_path, shards, 32)
    tokens = source.read(np.arange(source.windows))
    windows, epochs = np.arange(len(tokens)) | 5 << 40, np.arange(len(tokens)) % 3
    batch = mask_windows(tokens, windows, epochs, VOCABULARY, 11, fraction, whole_word)
    for row, window, epoch in zip(range(len(tokens)), windows.tolist(), epochs.tolist(), strict=True):
        plain = masked_plainly(tokens[row].tolist(), (11, epoch, window), round(fraction * 30), whole_word)
        fast = (part[row].tolist() for part in (batch.input_ids, batch.positions, batch.labels, batch.documents))
        assert tuple(fast) == plain


def test_what_a_run_reads_is_what_it_has_always_read(tmp_path):
    """The digest is of commit 25640b1, which read window by window: runs from before go on with the same text."""
    sources = []
    for name, most, shards in (("a", 90, 3), ("b", 7, 2)):
        lengths = iter(mix(number) % most for number in range(10**6))
        ids = (4 + mix(1, number) % (SIZE - 4) for number in range(10**6))
        texts = {f"s{i}": [[next(ids) for _ in range(next(lengths))] for _ in range(150)] for i in range(shards)}
        sources.append(open_source(tmp_path / name, texts, 24))
    digest = hashlib.sha256()
    for whole_word, fraction in ((False, 0.15), (True, 0.4)):
        data = TrainingData(sources, [3, 1], Masking(7, fraction, whole_word), reserved=5)
        for step in (0, 41, 300_000):
            for rank in (0, 1):
                for _, batch in zip(range(9), micro_batches(data, step, Share(24, 6, rank, 2)), strict=False):
                    for part in (batch.input_ids, batch.positions, batch.labels, batch.documents, batch.windows):
                        digest.update(part.tobytes())
    assert digest.hexdigest() == "2b8d23058d6fa3a1dc0f244dbae8ec574ab383f63863cd6095e5631ca2f0738b"


@pytest.mark.parametrize("wrong", [0, 10**7, -8])
def test_a_damaged_index_is_named_with_file_and_byte(tmp_path, wrong):
    """Of a shard whose header and ends are right, so that it opens."""
    source = open_source(tmp_path, {"a": [[5] * 20] * 9, "b": [[5] * 20] * 200}, 16)
    at = HEADER.size + 4 * 200 + 8 * 150
    index = bytearray((tmp_path / "b.idx").read_bytes())
    index[at : at + 8] = wrong.to_bytes(8, "little", signed=True)
    (tmp_path / "b.idx").write_bytes(index)
    source = pickle.loads(pickle.dumps(source))
    with pytest.raises(DataError, match=rf"b\.idx: byte {at}: expected documents in the order of their tokens"):
        source.read(np.arange(source.windows))
