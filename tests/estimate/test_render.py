"""What a person reads: nothing cut, nothing empty, and notes that are true of the layout."""

import io
import re

import pytest
from rich.console import Console

from llm_pretrain.config.compose import compose
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.estimate.plan import Estimate, estimate
from llm_pretrain.estimate.render import show


def shown(*overrides: str, width: int = 120) -> str:
    """What a person sees on a terminal of some width."""
    config = compose([*overrides, "data.sequence_length=512"], name="estimate")
    return printed(estimate(config), config, width)


def printed(found: Estimate, config: TrainConfig, width: int = 120) -> str:
    """An estimate as text."""
    text = io.StringIO()
    show(found, config, Console(file=text, width=width))
    return text.getvalue()


def test_nothing_is_cut_on_a_narrow_terminal() -> None:
    config = compose(["model=llama_1b", "data.sequence_length=512"], name="estimate")
    found = estimate(config)
    narrow, wide = (printed(found, config, width) for width in (50, 200))
    assert sorted(filter(str.isalnum, narrow)) == sorted(filter(str.isalnum, wide))
    assert "…" not in narrow


@pytest.mark.parametrize(
    ("engine", "batch"),
    [("engine.shard=1", 32), ("engine.tensor=2", 32), ("engine=deepspeed", 32)],
)
def test_every_row_says_something(engine: str, batch: int) -> None:
    for model in ("model=demo", "model=llama_1b"):
        text = shown(model, engine, f"data.global_batch={batch}")
        rows = [line for line in text.splitlines() if line.startswith("│")]
        assert len(rows) > 10
        for row in rows:
            # What is measured stands last: two sizes, or seconds (and bytes), or a rate.
            cells = [cell.strip() for cell in row.strip("│").split("│")][-2:]
            figures = [
                float(n) for n in re.findall(r"\d[\d.e-]*", " ".join(cells).replace(",", ""))
            ]
            assert any(figures) or not figures, row


def test_copies_are_not_called_shards() -> None:
    plain = shown("model=llama_1b", "engine.shard=1", "data.global_batch=32")
    assert "data-parallel all-reduce" in plain
    assert "HSDP" not in plain
    assert "FSDP all-gather" not in plain


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (["engine=fsdp"], "passes of an update gathers parameters and reduces gradients;"),
        (["engine.accumulate=whole"], "passes of an update gathers parameters;"),
        (["engine.shard=1"], ""),
        (["engine=deepspeed", "engine.zero_stage=1"], ""),
        (["engine=deepspeed", "engine.zero_stage=2"], "passes of an update reduces gradients;"),
        (
            ["engine=deepspeed", "engine.zero_stage=3"],
            "passes of an update gathers parameters and reduces gradients;",
        ),
    ],
)
def test_the_note_about_passes_is_about_what_passes_repeat(engine: list[str], words: str) -> None:
    ask = ("model=demo", "data.sequence_length=512", "data.global_batch=16", *engine)
    one, four = (
        compose([*ask, more], name="estimate")
        for more in ("data.micro_batch=4", "data.micro_batch=1")
    )
    found = estimate(four)
    sent = [sum(flow.bytes for flow in e.flows) for e in (estimate(one), found)]
    text = " ".join(printed(found, four).split())
    assert ("passes of an update" in text) == bool(words) == (sent[1] > 1.01 * sent[0])
    assert words in text


def test_float32_attention_of_grouped_heads_is_told() -> None:
    ask = ("model=demo", "data.global_batch=16")
    scores = 4 * 4 * 4 * 512**2 / 2**30  # float32, sequences of a micro-batch, heads, positions
    text = " ".join(shown(*ask, "precision=fp32", "model.kv_heads=2").split())
    assert f"all scores are kept, {scores:.2f} GiB in each block" in text
    assert "scores" not in shown(*ask, "precision=fp32")
    assert "scores" not in shown(*ask, "model.kv_heads=2")
