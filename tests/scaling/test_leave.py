"""Which runs are left out of a fit together, and what cannot be left out."""

from dataclasses import replace

from llm_pretrain.scaling.horizons import by_horizon
from llm_pretrain.scaling.laws import fit
from llm_pretrain.scaling.points import Point
from tests.scaling.known import points

SIZES = [5e7, 1e8, 2e8, 4e8]


def shared(lengths: list[float]) -> list[Point]:
    """All sizes with the same tokens."""
    return [
        replace(p, tokens=lengths[i % len(lengths)], run=f"{p.size} {i}", loss=p.loss)
        for i, p in enumerate(points(sizes=SIZES, ratios=range(1, len(lengths) + 1)))
    ]


def names(own: list[Point]) -> dict[str, int]:
    """Of the groups, with how many runs each has."""
    return {group.name: len(group.points) for group in by_horizon(own)}


def test_a_horizon_is_of_equal_tokens_where_sizes_share_them() -> None:
    own = shared([1e9, 2e9, 3e9, 4e9])
    assert names(own) == {f"{d:.4g} tokens": 4 for d in (1e9, 2e9, 3e9, 4e9)}


def test_or_of_equal_tokens_per_parameter() -> None:
    # Whole batches: not exactly the same.
    own = [replace(p, tokens=p.tokens * (1 + 1e-4 * (i % 3))) for i, p in enumerate(points())]
    assert names(own) == {f"{r} tokens per parameter": 8 for r in (3, 8, 20, 50, 150)}
    left = [one for one in fit(own, draws=20).left_out if one.kind == "horizon"]
    assert [one.count for one in left] == [8] * 5
    assert [one.beyond for one in left] == [False] * 4 + [True]


def test_or_of_equal_rank() -> None:
    own = [replace(p, tokens=p.tokens * (1 + 0.13 * (i // 5))) for i, p in enumerate(points())]
    assert names(own) == {
        "the shortest of each size": 8,
        "length 2 of each size": 8,
        "length 3 of each size": 8,
        "length 4 of each size": 8,
        "the longest of each size": 8,
    }
    # A size with fewer lengths has a shortest and a longest, too.
    assert names(own[:-2])["the longest of each size"] == 8
    assert names(own[:-2])["length 4 of each size"] == 7


def test_three_shared_horizons_are_too_few_to_leave_one_out_and_that_is_said() -> None:
    own = points(sizes=SIZES, ratios=[10, 20, 40])
    lengths = [1e9, 3e9, 9e9]
    own = [
        replace(p, tokens=lengths[i % 3], flops=6 * p.params * lengths[i % 3])
        for i, p in enumerate(own)
    ]
    found = fit(own, draws=20)
    assert {one.kind for one in found.left_out} == {"size"}
    said = (
        "cannot be left out: 1e+09 tokens, 3e+09 tokens, 9e+09 tokens: the rest needs 3 numbers of "
        "tokens at least to determine B and beta, there are 2 numbers"
    )
    assert said in found.notes


def test_two_lengths_of_each_size_leave_one_which_is_none() -> None:
    own = points(sizes=[*SIZES, 8e8, 1.6e9, 3.2e9], ratios=[10, 30])
    notes = fit(own, draws=20).notes
    said = (
        "cannot be left out: 10 tokens per parameter, 30 tokens per parameter: the rest has one "
        "length a size, which cannot tell tokens from size"
    )
    assert said in notes


def test_one_size_with_four_lengths_gets_a_note() -> None:
    found = fit(points(sizes=[1e8], ratios=[2, 5, 10, 20]), draws=20)
    assert not found.left_out
    said = "no length of 100M can be left out: there are 4, and a law in tokens needs 4 in the rest"
    assert said in found.notes
