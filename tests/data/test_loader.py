"""The loader: every token when it should be seen, whatever the world size and the lineage."""

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pretrain.config.data import DataConfig, SourceConfig
from llm_pretrain.config.schedule import ScheduleConfig
from llm_pretrain.config.schema import Segment, TrainConfig
from llm_pretrain.data.loader import Loader, RoundRobin
from llm_pretrain.data.prepare import Prepared, PreparedSource
from llm_pretrain.data.shards import TokenStream, write_shard
from llm_pretrain.errors import UserError

TAG = 10**14
"""Virtual tokens are source * TAG + position, so a row tells where it comes from."""


class Virtual:
    """A source of any size that occupies no memory, and counts how it is read."""

    def __init__(self, source: int, tokens: int) -> None:
        self.source, self.tokens = source, tokens
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.tokens

    def read(self, start: int, count: int) -> np.ndarray:
        assert 0 <= start <= start + count <= self.tokens
        self.reads.append(count)
        return np.arange(start, start + count) + self.source * TAG


def prepared(sizes: dict[str, int], held_out: dict[str, int] | None = None) -> Prepared:
    sources = {
        name: PreparedSource(
            Virtual(i, size), Virtual(i, (held_out or {}).get(name, 50)), f"print of {name}"
        )
        for i, (name, size) in enumerate(sizes.items())
    }
    return Prepared(sources, cast(Any, None))


def data_of(weights: dict[str, float], length: int, batch: int) -> DataConfig:
    return DataConfig(
        sequence_length=length,
        global_batch=batch,
        micro_batch=batch,
        sources={name: SourceConfig(weight=weight) for name, weight in weights.items()},
    )


def config_of(data: DataConfig, past: list[tuple[int, DataConfig]] | None = None) -> TrainConfig:
    segments = [
        Segment(run="r", until=until, lr=1.0, schedule=ScheduleConfig(), data=old)
        for until, old in past or []
    ]
    return TrainConfig(data=data, past=segments)


def loader(weights: dict[str, float], sizes: dict[str, int], length: int, batch: int) -> Loader:
    return Loader(config_of(data_of(weights, length, batch)), prepared(sizes))


def origins(batch: np.ndarray, length: int) -> list[tuple[int, int]]:
    """(source, sequence) of each row, after checking that the row is that sequence."""
    first = batch[:, 0]
    source, position = first // TAG, first % TAG
    assert np.array_equal(batch, first[:, None] + np.arange(length + 1))
    assert not (position % length).any()
    return list(zip(source.tolist(), (position // length).tolist(), strict=True))


@pytest.mark.parametrize("surplus", [1, 2, 7])
def test_an_epoch_shows_every_sequence_once(surplus: int) -> None:
    length, count, batch = 7, 37, 5
    made = loader({"a": 1.0}, {"a": count * length + surplus}, length, batch)
    rows = [origin for step in range(60) for origin in origins(made.batch(step), length)]
    epochs = [rows[i : i + count] for i in range(0, len(rows) - count, count)]
    assert len(epochs) > 5
    for epoch in epochs:
        assert sorted(epoch) == [(0, i) for i in range(count)]
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each in an order of its own


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_all_ranks_together_see_the_same(world: int) -> None:
    made = loader({"a": 3.0, "b": 1.0}, {"a": 5000, "b": 700}, 8, 24)
    for step in (0, 1, 17, 1000):
        parts = [made.batch(step, rank, world) for rank in range(world)]
        assert {part.shape for part in parts} == {(24 // world, 9)}
        assert np.array_equal(np.concatenate(parts), made.batch(step))
        assert parts[0].dtype == np.int64


def test_world_must_divide_the_batch() -> None:
    made = loader({"a": 1.0}, {"a": 500}, 8, 24)
    with pytest.raises(UserError, match=r"data\.global_batch: 24"):
        made.batch(0, 0, 5)
    for rank in (-1, 4):
        with pytest.raises(ValueError, match="rank"):
            made.batch(0, rank, 4)


def test_batches_are_pure() -> None:
    made = loader({"a": 1.0, "b": 2.0}, {"a": 500, "b": 900}, 8, 6)
    forward = [made.batch(step) for step in range(20)]
    again = loader({"a": 1.0, "b": 2.0}, {"a": 500, "b": 900}, 8, 6)
    for step in reversed(range(20)):
        assert np.array_equal(again.batch(step), forward[step])
        made.batch(step)[:] = -1  # a batch belongs to the caller


@st.composite
def lineages(draw: st.DrawFn) -> tuple[dict[str, int], list[tuple[int, DataConfig]], DataConfig]:
    names = ["a", "b", "c"]
    sizes = {name: draw(st.integers(60, 400)) for name in names}

    def stretch() -> DataConfig:
        chosen = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        weights = {name: draw(st.sampled_from([0.1, 0.5, 1.0, 2.0])) for name in chosen}
        return data_of(weights, draw(st.sampled_from([3, 4, 8])), draw(st.sampled_from([2, 5, 6])))

    past, until = [], 0
    for _ in range(draw(st.integers(0, 3))):
        until += draw(st.integers(1, 12))
        past.append((until, stretch()))
    return sizes, past, stretch()


@settings(max_examples=60, deadline=None)
@given(lineage=lineages())
def test_a_branch_goes_on_where_counting_by_hand_says(
    lineage: tuple[dict[str, int], list[tuple[int, DataConfig]], DataConfig],
) -> None:
    sizes, past, data = lineage
    tokens = dict.fromkeys(sizes, 0)
    stretches = [*past, ((past[-1][0] if past else 0) + 10, data)]
    begin = 0
    for i, (until, stretch) in enumerate(stretches):
        length, names = stretch.sequence_length, list(sizes)
        made = Loader(config_of(stretch, past[:i]), prepared(sizes))
        assert made.begin == begin
        seen: dict[str, list[int]] = {name: [] for name in names}
        for step in range(begin, until):
            for source, sequence in origins(made.batch(step), length):
                seen[names[source]].append(sequence)
        for name, sequences in seen.items():
            # The order of a source is what a run of that source alone would see.
            alone = loader({name: 1.0}, sizes, length, 1)
            start = -(-tokens[name] // length)
            expected = [
                origins(alone.batch(k), length)[0][1] for k in range(start, start + len(sequences))
            ]
            assert sequences == expected
            tokens[name] += len(sequences) * length
        begin = until


def test_a_branch_that_changes_nothing_repeats_its_parent() -> None:
    sizes = {"a": 900, "b": 400}
    data = data_of({"a": 0.7, "b": 0.31}, 4, 6)
    trunk = Loader(config_of(data), prepared(sizes))
    branch = Loader(config_of(data, [(5, data), (11, data)]), prepared(sizes))
    assert branch.begin == 11
    assert branch.fingerprint() == trunk.fingerprint()
    for step in range(11, 40):
        assert np.array_equal(branch.batch(step), trunk.batch(step))
    with pytest.raises(ValueError, match="step 10"):
        branch.batch(10)


def test_a_branch_with_another_batch_sees_the_sequences_of_its_parent_in_order() -> None:
    sizes = {"a": 900, "b": 400}
    weights = {"a": 0.7, "b": 0.31}
    small, large = data_of(weights, 4, 6), data_of(weights, 4, 21)
    trunk = Loader(config_of(small), prepared(sizes))
    branch = Loader(config_of(large, [(7, small)]), prepared(sizes))
    expected = np.concatenate([trunk.batch(step) for step in range(7, 7 + 7)])
    assert np.array_equal(np.concatenate([branch.batch(7), branch.batch(8)]), expected)


def test_within_an_epoch_nothing_repeats_across_a_change_of_weights_and_batch() -> None:
    sizes = {"a": 100 * 4 + 1, "b": 100 * 4 + 1}
    old, new = data_of({"a": 3.0, "b": 1.0}, 4, 8), data_of({"b": 4.0, "a": 1.0}, 4, 5)
    trunk = Loader(config_of(old), prepared(sizes))
    branch = Loader(config_of(new, [(9, old)]), prepared(sizes))
    rows = [o for step in range(9) for o in origins(trunk.batch(step), 4)]
    rows += [o for step in range(9, 20) for o in origins(branch.batch(step), 4)]
    assert len(set(rows)) == len(rows) == 9 * 8 + 11 * 5


def test_seed_source_length_and_epoch_shuffle_apart() -> None:
    sizes = {"a": 8 * 64 + 1, "b": 8 * 64 + 1}
    base = config_of(data_of({"a": 1.0}, 8, 64))
    run = dataclasses.replace(base.run, seed=1)
    orders = [
        origins(Loader(c, prepared(sizes)).batch(step), c.data.sequence_length)
        for c, step in (
            (base, 0),
            (base, 1),
            (dataclasses.replace(base, run=run), 0),
            (config_of(data_of({"b": 1.0}, 8, 64)), 0),
            (config_of(data_of({"a": 1.0}, 4, 64)), 0),
        )
    ]
    plain = [tuple(sequence for _, sequence in order) for order in orders]
    assert len(set(plain)) == len(plain)


def test_memory_does_not_grow_with_the_number_of_sequences() -> None:
    def peak(tokens: int) -> int:
        tracemalloc.start()
        made = loader({"a": 2.0, "b": 1.0}, {"a": tokens, "b": tokens}, 64, 16)
        for step in range(3):
            made.batch(step)
        made.validation_batch(0, 0)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(10**6)  # whatever is imported or cached on first use
    assert abs(peak(10**12) - peak(10**6)) < 8192


def test_a_far_step_reads_as_little_as_the_first() -> None:
    sources = prepared({"a": 10**12})
    made = Loader(config_of(data_of({"a": 1.0}, 64, 16)), sources)
    virtual = cast(Virtual, sources.sources["a"].train)
    for step in (0, 10**9, 10**12):  # the last is far beyond the first epoch
        virtual.reads.clear()
        made.batch(step, 1, 2)
        assert virtual.reads == [65] * 8


def test_held_out_sequences_alternate_between_sources() -> None:
    held_out = {"a": 4 * 5 + 1, "b": 4 * 2 + 4, "c": 4}
    made = Loader(
        config_of(data_of({"a": 1.0, "b": 1.0, "c": 9.0}, 4, 2)),
        prepared(dict.fromkeys(held_out, 1000), held_out),
    )
    assert made.validation_sequences(100) == 7
    assert made.validation_sequences(3) == 3
    everything = made.validation_batch(0, 7)
    assert origins(everything, 4) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 3), (0, 4)]
    assert np.array_equal(made.validation_batch(2, 3), everything[2:5])
    assert made.validation_batch(7, 0).shape == (0, 5)
    for start, count in ((0, 8), (-1, 2), (7, 1), (3, -1)):
        with pytest.raises(ValueError, match="held-out"):
            made.validation_batch(start, count)


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_round_robin_is_taking_turns(lengths: list[int]) -> None:
    expected = [
        (i, turn) for turn in range(max(lengths)) for i, n in enumerate(lengths) if n > turn
    ]
    turns = RoundRobin(lengths)
    assert [turns.locate(i) for i in range(turns.total)] == expected


def test_fingerprint_is_equal_exactly_when_batches_are() -> None:
    sizes = {"a": 900, "b": 400}
    data = data_of({"a": 1.0, "b": 2.0}, 4, 6)
    base = config_of(data)

    def fingerprint(config: TrainConfig, source: Prepared | None = None) -> str:
        return Loader(config, source or prepared(sizes)).fingerprint()

    same = [
        config_of(data_of({"a": 2.0, "b": 4.0}, 4, 6)),
        dataclasses.replace(base, data=dataclasses.replace(data, workers=7, micro_batch=1)),
        config_of(data, [(6, data)]),
    ]
    assert {fingerprint(config) for config in same} == {fingerprint(base)}
    other_text = prepared(sizes)
    other_text.sources["a"] = dataclasses.replace(other_text.sources["a"], fingerprint="other")
    different = [
        fingerprint(base, other_text),
        *(
            fingerprint(config)
            for config in (
                base,
                config_of(data_of({"a": 1.0, "b": 3.0}, 4, 6)),
                config_of(data_of({"b": 2.0, "a": 1.0}, 4, 6)),
                config_of(data_of({"a": 1.0}, 4, 6)),
                config_of(data_of({"a": 1.0, "b": 2.0}, 8, 6)),
                config_of(data_of({"a": 1.0, "b": 2.0}, 4, 8)),
                config_of(data, [(5, data_of({"a": 1.0}, 4, 6))]),
                config_of(data, [(6, data_of({"a": 1.0}, 4, 6))]),
                config_of(data, [(6, data_of({"a": 1.0, "b": 2.0}, 4, 8))]),
                dataclasses.replace(base, run=dataclasses.replace(base.run, seed=5)),
            )
        ),
    ]
    assert len(set(different)) == len(different)


def test_reads_token_files_across_shards(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 60_000, 1001)
    for i, part in enumerate(np.array_split(tokens, 7)):
        write_shard(tmp_path / f"{i}.ds", [part], "t", 2)
    stream = TokenStream(tmp_path)
    source = PreparedSource(stream, stream, "f")
    made = Loader(config_of(data_of({"a": 1.0}, 10, 100)), Prepared({"a": source}, cast(Any, None)))
    batch = made.batch(0)  # one epoch: 100 sequences
    by_start = {tuple(row) for row in batch.tolist()}
    assert by_start == {tuple(tokens[i * 10 : i * 10 + 11].tolist()) for i in range(100)}
    assert np.array_equal(made.validation_batch(0, 100)[:, :-1].ravel(), tokens[:1000])
