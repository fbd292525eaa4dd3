"""What is known of a law's parameters before a run is seen."""

import json
from dataclasses import dataclass
from importlib import resources

import numpy as np

from llm_pretrain.errors import UserError
from llm_pretrain.predict.history import Array
from llm_pretrain.predict.law import Law

_FILE = "priors.json"


@dataclass(frozen=True)
class Prior:
    """A normal distribution of the parameters of a law."""

    names: tuple[str, ...]
    mean: Array
    """Shape (P,). The floor is relative to the lowest loss seen."""
    covariance: Array
    """Shape (P, P)."""

    def at(self, lowest: float) -> Array:
        """The mean, with the floor in nats."""
        mean = self.mean.copy()
        mean[0] += lowest
        return mean

    def widened(self, deviations: dict[str, float]) -> "Prior":
        """The same with independent deviations added to some parameters."""
        added = np.array([deviations.get(name, 0.0) for name in self.names])
        return Prior(self.names, self.mean, self.covariance + np.diag(added**2))

    def times(self, width: float) -> "Prior":
        """The same with all deviations `width` times as large."""
        return Prior(self.names, self.mean, self.covariance * width**2)

    def to_dict(self) -> dict[str, object]:
        """Plain values, rounded to six digits; `from_dict` gives the prior back."""
        rows = [[float(f"{x:.6g}") for x in row] for row in self.covariance]
        mean = [float(f"{x:.6g}") for x in self.mean]
        return {"names": list(self.names), "mean": mean, "covariance": rows}

    @classmethod
    def from_dict(cls, data: dict[str, list[object]]) -> "Prior":
        """The prior that `to_dict` described."""
        names = tuple(str(name) for name in data["names"])
        return cls(names, np.array(data["mean"], float), np.array(data["covariance"], float))


def shipped(law: Law) -> Prior:
    """The prior of `law` in this package.

    It was pooled (see pool.py) over the seven sizes of the runs of Hägele et al. 2024 and
    Schaipp et al. 2025, 33M to 210M parameters; `llm_pretrain.reanalyse.priors` makes it again.
    Raises UserError for a law without one.
    """
    text = resources.files(__package__ or "").joinpath(_FILE).read_text()
    known = json.loads(text)["laws"]
    if law.title not in known:
        raise UserError(f"law: no prior for '{law.title}'; there is one for {', '.join(known)}")
    prior = Prior.from_dict(known[law.title])
    if prior.names != law.names:
        raise UserError(f"{_FILE}: made for other parameters of '{law.title}'; make it again")
    return prior
