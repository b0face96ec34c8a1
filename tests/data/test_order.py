"""Permutations and hashes, compared with brute-force counts."""

import numpy as np
import pytest

from pipeline.data.order import hash_bits, permute


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
