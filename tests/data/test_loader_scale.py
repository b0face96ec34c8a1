"""The loader on a corpus larger than any memory: it starts at once, anywhere, stays small, and accounts for itself."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from pipeline.config import DataConfig
from pipeline.data.indexed import HEADER, MAGIC, VERSION, ShardInfo
from pipeline.data.loader import Masking, Share, TrainingData, micro_batches
from pipeline.data.manifest import Manifest, tokenizer_fingerprint
from pipeline.data.masking import Vocabulary
from pipeline.data.open import open_shards, open_training_data
from pipeline.data.windows import WindowSource
from preprocessing.tokenizing.tokenizer import load_fast, save_tokenizer, vocabulary_size
from tests.support.shards import WORDS, write_shard

SHARDS, SHARD_DOCUMENTS, TOKENS = 8, 840_000, 128
POSITION = 3_000_000_000
GLOBAL_BATCH = 960
SEP = 3


def write_sparse_shard(prefix: Path, lengths: np.ndarray) -> None:
    """A shard of documents of these lengths in tokens (documents,), every id 0, whose .bin takes no room on disk."""
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * 2
    with open(prefix.with_suffix(".idx"), "wb") as stream:
        stream.write(HEADER.pack(MAGIC, VERSION, 8, len(lengths), len(lengths) + 1))
        stream.write(lengths.astype("<i4").tobytes() + offsets.astype("<i8").tobytes())
        stream.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
    with open(prefix.with_suffix(".bin"), "wb") as stream:
        stream.truncate(2 * int(lengths.sum()))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """3.5 x 10^9 tokens in 8 shards with one index between them, and the lengths of a shard's documents."""
    directory = tmp_path_factory.mktemp("scale") / "shards"
    (directory / "tokenizer").mkdir(parents=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [f"##{number}" for number in range(30_522 - len(pieces))]
    (directory.parent / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    save_tokenizer(directory.parent / "vocab.txt", directory / "tokenizer", False)
    lengths = np.random.default_rng(0).integers(50, 1000, SHARD_DOCUMENTS)
    write_sparse_shard(directory / "s0", lengths)
    for number in range(1, SHARDS):
        for suffix in (".idx", ".bin"):
            os.link(directory / f"s0{suffix}", directory / f"s{number}{suffix}")
    tokens = int(lengths.sum())
    shards = [ShardInfo(f"s{i}", tokens, len(lengths), 2 * tokens, "0" * 64, "0" * 64) for i in range(SHARDS)]
    size = vocabulary_size(load_fast(directory / "tokenizer"))
    Manifest("0" * 64, tokenizer_fingerprint(directory / "tokenizer"), size, {}, tuple(shards)).write(directory)
    assert SHARDS * tokens > POSITION
    return directory, lengths


def anonymous_memory() -> int:
    """Bytes of this process that no file backs; the mapped shards are the page cache's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account of memory")
def test_first_batch_within_a_second_and_flat_memory_at_three_billion_tokens(corpus):
    directory, _ = corpus
    # Whoever trains has loaded transformers long before; its import takes longer than all of the loader.
    AutoTokenizer.from_pretrained(directory / "tokenizer")
    before, seconds = anonymous_memory(), []
    for _ in range(3):  # the best counts: the machine may be busy with something else
        began = time.monotonic()
        data, _, _ = open_training_data(DataConfig(shards=str(directory), seq_len=TOKENS), seed=1)
        batches = micro_batches(data, POSITION // (GLOBAL_BATCH * TOKENS), Share(GLOBAL_BATCH, 32, 3, 10))
        first = next(batches)
        seconds.append(time.monotonic() - began)
    assert first.input_ids.shape == (32, TOKENS)
    assert min(seconds) < 1, seconds
    opened = anonymous_memory()
    assert opened - before < 32e6
    for _ in range(100):
        next(batches)
    settled = anonymous_memory()
    for _ in range(400):
        next(batches)
    grown = anonymous_memory() - settled
    # Stored, the permutation of these 27 million windows alone would take 200 MB.
    assert grown < 4e6, f"{grown / 1e6:.1f} MB"
    print(f"first batch {min(seconds):.3f} s, opening {(opened - before) / 1e6:.1f} MB, growth {grown / 1e6:.2f} MB")


def test_windows_anywhere_in_the_corpus_are_the_right_ones(corpus):
    """Of documents of zeros, windows show where the separators lie, and that tells exactly where the windows are."""
    directory, lengths = corpus
    source, _ = open_shards(directory, TOKENS)
    content = TOKENS - 2
    per_shard = int((lengths + 1).sum())
    separators = np.cumsum(lengths + 1) - 1
    assert source.windows == SHARDS * per_shard // content
    edges = [shard * per_shard // content for shard in range(1, SHARDS)]
    draws = np.random.default_rng(1).integers(0, source.windows, 200)
    windows = np.concatenate([[0, source.windows - 1], edges, draws])
    for window, row in zip(windows, source.read(windows), strict=True):
        positions = (int(window) * content + np.arange(content)) % per_shard
        found = separators[np.minimum(np.searchsorted(separators, positions), len(separators) - 1)] == positions
        assert np.array_equal(row[1:-1], np.where(found, SEP, 0)), window


def test_what_was_consumed_of_several_sources_is_what_was_read(tmp_path):
    """Two sources of one word each, by which every sample that two ranks read is counted."""
    sources, marks = [], (7, 9)
    vocabulary = Vocabulary(61, cls_id=2, sep_id=SEP, mask_id=4, continues_word=np.zeros(61, bool))
    for name, mark, documents in (("books", marks[0], 40), ("wiki", marks[1], 90)):
        (tmp_path / name).mkdir()
        info = write_shard(tmp_path / name / "s0", [[mark] * 50] * documents, 61)
        manifest = Manifest("0" * 64, "0" * 64, 61, {}, (info,))
        sources.append(WindowSource(tmp_path / name, manifest, vocabulary, 16))
    data = TrainingData(sources, [0.2, 0.8], Masking(seed=5))

    steps, batch = 190, 16
    counted = np.zeros(2, dtype=int)
    read: list[list[int]] = [[], []]
    ranks = [micro_batches(data, 0, Share(batch, 4, rank, 2)) for rank in range(2)]
    for step in range(steps):
        assert data.consumed(step * batch) == counted.tolist()
        for _ in range(batch // (4 * 2)):
            for micro_batch in (next(rank) for rank in ranks):
                for ids, window in zip(micro_batch.input_ids, micro_batch.windows, strict=True):
                    votes = [int((ids == mark).sum()) for mark in marks]
                    counted[int(np.argmax(votes))] += 1
                    read[int(np.argmax(votes))].append(int(window) & ((1 << 40) - 1))
    assert counted.sum() == steps * batch == 3040 and data.consumed(3000) == [600, 2400]
    # Every window of a source as often as any other, to one epoch that has begun.
    for source, windows in zip(sources, read, strict=True):
        times = np.bincount(windows, minlength=source.windows)
        epochs = len(windows) // source.windows
        assert len(times) == source.windows and epochs >= 3 and set(times) <= {epochs, epochs + 1}
    began = time.monotonic()
    assert data.consumed(10**12 + 1)[1] in (8 * 10**11, 8 * 10**11 + 1) and time.monotonic() - began < 1
