"""Word embeddings to start a BERT from scratch with: a truncated SVD of positive pointwise mutual information.

A BERT that starts from random embeddings spends its first millions of tokens on word frequencies alone. What words
occur near each other can be counted in seconds, and its factors are embeddings that already know it (Levy and
Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization").
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.windows import WindowSource

WINDOWS_COUNTED = 100_000
NEIGHBOURS = 4
"""Distance up to which two tokens of a window count as near."""


@dataclass(frozen=True)
class TokenStatistics:
    """Counts from a sample of windows.

    Attributes:
        frequencies: (vocab,) float64, how often each token occurs, at least 1.
        near: (vocab, vocab) float32, how often two tokens stand near each other; symmetric.
    """

    frequencies: np.ndarray
    near: np.ndarray


def count_tokens(source: WindowSource) -> TokenStatistics:
    """Count tokens and neighbours in windows spread evenly over the source. Takes vocab^2 x 4 bytes."""
    size = source.vocabulary.size
    chosen = np.linspace(0, source.windows - 1, min(source.windows, WINDOWS_COUNTED)).astype(np.int64)
    frequencies = np.ones(size)
    near = np.zeros(size * size, dtype=np.float32)
    for start in range(0, len(chosen), 2000):
        tokens = source.read(chosen[start : start + 2000])[:, 1:-1]
        frequencies += np.bincount(tokens.ravel(), minlength=size)
        for distance in range(1, NEIGHBOURS + 1):
            pairs = tokens[:, :-distance].ravel() * size + tokens[:, distance:].ravel()
            keys, counts = np.unique(pairs, return_counts=True)
            near[keys] += counts
    matrix = near.reshape(size, size)
    return TokenStatistics(frequencies, matrix + matrix.T)


def ppmi_embeddings(statistics: TokenStatistics, dimensions: int, scale: float = 0.02) -> Tensor:
    """The first `dimensions` left factors of the PPMI matrix: (vocab, dimensions) fp32, standard deviation `scale`.

    Context frequencies are smoothed with the exponent 0.75, which keeps rare tokens from dominating.
    """
    near = torch.from_numpy(statistics.near).double()
    total = near.sum()
    rows = near.sum(1).clamp(min=1)
    smoothed = near.sum(0).clamp(min=1) ** 0.75
    smoothed *= total / smoothed.sum()
    pmi = torch.log((near * total / rows[:, None] / smoothed[None, :]).clamp(min=1.0)).float()
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    left, values, _ = torch.svd_lowrank(pmi, q=dimensions + 16, niter=4)
    torch.random.set_rng_state(generator)
    factors = left[:, :dimensions] * values[:dimensions].sqrt()
    return factors * (scale / factors.std())
