"""Weights & Biases and TensorBoard, which may fail without stopping a run."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from llm_pretrain.config.schema import TrainConfig, to_dict


class Sink(Protocol):
    """Takes rows of metrics."""

    def log(self, row: dict[str, Any]) -> None:
        """Record one row."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class Loggers:
    """All sinks of a run; the first failure of a sink is said, and it is left out from then on."""

    def __init__(self, config: TrainConfig, folder: Path, say: Callable[[str], None]) -> None:
        self._say = say
        self._sinks: dict[str, Sink] = {}
        if config.logger.wandb:
            self._guard("wandb", lambda: self._add("wandb", _Wandb(config, folder)))
        if config.logger.tensorboard:
            self._guard("tensorboard", lambda: self._add("tensorboard", _TensorBoard(folder)))

    def log(self, row: dict[str, Any]) -> None:
        """Give a row to every sink."""
        for name, sink in list(self._sinks.items()):
            self._guard(name, partial(sink.log, row))

    def close(self) -> None:
        """Flush every sink."""
        for name, sink in list(self._sinks.items()):
            self._guard(name, sink.close)

    def _add(self, name: str, sink: Sink) -> None:
        self._sinks[name] = sink

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        # Whatever a third-party logger raises, a run of a thousand GPUs must not end for it.
        except Exception as error:  # noqa: BLE001
            self._sinks.pop(name, None)
            self._say(f"logger {name} failed and is off for this session: {error}")


class _Wandb:
    def __init__(self, config: TrainConfig, folder: Path) -> None:
        import wandb  # noqa: PLC0415  (half a second that runs without it should not pay)

        keyed = bool(os.environ.get("WANDB_API_KEY")) or _has_netrc_key()
        self._run = wandb.init(
            project=config.logger.project,
            name=config.run.name,
            dir=str(folder),
            config=to_dict(config),
            mode=None if keyed or "WANDB_MODE" in os.environ else "offline",
        )

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(row, step=row["step"])

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (an extra)

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key not in ("step", "tokens"):
                self._writer.add_scalar(key, value, row["step"])

    def close(self) -> None:
        self._writer.close()


def _has_netrc_key() -> bool:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "api.wandb.ai" in netrc.read_text()
