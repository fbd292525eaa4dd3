"""Every rule makes the same steps however its parameters are held."""

from pathlib import Path

import pytest

from llm_pretrain.config.layout import Layout
from tests.optim.sharded import RULES, agree
from tests.ranks.functions import run


@pytest.mark.parametrize(
    ("kind", "places", "layout", "names"),
    [
        ("dtensors", "shard", Layout(shard=2), tuple(RULES)),
        ("dtensors", "copies", Layout(replicate=2, shard=2), tuple(RULES)),
        ("dtensors", "tensor", Layout(shard=2, tensor=2), tuple(RULES)),
        ("copied", "", Layout(replicate=2), tuple(RULES)),
        ("pieces", "", Layout(shard=4), tuple(RULES)),
    ],
)
def test_steps_do_not_depend_on_the_layout(
    tmp_path: Path, kind: str, places: str, layout: Layout, names: tuple[str, ...]
) -> None:
    for differences in run(tmp_path, layout, agree, kind, places, names):
        assert len(differences) > len(names)
        for case, worst in differences.items():
            # Twenty steps of float32 add up some roundings of values near 1.
            assert worst < (1e-12 if "float64" in case else 5e-6), case
