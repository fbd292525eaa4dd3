"""Stops a run in this process where a test says."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from llm_pretrain.train.loop import Trainer


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Raise a real SIGTERM in this process when a step is done."""
    original = Trainer._after
    target: list[int | None] = [None]

    def after(self: Trainer, step: int, *values: Any) -> None:
        original(self, step, *values)
        if step == target[0]:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_after", after)
    return lambda step: target.__setitem__(0, step)
