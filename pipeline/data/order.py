"""Which window is read when: permutations and draws that are computed, never stored.

Everything here is a pure function of its arguments, in O(1) memory, for any corpus size.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_bits(*keys: int | np.ndarray) -> np.ndarray:
    """64 uniform bits (uint64) for every combination of integer keys, which broadcast like in numpy.

    A chain of the splitmix64 finaliser (Steele, Lea, Flood 2014), one link per key.
    """
    state: np.ndarray = np.asarray(np.uint64(0))
    with np.errstate(over="ignore"):
        for key in keys:
            state = _mix(state + _GOLDEN + np.asarray(key).astype(np.uint64))
    return state


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def permute(indices: np.ndarray, size: int, *keys: int) -> np.ndarray:
    """Positions (n,) in [0, size) of a random order -> the elements (n,) that stand there.

    A Feistel network of four rounds over the smallest square of a power of two that holds `size`; results beyond
    `size` walk on until they fall inside (cycle walking), which keeps it a permutation.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    out = np.asarray(indices, dtype=np.uint64).copy()
    pending = np.ones(out.shape, dtype=bool)
    while pending.any():
        left, right = out[pending] >> np.uint64(half), out[pending] & mask
        for round_number in range(4):
            left, right = right, left ^ (hash_bits(*keys, round_number, right) & mask)
        out[pending] = (left << np.uint64(half)) | right
        pending &= out >= size
    return out.astype(np.int64)
