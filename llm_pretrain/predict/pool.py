"""Priors from many models: what their parameters have in common, and how much they vary."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llm_pretrain.predict.fit import Problem, fit
from llm_pretrain.predict.history import Array
from llm_pretrain.predict.observe import lowest
from llm_pretrain.predict.prior import Prior

_ROUNDS = 6


def pool(problems: Sequence[Problem], vague: Prior, spread: float = 0.15) -> Prior:
    """A prior for a further model, from fits to several: expectation maximisation.

    Each round fits every problem with the present prior, then takes as covariance that of the
    modes, plus the mean uncertainty of the fits, plus `spread` of the vague deviations, since the
    models pooled are few and related. Starts from `vague`; the problems' own priors are not used.
    """
    prior = vague
    starts: list[Array | None] = [None for _ in problems]
    floor = np.diag(np.diag(vague.covariance)) * spread**2
    for _ in range(_ROUNDS):
        fits = [
            fit(replace(problem, prior=prior), start)
            for problem, start in zip(problems, starts, strict=True)
        ]
        starts = [found.values for found in fits]
        modes = np.array([found.values[:-1] for found in fits])
        modes[:, 0] -= [lowest(problem.observations) for problem in problems]
        own = np.mean([found.covariance[:-1, :-1] for found in fits], axis=0)
        mean = modes.mean(axis=0)
        between = (modes - mean).T @ (modes - mean) / max(1, len(modes) - 1)
        prior = Prior(vague.names, mean, between + own + floor)
    return prior
