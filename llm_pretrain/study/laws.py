"""Which laws a study fits: one for each kind of result that has enough of them."""

from collections.abc import Mapping

from llm_pretrain.scaling.laws import Laws, fit_or_reason
from llm_pretrain.study.config import StudyConfig, labels
from llm_pretrain.study.results import Found


def chosen(study: StudyConfig) -> str:
    """The name of the results whose law the study is about: study.law, or the first cooldown."""
    cooldowns = [name for method in study.methods.values() for name in method.cooldowns]
    return study.law or [*cooldowns, *labels(study)][0]


def fits(study: StudyConfig, found: Found) -> dict[str, Laws | str]:
    """By the name of the results, the law that the study asks for first; a text says why not."""
    first = chosen(study)
    laws: dict[str, Laws | str] = {}
    for label in [first, *(label for label in labels(study) if label != first)]:
        points = found.points(label)
        if points:
            laws[label] = fit_or_reason(points)
        elif label == first:
            laws[label] = "none of these results has been measured"
    return laws


def refusals(laws: Mapping[str, Laws | str]) -> list[str]:
    """Why there is no law of some results; those with the same reason together."""
    names: dict[str, list[str]] = {}
    for label, law in laws.items():
        if isinstance(law, str):
            names.setdefault(law, []).append(label)
    return [f"No law of {', '.join(labels)}: {why}" for why, labels in names.items()]
