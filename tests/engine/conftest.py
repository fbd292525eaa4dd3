"""The fleet that trains the layouts."""

import functools
from pathlib import Path

import pytest

from tests.engine.layouts import Fleet, Layout
from tests.ranks.commands import Zygote


@pytest.fixture(scope="module")
def fleet(
    request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Fleet:
    """Trains each distinct run of a test file once."""

    @functools.cache
    def zygote(deepspeed: bool) -> Zygote:
        found: Zygote = request.getfixturevalue("deepspeed_zygote" if deepspeed else "zygote")
        return found

    def of(layout: Layout) -> Zygote:
        return zygote(layout.deepspeed)

    return Fleet(tmp_path_factory.mktemp("fleet"), cache, of)
