"""The keyed permutation: one to one for every size, and as good as random."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pretrain.data.permutation import permute


def whole(n: int, key: int) -> np.ndarray:
    return permute(np.arange(n, dtype=np.uint64), n, key)


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_is_a_bijection(n: int, key: int) -> None:
    assert np.array_equal(np.sort(whole(n, key)), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 99, 100, 101, 2**16 - 1, 2**16, 2**16 + 1, 10**6])
def test_is_a_bijection_around_squares_and_powers(n: int) -> None:
    assert np.array_equal(np.sort(whole(n, 7)), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2**30, 2**62), key=st.integers(0, 2**64 - 1))
def test_large_ranges_stay_inside_and_distinct(n: int, key: int) -> None:
    edge = np.concatenate([np.arange(500), n - 1 - np.arange(500)]).astype(np.uint64)
    image = permute(edge, n, key)
    assert int(image.max()) < n
    assert len(np.unique(image)) == len(edge)


def test_each_index_is_mapped_alone() -> None:
    assert [int(permute(np.array([i], dtype=np.uint64), 1000, 3)[0]) for i in range(50)] == whole(
        1000, 3
    )[:50].tolist()
    square = np.arange(6, dtype=np.uint64).reshape(2, 3)
    assert permute(square, 6, 3).shape == (2, 3)
    assert permute(np.empty(0, dtype=np.uint64), 6, 3).size == 0


def test_never_changes() -> None:
    # A new order would make every running experiment see data twice: this list is for ever.
    assert whole(12, 1).tolist() == [11, 7, 9, 4, 0, 5, 2, 8, 1, 10, 6, 3]
    assert permute(np.array([0, 10**12], dtype=np.uint64), 2**48, 2**63).tolist() == [
        9401793451792,
        130120077201931,
    ]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 37])
def test_first_two_places_are_uniform_over_keys(n: int) -> None:
    keys = 4000
    images = np.array(
        [permute(np.array([0, 1], dtype=np.uint64), n, 7919 * k) for k in range(keys)]
    ).astype(np.int64)
    first = np.bincount(images[:, 0], minlength=n)
    pairs = np.bincount(images[:, 0] * n + images[:, 1], minlength=n * n)
    pairs = pairs[~np.eye(n, dtype=bool).ravel()]
    for counts in (first, pairs):
        expected = keys / len(counts)
        freedom = len(counts) - 1
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_neighbours_are_torn_apart() -> None:
    n = 100_003
    image = whole(n, 11).astype(np.int64)
    # For a random permutation both distances have mean n/3, with an error of about n/1300.
    assert abs(np.abs(image - np.arange(n)).mean() / n - 1 / 3) < 0.005
    assert abs(np.abs(np.diff(image)).mean() / n - 1 / 3) < 0.005
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(image, whole(n, 12).astype(np.int64))[0, 1]) < 0.02


def test_memory_does_not_grow_with_the_range() -> None:
    peaks = []
    indices = np.arange(1000, dtype=np.uint64)
    for n in (10**4, 10**15):
        tracemalloc.start()
        permute(indices, n, 5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 4096


def test_refuses_what_is_outside() -> None:
    for index, n in ((5, 5), (0, 0), (0, 2**63)):
        with pytest.raises(ValueError, match=r"range|permute"):
            permute(np.array([index], dtype=np.uint64), n, 1)
