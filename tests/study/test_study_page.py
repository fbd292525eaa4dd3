"""The page of a study: a section for each law, and together what there is no law of."""

from pathlib import Path

from llm_pretrain.scaling.laws import fit
from llm_pretrain.study.budget import Budget
from llm_pretrain.study.config import MethodConfig, StudyConfig
from llm_pretrain.study.expand import Result
from llm_pretrain.study.page import render
from llm_pretrain.study.results import Found, Measured
from tests.scaling.known import points


def test_laws_and_what_has_none() -> None:
    own = points(noise=0.001)
    measured = tuple(
        Measured(Result(p.size, "wsd", 0, i, i, Path(p.run), "loss", "cooldown"), p.loss, p)
        for i, p in enumerate(own)
    )
    cooldown = MethodConfig(cooldowns={}, along={"wsd": "loss", "cosine": "loss", "swa": "average"})
    page = render(
        StudyConfig(name="known", methods={"constant": cooldown}),
        Found(measured, ()),
        planned=Budget((), {}),
        laws={"wsd": fit(own), "cosine": "too few points", "swa": "too few points"},
        spent=None,
        counting="",
        made="now",
    )
    assert 'id="law-wsd"' in page
    assert 'id="law-cosine"' not in page
    assert "No law of cosine, swa: too few points" in page
