"""What branches will end at, before they run: the predictor, taught by the runs beside them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_pretrain.branch.plan import Branch
from llm_pretrain.branch.reconcile import Predictions
from llm_pretrain.errors import UserError
from llm_pretrain.runs import Run, scan

if TYPE_CHECKING:
    from llm_pretrain.predict.predictor import Prediction

_MOST = 50
"""Branches that are predicted at once, and runs that are learned from: both take a while."""


@dataclass(frozen=True)
class Forecast:
    """Predicted final losses by run directory."""

    predictions: "Mapping[Path, Prediction]"
    reason: str | None = None
    """Why there is none."""
    cautions: Sequence[str] = ()
    """Where an interval may be too narrow."""

    @property
    def recorded(self) -> Predictions:
        """As run.json keeps them."""
        return {path: asdict(found) for path, found in self.predictions.items()}


def forecast(parent: Run, branches: Sequence[Branch]) -> Forecast:
    """The final losses of the first branches that are no other model, data or batch than `parent`.

    The newest finished runs in the same folder teach it, those of other learning rates, too.
    """
    # Fits need scipy, which takes half a second to import; --help does not need it.
    from llm_pretrain.predict.from_runs import identity, measured  # noqa: PLC0415

    try:
        mine = identity(parent.config)
        chosen = [b for b in branches if _trains(b) and identity(b.config) == mine][:_MOST]
        if not chosen:
            return Forecast({})
        known = measured(parent, _finished(parent.path.parent))
        if known.reason:
            return Forecast({}, known.reason)
        predictor = known.predictor()
    except UserError as error:
        return Forecast({}, str(error))
    found = predictor.predict_all([(branch.schedule, None) for branch in chosen])
    doubts = ((branch.path.name, predictor.caution(branch.schedule)) for branch in chosen)
    cautions = [f"{name}: {doubt}" for name, doubt in doubts if doubt]
    return Forecast({b.path: p for b, p in zip(chosen, found, strict=True)}, None, cautions)


def _trains(branch: Branch) -> bool:
    return not branch.problem and not branch.config.mean_of


def _finished(folder: Path) -> Iterator[Run]:
    """The newest finished runs, which are looked for when the first one is asked for."""
    yield from [run for run in scan(folder) if run.status == "finished"][-_MOST:]
