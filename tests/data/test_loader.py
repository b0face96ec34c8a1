"""Which sample is which window, who reads it, and what is held out from training."""

import time
from itertools import islice

import numpy as np
import pytest

from pipeline.config import DataConfig
from pipeline.data.loader import HeldOutData, Masking, Share, TrainingData, micro_batches
from pipeline.data.open import open_training_data
from pipeline.errors import UserError
from tests.support.runs import make_shards
from tests.support.windows import (
    documents,
    fake_source,
    open_source,
    windows_of,
)


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
        readers = [micro_batches(data, 5, Share(16, micro_batch, rank, ranks)) for rank in range(ranks)]
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


def test_a_huge_sample_number_is_reached_at_once():
    data = TrainingData([fake_source(10**9), fake_source(123_456_789)], [5, 1], Masking(seed=4))
    started = time.perf_counter()
    batch = next(micro_batches(data, 10**10, Share(960, 8, rank=3, ranks=8)))
    assert len(batch.windows) == 8
    data.consumed(960 * 10**10 + 77)
    assert time.perf_counter() - started < 0.5


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
