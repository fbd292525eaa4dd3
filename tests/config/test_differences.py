"""Two configs of which one was written before some field existed."""

from llm_pretrain.config.compose import compose
from llm_pretrain.config.diff import completed, differences, trajectory


def test_a_field_that_came_later_had_its_default() -> None:
    now = trajectory(compose(["experiment=demo"]))
    old = {name: value for name, value in now.items() if name != "model.document_mask"}
    assert differences(completed(old), now) == []


def test_and_differs_from_another_value() -> None:
    old = trajectory(compose(["experiment=demo"]))
    del old["model.document_mask"]
    now = trajectory(compose(["experiment=demo", "model.document_mask=true"]))
    assert differences(completed(old), now) == ["model.document_mask: False -> True"]


def test_data_that_was_not_there_is_not_made_up() -> None:
    now = trajectory(compose(["experiment=demo"]))
    old = {name: value for name, value in now.items() if not name.startswith("data.sources")}
    assert all(name.startswith("data.") for name in now.keys() - completed(old).keys())
    assert len(differences(completed(old), now)) == len(now) - len(old) > 0
