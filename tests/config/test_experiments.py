"""The shipped experiments: they compose, and those of the paper are the paper's."""

from pathlib import Path

import pytest

from llm_pretrain.branch.plan import Origin, expand
from llm_pretrain.config.compose import compose
from llm_pretrain.config.groups import groups
from llm_pretrain.schedule.schedule import clock_of

# Peak of the constant rate, and billions of tokens at the ends of the cooldowns, as published.
PAPER = {
    "33m": (1e-3, [0.3, 0.7, 1.0]),
    "53m": (1e-3, [0.4, 0.8, 1.2]),
    "60m": (1e-3, [0.8, 1.3, 1.8]),
    "93m": (1e-3, [1.0, 1.8, 2.6]),
    "124m": (5e-4, [1.5, 2.6, 3.6]),
    "151m": (5e-4, [2.6, 3.8, 5.1]),
    "210m": (5e-4, [3.8, 5.1, 6.4]),
    "360m": (5e-4, [5.1, 7.7, 10.2]),
}


def test_every_experiment_is_known() -> None:
    assert set(groups()["experiment"]) == {"demo", "demo_cosine", *(f"paper/{n}" for n in PAPER)}


@pytest.mark.parametrize("size", PAPER)
def test_the_papers_trunks(size: str) -> None:
    config = compose([f"experiment=paper/{size}"])
    rate, tokens = PAPER[size]
    assert config.optimizer.lr == rate
    assert config.run.name == size
    clock = clock_of(config)
    (spec,) = config.plan
    assert [round(clock.tokens_at(clock.point(end)) / 1e9, 1) for end in spec.ends] == tokens
    branches = expand(Origin(config, "", Path(config.run.dir)), spec)
    assert [branch.end - branch.start for branch in branches] == [
        clock.point(end) // 5 for end in spec.ends
    ]
