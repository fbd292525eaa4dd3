"""The loss predictor on real runs that had no part in the fit, nor their size in its prior."""

import json
from pathlib import Path

import numpy as np
import pytest

from llm_pretrain.predict.angular import AngularLaw
from llm_pretrain.predict.predictor import Predictor
from llm_pretrain.predict.prior import Prior
from llm_pretrain.reanalyse.load import OFFSET, WEIGHT_DECAY, PaperRun, load
from llm_pretrain.reanalyse.priors import curve, finals, observed, pooled
from llm_pretrain.reanalyse.score import score, summarise
from llm_pretrain.reanalyse.splits import splits

HERE = Path(__file__).parent
LARGE = (12, 768)


@pytest.fixture(scope="module")
def runs() -> list[PaperRun]:
    """The excerpt, without the run that diverged."""
    return [run for run in load(HERE / "excerpt.json") if not run.diverged]


@pytest.fixture(scope="module")
def prior() -> Prior:
    """Pooled over the sizes other than 124M."""
    return Prior.from_dict(json.loads((HERE / "prior_without_124m.json").read_text()))


def errors(predictor: Predictor, runs: list[PaperRun]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted less measured final losses, and whether each is in its interval."""
    found = predictor.predict_all([(run.history, None) for run in runs])
    measured = [run.finals.losses[-1] for run in runs]
    held = [p.low <= m <= p.high for p, m in zip(found, measured, strict=True)]
    return np.array([p.loss - m for p, m in zip(found, measured, strict=True)]), np.array(held)


def test_twice_the_length_and_other_shapes(runs: list[PaperRun], prior: Prior) -> None:
    """From cooldowns and the trunk up to 25k steps: 35k and 50k, 1-sqrt, cosine and constant."""
    own = [run for run in runs if run.size == LARGE and run.peak == 1e-3 and run.typed]
    trunk = next(run for run in own if run.kind == "trunk")
    near = [run for run in own if run.kind == "cooldown" and run.total <= 25_000]
    far = [run for run in own if run.total > 25_000]
    known = [o for run in near for o in finals(run)] + curve(trunk, 25_000)
    predictor = Predictor.fit(known, weight_decay=WEIGHT_DECAY, offset=OFFSET, prior=prior)
    found, held = errors(predictor, far)
    assert (len(near), len(far)) == (7, 10)
    assert {run.kind for run in far} == {"trunk", "cooldown", "cosine"}
    assert np.abs(found).mean() < 0.0025
    assert np.abs(found).max() < 0.006
    assert held.mean() >= 0.7


def test_twice_the_rate(runs: list[PaperRun], prior: Prior) -> None:
    own = [run for run in runs if run.size == LARGE and run.peak == 1e-3]
    other = [run for run in runs if run.size == LARGE and run.peak == 2e-3]
    predictor = Predictor.fit(observed(own), weight_decay=WEIGHT_DECAY, offset=OFFSET, prior=prior)
    found, held = errors(predictor, other)
    assert len(found) == 3
    assert np.abs(found).mean() < 0.004
    assert held.mean() >= 0.6


def test_splits_never_share_a_loss(runs: list[PaperRun]) -> None:
    found = splits(runs)
    assert {s.title[:2] for s in found} >= {"H1", "H2", "H4", "H5", "L1"}
    for split in found:
        fitted = {(id(o.case.history), o.case.step) for o in split.fitted if o.kind == "final"}
        held_out = {(id(o.case.history), o.case.step) for o in split.held_out}
        assert not fitted & held_out


def test_summaries_add_up(runs: list[PaperRun], prior: Prior) -> None:
    some = [s for s in splits(runs) if s.size == LARGE and s.title[0] == "H"]
    scores = [score(AngularLaw(), split, prior) for split in some]
    found = {s.title: s for s in summarise(scores)}
    for title, summary in found.items():
        sizes = np.concatenate([np.abs(s.errors) for s in scores if s.split.title == title])
        assert summary.count == len(sizes)
        assert summary.mean == pytest.approx(sizes.mean())
        assert summary.worst == sizes.max()
        assert 0 <= summary.held <= 1
    assert found["H2 longer, trunk to 25k"].mean < 0.0025


def test_a_prior_leaves_a_size_out(runs: list[PaperRun]) -> None:
    """Pooling 60M alone must not depend on the 124M runs."""
    law = AngularLaw()
    small = [run for run in runs if run.size == (10, 512)]
    with_both = pooled(law, [run for run in runs if run.size in ((10, 512), LARGE)], without=LARGE)
    alone = pooled(law, small)
    np.testing.assert_array_equal(with_both.mean, alone.mean)
    np.testing.assert_array_equal(with_both.covariance, alone.covariance)
