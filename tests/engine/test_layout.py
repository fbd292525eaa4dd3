"""Which rank does what, against the coordinates that torch's device mesh gives the same ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh

# A group of one process that believes in the others; there is no public way to ask for a mesh.
from torch.testing._internal.distributed.fake_pg import FakeStore

from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.layout import Layout, passes
from llm_pretrain.errors import UserError

factor = st.integers(1, 4)
layouts = st.builds(Layout, factor, factor, factor, factor)


@contextmanager
def pretend(rank: int, size: int) -> Iterator[None]:
    """This process as one rank of many."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "layout", [Layout(2, 3, 2, 2), Layout(shard=4), Layout(2, tensor=3), Layout(1, 2, 3, 1)]
)
def test_ranks_are_numbered_as_in_a_device_mesh(layout: Layout) -> None:
    sides = (layout.replicate, layout.shard, layout.context, layout.tensor)
    for rank in range(layout.size):
        with pretend(rank, layout.size):
            coordinate = init_device_mesh("cpu", sides).get_coordinate()
        assert coordinate is not None
        replicate, shard, context, _ = coordinate
        assert layout.data_rank(rank) == replicate * layout.shard + shard
        assert layout.context_rank(rank) == context


@given(layouts)
def test_every_part_of_a_sequence_has_the_same_ranks(layout: Layout) -> None:
    cells = [(layout.data_rank(r), layout.context_rank(r)) for r in range(layout.size)]
    assert set(cells) == {(d, c) for d in range(layout.data_size) for c in range(layout.context)}
    assert all(cells.count(cell) == layout.tensor for cell in cells)
    assert cells == sorted(cells)


@given(layouts)
def test_a_grid_is_found_from_any_fields_that_decide_it(layout: Layout) -> None:
    inner = {"context": layout.context, "tensor": layout.tensor}
    both = EngineConfig(replicate=layout.replicate, shard=layout.shard, **inner)
    copies = EngineConfig(replicate=layout.replicate, **inner)
    shards = EngineConfig(shard=layout.shard, **inner)
    for engine in (both, copies, shards):
        assert Layout.of(engine, layout.size) == layout
    assert Layout.of(EngineConfig(), layout.size) == Layout(shard=layout.size)


@given(layouts, st.integers(1, 300))
def test_other_numbers_of_ranks_are_refused(layout: Layout, size: int) -> None:
    engine = EngineConfig(**asdict(layout))
    if size == layout.size:
        return
    with pytest.raises(UserError) as error:
        Layout.of(engine, size)
    for word in (
        *(f"replicate={layout.replicate}", f"shard={layout.shard}", f"tensor={layout.tensor}"),
        *(f"context={layout.context}", f"{size} ranks", f"start {layout.size}, or set"),
    ):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "engine,size,words",
    [
        (EngineConfig(tensor=2), 3, ["tensor=2", "3 ranks", "a multiple of 2"]),
        (EngineConfig(tensor=4), 2, ["tensor=4", "2 ranks", "a multiple of 4"]),
        (EngineConfig(replicate=2), 3, ["replicate=2", "3 ranks", "a multiple of 2"]),
        (EngineConfig(shard=8, context=2), 8, ["shard=8", "context=2", "a multiple of 16"]),
    ],
)
def test_ranks_that_make_no_grid(engine: EngineConfig, size: int, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Layout.of(engine, size)
    assert all(word in str(error.value) for word in words), error.value


@given(layouts, st.integers(1, 64), st.integers(1, 64))
def test_passes_cut_the_batch_without_a_rest(layout: Layout, batch: int, micro: int) -> None:
    data = DataConfig(global_batch=batch, micro_batch=micro)
    rows, rest = divmod(batch, layout.data_size)
    if rest or rows % min(micro, rows):
        with pytest.raises(UserError, match=str(batch if rest else micro)):
            passes(data, layout)
    else:
        assert passes(data, layout) * min(micro, rows) * layout.data_size == batch
