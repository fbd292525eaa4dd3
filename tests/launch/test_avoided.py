"""A node that failed a run is not asked for again when the run is submitted anew."""

from pathlib import Path

import pytest

from launch.profile import sbatch_options
from launch.submit import avoiding
from llm_pretrain.config.compose import compose
from llm_pretrain.runs import Run


@pytest.mark.parametrize(
    ("failed", "asked", "excluded"),
    [
        ({}, None, None),
        ({}, "n[1-2],n7", "n[1-2],n7"),
        ({"a": "n3\n"}, None, "n3"),
        ({"a": "n3\nn1\n", "b": "n3\nn2\n"}, None, "n1,n2,n3"),
        ({"a": "n3\n"}, "n[1-2],n7", "n[1-2],n7,n3"),
    ],
)
def test_the_nodes(
    tmp_path: Path, failed: dict[str, str], asked: str | None, excluded: str | None
) -> None:
    runs = [Run(tmp_path / name) for name in ("a", "b")]
    for name, nodes in failed.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "failed-nodes").write_text(nodes)
    option = [f'cluster.slurm.sbatch.exclude="{asked}"'] if asked else []
    cluster = avoiding(compose(["cluster=h100_ib", *option]).cluster, runs)
    assert sbatch_options(cluster.slurm).get("exclude") == excluded
