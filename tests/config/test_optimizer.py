"""Which update rules a config may ask for, and what the refusal says."""

from pathlib import Path

import pytest
import yaml

from llm_pretrain.branch.plan import check_plan
from llm_pretrain.config.compose import compose, override
from llm_pretrain.config.groups import conf_dir
from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.config.optimizer_rules import advice
from llm_pretrain.errors import UserError
from llm_pretrain.optim.build import Lengths

PLUS, FREE = "optimizer=schedule_free_plus", "optimizer=schedule_free"
MIX, MUON = "optimizer=ademamix", "optimizer=muon"
ZERO = "engine=deepspeed"


@pytest.mark.parametrize(
    "overrides",
    [
        (FREE,),
        (PLUS, "optimizer.anneal=1B tokens", "optimizer.average_after=100 steps"),
        (MIX, "schedule=cosine"),
        (MUON, "schedule=wsd"),
        ("optimizer.corrected_decay=true",),
        (PLUS, "optimizer.project=1 steps", "model.qk_norm=true", "optimizer.scale_decay=0.1"),
        ("optimizer.project=1000 steps", "optimizer.projected=blocks"),
        (MUON, ZERO),
        (PLUS, "optimizer.project=1 steps", "optimizer.projected=blocks", ZERO),
    ],
)
def test_accepted(overrides: tuple[str, ...]) -> None:
    assert compose(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((PLUS, "schedule=wsd"), "schedule.cooldown.length: '20%' with optimizer=schedule_free_p"),
        ((FREE, "schedule=cosine"), "use schedule=constant"),
        ((FREE, "schedule=inverse_sqrt"), "schedule.main: inverse-sqrt"),
        ((FREE, "schedule=two_stage"), "schedule.stages: "),
        ((PLUS, "experiment=demo"), "optimizer.lr: 0.005 is the experiment's, for another rule"),
        (("experiment=demo", FREE), "1 to 10 times a tuned AdamW's"),
        (("optimizer.alpha=4.0",), "is for optimizer=ademamix; with optimizer=adamw leave it 8.0"),
        ((FREE, "optimizer.beta1=0.8"), "optimizer.beta1: 0.8 is for optimizer=adamw or"),
        ((FREE, "optimizer.polyak_beta=0.5"), "is for optimizer=schedule_free_plus"),
        ((MUON, "optimizer.corrected_decay=true"), "is for optimizer=adamw"),
        (("optimizer.slow_warmup=5 steps",), "leave it 0 steps"),
        ((MIX, "optimizer.slow_warmup=50%"), "use steps or tokens"),
        (("optimizer.project=5 steps",), "model.qk_norm=true"),
        (("optimizer.projected=blocks",), "set optimizer.project"),
        (
            (PLUS, "optimizer.anneal=10 steps", "optimizer.interpolation_end=0.5"),
            "is below interpolation=0.9",
        ),
        ((PLUS, "optimizer.interpolation=0.0"), "optimizer.interpolation"),
    ],
)
def test_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(overrides)
    assert message in str(refused.value)


def test_branches_of_an_average_have_no_cooldown() -> None:
    """Refused by the rule that the branch has, whichever the trunk's is."""
    for trunk, branch in (
        (PLUS, ""),
        ("optimizer=adamw", 'overrides: ["optimizer=schedule_free"],'),
    ):
        for length, refused in (("20%", True), ("0 steps", False)):
            plan = f'plan=[{{at: ["500 steps"], {branch} cooldown: {{length: "{length}"}}}}]'
            config = compose((trunk, plan))
            if refused:
                with pytest.raises(UserError, match=r"plan.0: cooldown.length: '20%' of a branch"):
                    check_plan(config)
            else:
                check_plan(config)
    check_plan(compose((PLUS, 'plan=[{at: ["500 steps"], overrides: ["optimizer=adamw"]}]')))


def test_choosing_a_rule_resets_what_the_others_set() -> None:
    """On a resume too, where options are merged into what the run has."""
    options = sorted((conf_dir() / "optimizer").glob("*.yaml"))
    assert {path.stem for path in options} == {
        *("adamw", "schedule_free", "schedule_free_plus", "ademamix", "muon")
    }
    assert compose(()).optimizer == OptimizerConfig()
    fresh_ones = {path.stem: compose((f"optimizer={path.stem}",)) for path in options}
    for config in fresh_ones.values():
        for second, fresh in fresh_ones.items():
            assert override(config, [f"optimizer={second}"]).optimizer == fresh.optimizer


def test_every_option_has_the_same_fields() -> None:
    fields = {
        frozenset(yaml.safe_load(Path(path).read_text()))
        for path in (conf_dir() / "optimizer").glob("*.yaml")
    }
    assert len(fields) == 1


def test_values_meant_for_another_rule_earn_a_line() -> None:
    (decay,) = advice(compose((PLUS, "optimizer.weight_decay=0.1")))
    assert decay.startswith("optimizer.weight_decay: 0.1")
    assert "20 to 50" in decay
    (rate,) = advice(compose((PLUS, "optimizer.lr=0.001")))
    assert rate.startswith("optimizer.lr: 0.001")
    (warmup,) = advice(compose((MIX, "schedule.total=2000 steps")))
    assert "alpha ends at 0.16" in warmup
    for fine in ((), (PLUS,), (FREE,), (MUON,), (MIX, "optimizer.slow_warmup=1000 steps")):
        assert advice(compose(fine)) == []


def test_lengths() -> None:
    """Counted from step 0; the average begins after the warmup unless it is said."""
    tokens = ("data.global_batch=16", "data.sequence_length=64", "schedule.warmup=40 steps")
    config = compose((PLUS, "optimizer.anneal=10240 tokens", *tokens))
    assert Lengths.of(config) == Lengths(average_after=40, anneal=10)
    config = compose((PLUS, "optimizer.average_after=70 steps", *tokens))
    assert Lengths.of(config) == Lengths(average_after=70)
    config = compose((PLUS, "schedule.warmup=0 steps"))
    assert Lengths.of(config) == Lengths()
    project = ("optimizer.project=2048 tokens", "optimizer.projected=blocks")
    assert Lengths.of(compose((MIX, *project, *tokens))) == Lengths(
        average_after=40, slow_warmup=100_000, project=2
    )
