"""A study of many branches whose runs exist without having been trained."""

from pathlib import Path

import yaml

from llm_pretrain.checkpoint.store import CheckpointStore
from llm_pretrain.config.compose import compose_command
from llm_pretrain.records import new_record
from llm_pretrain.runs import Run
from llm_pretrain.study.config import StudyArgs
from llm_pretrain.study.expand import Stem, stems
from tests.branch.branch_family import CODE, create


def describe(place: Path, trunks: int, branches: int) -> list[str]:
    """Arguments of `study` for one with so many trunks, and branches from each, in `place`/many."""
    conf = place / "conf"
    (conf / "study").mkdir(parents=True, exist_ok=True)
    content = {
        "name": "many",
        "root": str(place),
        "overrides": ["experiment=demo"],
        "sizes": {f"s{i}": {"overrides": [f"model.ffn={384 + 16 * i}"]} for i in range(trunks)},
        "horizons": [f"{200 + 50 * i} steps" for i in range(branches)],
        "methods": {"constant": {"cooldowns": {"wsd": {"length": "20%", "shape": "1-sqrt"}}}},
    }
    (conf / "study" / "many.yaml").write_text(yaml.safe_dump(content))
    return ["study=many", f"--config-dir={conf}"]


def make(place: Path, trunks: int, branches: int) -> list[Stem]:
    """Its trunks with every checkpoint that is needed, and every other branch, as finished."""
    describe(place, trunks, branches)
    asked = compose_command("study", ["study=many"], StudyArgs, place / "conf")
    found = stems(asked.study, asked.overrides)
    for stem in found:
        record = new_record(stem.config.run.name, total=stem.schedule.total, code=CODE)
        trunk = Run.create(stem.config, record)
        trunk.update(state="finished", step=stem.schedule.total)
        for branch in stem.branches:
            CheckpointStore(trunk.checkpoints).path(branch.start).mkdir(exist_ok=True)
        for branch in stem.branches_of(trunk.record.id)[::2]:
            create(trunk, branch, state="finished")
    return found
