"""A keyed shuffle of range(n), computed and not stored: a Feistel network with cycle walking."""

import math

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.uint64]

ROUNDS = 8
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def permute(indices: Indices, n: int, key: int) -> Indices:
    """Where the permutation of range(n) named by `key` sends `indices`; same shape, uint64.

    An index is written as two digits in base ceil(sqrt(n)), which a balanced Feistel network maps
    one to one; the few results at or above n are mapped again until they fall below. Memory is
    proportional to `indices` and not to n. Raises ValueError for an index outside of range(n).
    """
    if not 0 < n <= 2**62:
        raise ValueError(f"cannot permute {n} things; n must be in [1, 2**62]")
    result = np.array(indices, dtype=np.uint64)
    if result.size and int(result.max()) >= n:
        raise ValueError(f"index {int(result.max())} is outside of range({n})")
    base = math.isqrt(n - 1) + 1
    keys = _round_keys(key)
    flat = result.reshape(-1)
    pending = np.arange(flat.size)
    while pending.size:
        flat[pending] = _feistel(flat[pending], base, keys)
        # The square base has at most 2 sqrt(n) + 1 numbers to spare, so few walk on.
        pending = pending[flat[pending] >= np.uint64(n)]
    return result


def _feistel(numbers: Indices, base: int, keys: list[int]) -> Indices:
    radix = np.uint64(base)
    left, right = numbers // radix, numbers % radix
    for key in keys:
        left, right = right, (left + _mix(right ^ np.uint64(key)) % radix) % radix
    return left * radix + right


def _mix(x: Indices) -> Indices:
    """The finalizer of splitmix64; multiplication wraps around 2**64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def _round_keys(key: int) -> list[int]:
    seeds = np.array(
        [(key + (i + 1) * _GOLDEN) & _MASK for i in range(ROUNDS)],
        dtype=np.uint64,
    )
    return [int(k) for k in _mix(seeds)]
