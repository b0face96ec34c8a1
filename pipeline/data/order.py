"""Which window is read when: permutations and draws that are computed, never stored.

Everything here is a pure function of its arguments, in O(1) memory, for any corpus size.
"""

import numpy as np

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1


def hash_bits(*keys: int | np.ndarray) -> np.ndarray:
    """64 uniform bits (uint64) for every combination of integer keys, which broadcast like in numpy.

    A chain of the splitmix64 finaliser (Steele, Lea, Flood 2014), one link per key.
    """
    state: int | np.ndarray = 0
    with np.errstate(over="ignore"):
        for key in keys:
            if isinstance(key, int) and isinstance(state, int):  # numpy takes ten times as long for a single number
                state = _mix_number(state + _GOLDEN + key & _WORD)
            else:
                start = np.asarray(state, dtype=np.uint64) + np.uint64(_GOLDEN)
                state = _mix(np.asarray(start + np.asarray(key).astype(np.uint64)))
    return np.asarray(state, dtype=np.uint64)


def _mix_number(bits: int) -> int:
    bits = (bits ^ bits >> 30) * _FIRST & _WORD
    bits = (bits ^ bits >> 27) * _SECOND & _WORD
    return bits ^ bits >> 31


def _mix(bits: np.ndarray) -> np.ndarray:
    """The same of an array, in place: every token is hashed, and new arrays take longer than the arithmetic."""
    shifted = np.right_shift(bits, np.uint64(30), out=np.empty_like(bits))
    bits ^= shifted
    bits *= np.uint64(_FIRST)
    np.right_shift(bits, np.uint64(27), out=shifted)
    bits ^= shifted
    bits *= np.uint64(_SECOND)
    np.right_shift(bits, np.uint64(31), out=shifted)
    bits ^= shifted
    return bits


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
