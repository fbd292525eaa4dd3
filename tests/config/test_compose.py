"""Composition, and what is said about input that cannot work."""

from dataclasses import replace
from pathlib import Path

import pytest

from llm_pretrain.config import schema
from llm_pretrain.config.compose import (
    compose,
    compose_branch,
    compose_command,
    dump,
    override,
    read,
)
from llm_pretrain.config.groups import groups
from llm_pretrain.errors import UserError
from llm_pretrain.study.config import StudyArgs


def test_the_demo_as_the_readme_overrides_it() -> None:
    config = compose(["experiment=demo", "optimizer.lr=1e-3", 'schedule.warmup="50 steps"'])
    assert config.optimizer.lr == 1e-3
    assert config.run.dir == "runs/demo"
    assert str(config.schedule.warmup) == "50 steps"


def test_every_option_of_every_group_composes() -> None:
    for group, options in groups().items():
        for option in options:
            assert _composed(f"{group}={option}")


def _composed(choice: str) -> object:
    """What the command that knows this group makes of it."""
    if choice.startswith("study="):
        return compose_command("study", [choice], StudyArgs).study
    return compose([choice])


def test_config_yaml_gives_the_same_config_back(tmp_path: Path) -> None:
    config = compose(["experiment=demo", "schedule=cosine", "data.sources.stdlib.limit=5"])
    (tmp_path / "config.yaml").write_text(dump(config))
    assert read(tmp_path / "config.yaml") == config


def test_every_field_has_a_docstring() -> None:
    classes = [c for c in vars(schema).values() if hasattr(c, "__pydantic_fields__")]
    assert len(classes) > 15
    for cls in classes:
        own = cls.__annotations__
        for name, info in cls.__pydantic_fields__.items():
            nested = hasattr(schema.__dict__.get(str(own.get(name))), "__pydantic_fields__")
            assert info.description or name not in own or nested or _is_group(info), (
                f"{cls.__name__}.{name}"
            )


def _is_group(info: object) -> bool:
    return hasattr(getattr(info, "annotation", None), "__pydantic_fields__")


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["optimizer.lrr=1"], ["optimizer.lrr", "did you mean 'optimizer.lr'"]),
        (["optimzer.lr=1"], ["optimzer.lr", "did you mean 'optimizer'"]),
        (["model=dmo"], ["model=dmo", "did you mean 'demo'"]),
        (["experiment=dem"], ["experiment=dem", "did you mean 'demo'"]),
        (["schedule.cooldown.shape=liner"], ["schedule.cooldown.shape", "'linear'"]),
        (["schedule.total=500"], ["schedule.total", "500", "unit"]),
        (["schedule.total=-5 steps"], ["schedule.total", "-5 steps"]),
        (["schedule.warmup=2000 steps"], ["schedule.warmup", "2000", "at most 1000"]),
        (["schedule.cooldown.length=2000 steps"], ["schedule.cooldown.length", "at most 950"]),
        (["schedule.cooldown.shape=exponential"], ["schedule.cooldown.floor", "above 0"]),
        (["data.global_batch=7"], ["data.global_batch", "7", "micro_batch"]),
        (["optimizer.lr=abc"], ["optimizer.lr", "'abc'", "number"]),
        (["optimizer.lr=-1"], ["optimizer.lr", "-1", "greater than 0"]),
        (["optimizer.lr=.nan"], ["optimizer.lr"]),
        (["optimizer.lr=inf"], ["optimizer.lr"]),
        (["run.seed=1.5"], ["run.seed", "1.5", "integer"]),
        (["model.kv_heads=3"], ["model.kv_heads", "3", "[1, 2, 4]"]),
        (["model.vocab_size=300"], ["model.vocab_size", "300", "2048"]),
        (["data.sources.stdlib.wieght=2"], ["wieght", "did you mean", "weight"]),
        (["data.sources.web={kind: text}"], ["data.sources.web.path"]),
        (["data.sources.web={kid: text}"], ["data.sources.web.kid", "kind"]),
        (["plan=[{at: [5 steps], ends: [6 steps]}]"], ["plan.0", "either at"]),
        (["plan=[{at: [20%]}]"], ["plan.0.at", "20%"]),
        (["logger.every=0 steps"], ["logger.every", "at least 1 step"]),
        (["foo"], ["foo", "key=value"]),
        (["optimizer.lr=1e-3,2e-3"], ["optimizer.lr", "--multirun"]),
        (["+optimizer.velocity=1"], ["optimizer.velocity", "unknown key"]),
    ],
)
def test_bad_input_names_field_value_and_remedy(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose(overrides)
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        compose(["optimizer.lr=-1", "schedule.total=5", "model.layers=0"])
    assert len(str(error.value).splitlines()) == 3


def test_a_branch_takes_its_own_keys_and_passes_on_the_rest() -> None:
    asked = compose_branch(
        ["parent=runs/a", "at=[300 steps, 2B tokens]", "cooldown.shape=linear", "optimizer.lr=1e-4"]
    )
    assert asked.parent == "runs/a"
    assert [str(d) for d in asked.at] == ["300 steps", "2B tokens"]
    assert asked.overrides == ["optimizer.lr=1e-4"]
    assert (str(asked.cooldown.length), asked.cooldown.shape) == ("20%", "linear")
    with pytest.raises(UserError, match=r"did you mean 'optimizer.lr'"):
        compose_branch(["parent=runs/a", "optimizer.lrr=1"])


def test_override_of_a_resolved_config() -> None:
    config = compose(["experiment=demo"])
    changed = override(config, ["schedule=cosine", "data.sources.stdlib.weight=2"])
    assert changed.schedule.cooldown.length == "rest"
    assert str(changed.schedule.warmup) == "50 steps"
    assert changed.data.sources["stdlib"].weight == 2
    assert changed.model == config.model
    with pytest.raises(UserError, match="composes a new run"):
        override(config, ["experiment=demo"])


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("width: 256\n")
    assert compose(["model=wide"], tmp_path).model.width == 256
    with pytest.raises(UserError, match="did you mean 'wide'"):
        compose(["model=wid"], tmp_path)
    config = compose(["experiment=demo"])
    assert override(config, ["model=wide"], tmp_path).model == replace(config.model, width=256)
    with pytest.raises(UserError, match="model=wide: unknown"):
        override(config, ["model=wide"])
    assert compose_branch(["parent=a", "model=wide"], tmp_path).overrides == ["model=wide"]
