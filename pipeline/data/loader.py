"""What the trainer reads: step number in, masked batch of this rank out. There is no other state.

Sample n of the run (n = step x global batch + place in the batch) belongs to a source by weight, to an epoch of that
source, and to one window of it through that epoch's permutation. All of it is computed from n, so a resumed run, on
any number of ranks, goes on with the next sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from pipeline.data.masking import MaskedBatch, mask_windows
from pipeline.data.order import hash_bits, permute
from pipeline.data.windows import WindowSource
from pipeline.errors import UserError

_MIX_BLOCK = 1000
"""Samples in which every source appears exactly as often as its weight says (to one sample)."""

_ORDER, _MIX, _HELDOUT_MASKS = 1, 2, 3


@dataclass(frozen=True)
class Masking:
    """How targets are made, see `mask_windows`."""

    seed: int
    fraction: float = 0.15
    whole_word: bool = False


class TrainingData:
    """The endless sequence of training samples of a run.

    Args:
        sources: shard directories, all with one vocabulary.
        weights: share of the samples from each, in any unit.
        reserved: windows at the end of each source that are held out from training.
    """

    def __init__(self, sources: list[WindowSource], weights: list[float], masking: Masking, reserved: int = 0) -> None:
        self.sources = sources
        self.masking = masking
        self.windows = [source.windows - reserved for source in sources]
        self._counts = _block_counts(weights)
        self._block_sources = np.repeat(np.arange(len(sources)), self._counts)

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample numbers (n,) -> source index, epoch and window id, each (n,).

        Sources take turns by blocks of `_MIX_BLOCK` samples. A block holds `_counts[s]` samples of source s, shuffled,
        so how many samples of s came before a sample is known without drawing the blocks before it: the counts of
        whole blocks, and its rank among those of s in its own. That number, divided by the windows of s, is its epoch;
        the rest is its place in the permutation of the windows in that epoch. The loops run over blocks, and over
        sources and epochs, of which a batch touches few; within each, numpy works on all samples at once.
        """
        block, place = samples // _MIX_BLOCK, samples % _MIX_BLOCK
        source, index = np.empty_like(samples), np.empty_like(samples)
        for b in np.unique(block):
            here = block == b
            order = self._block_sources[permute(np.arange(_MIX_BLOCK), _MIX_BLOCK, self.masking.seed, _MIX, int(b))]
            source[here] = order[place[here]]
            for s in range(len(self.sources)):
                rank_in_block = np.cumsum(order == s) - 1
                mine = here & (source == s)
                index[mine] = int(b) * self._counts[s] + rank_in_block[place[mine]]
        windows = np.array(self.windows)[source]
        epoch = index // windows
        window = np.empty_like(samples)
        for s, e in set(zip(source.tolist(), epoch.tolist(), strict=True)):
            mine = (source == s) & (epoch == e)
            window[mine] = permute(index[mine] % windows[mine], self.windows[s], self.masking.seed, _ORDER, s, e)
        return source, epoch, window

    def batch(self, samples: np.ndarray) -> MaskedBatch:
        """Read and mask the samples (n,)."""
        source, epoch, window = self.locate(samples)
        width = self.sources[0].content + 2
        tokens = np.empty((len(samples), width), dtype=np.int64)
        for s, reader in enumerate(self.sources):
            if len(mine := np.flatnonzero(source == s)):
                tokens[mine] = reader.read(window[mine])
        # Two sources may have a window of the same number; the mask key keeps them apart.
        key = (source.astype(np.int64) << 40) | window
        seed, fraction, whole = self.masking.seed, self.masking.fraction, self.masking.whole_word
        return mask_windows(tokens, key, epoch, self.sources[0].vocabulary, seed, fraction, whole)

    def consumed(self, samples: int) -> list[int]:
        """How many of the first `samples` samples came from each source, exactly."""
        blocks, rest = divmod(samples, _MIX_BLOCK)
        source, _, _ = self.locate(np.arange(blocks * _MIX_BLOCK, samples)) if rest else (np.empty(0, int), None, None)
        return [blocks * int(c) + int((source == s).sum()) for s, c in enumerate(self._counts)]


def _block_counts(weights: list[float]) -> np.ndarray:
    """Samples of each source in one block: the largest remainders round up."""
    share = np.array(weights) / sum(weights) * _MIX_BLOCK
    counts = np.floor(share).astype(np.int64)
    for s in np.argsort(counts - share, kind="stable")[: _MIX_BLOCK - int(counts.sum())]:
        counts[s] += 1
    if not counts.all():
        raise UserError(
            f"data.shards: source {int(counts.argmin()) + 1} of {len(counts)} has less than 1/{_MIX_BLOCK} of the "
            "weight and would never be read: raise its weight or leave it out"
        )
    return counts


class HeldOutData:
    """Fixed windows (n,) of `source` with fixed masks."""

    def __init__(self, source: WindowSource, windows: np.ndarray, fraction: float) -> None:
        self.source = source
        self.windows = windows
        self.fraction = fraction

    def batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[MaskedBatch, int]]:
        """This rank's share in batches of `size`, each with the number of its rows that count.

        Every rank gets the same number of batches of the same size; the last ones are filled up with rows that do not
        count. Masks depend on the window alone, not on the seed of a run, so that runs can be compared.
        """
        seed = int(hash_bits(_HELDOUT_MASKS) >> np.uint64(1))
        share = -(-len(self.windows) // ranks)
        mine = self.windows[rank::ranks]
        for start in range(0, share, size):
            windows = mine[start : start + size]
            filled = np.concatenate([windows, np.full(size - len(windows), self.windows[0])])
            tokens, epochs = self.source.read(filled), np.zeros_like(filled)
            yield mask_windows(tokens, filled, epochs, self.source.vocabulary, seed, self.fraction), len(windows)


@dataclass(frozen=True)
class Share:
    """Which samples of every step one rank reads."""

    global_batch: int
    micro_batch: int
    rank: int
    ranks: int

    @property
    def accumulation(self) -> int:
        """Micro-batches of this rank in a step."""
        return self.global_batch // (self.micro_batch * self.ranks)

    def samples(self, number: int) -> np.ndarray:
        """Micro-batch, counted from the beginning of the run -> its samples (micro_batch,).

        Accumulation m of a step gives rank r the samples [(m ranks + r) micro_batch, ...) of the global batch, so the
        samples of a step are the same for any number of ranks.
        """
        step, accumulated = divmod(number, self.accumulation)
        first = step * self.global_batch + (accumulated * self.ranks + self.rank) * self.micro_batch
        return np.arange(first, first + self.micro_batch)


def micro_batches(data: TrainingData, first_step: int, share: Share) -> Iterator[MaskedBatch]:
    """A rank's micro-batches from `first_step` on, without end; `ahead.read_ahead` has them read beside training."""
    for number in count(first_step * share.accumulation):
        yield data.batch(share.samples(number))
