"""What ranks tell each other without a collective, so that one that hangs holds up nobody."""

import json
import os
import time
from collections.abc import Iterable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)

from launch.preflight import host
from launch.preflight.absence import Seen
from llm_pretrain.errors import LostRankError, UserError

_POLL_SECONDS = 0.05
_DECIDED = 0.97
"""Share of the time after which rank 0 has decided everything, or is gone."""


class Board:
    """A store of torch's, kept by rank 0 or by torchrun's agent, and the time that is left.

    Raises LostRankError in every method when the store does not answer: rank 0 or its node is gone.
    """

    def __init__(self, rank: int, size: int, seconds: float, began: float) -> None:
        """`seconds` from `began`, a time of time.monotonic(), are for everything."""
        self.rank, self.size = rank, size
        self._seconds, self._began = seconds, began
        self._store = self.connect(first=True)

    def connect(self, *, first: bool = False) -> Store:
        """Another connection, for a process group: a store serves one call at a time.

        `first`: by rank 0, which keeps the store unless torchrun does.
        """
        if self.size == 1:
            return HashStore()
        host_name, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        keeps = first and self.rank == 0 and os.environ.get(_AGENT) != "True"
        try:
            store = TCPStore(
                host_name,
                port,
                is_master=keeps,
                # It tries for up to twice as long.
                timeout=timedelta(seconds=self.left(0.4)),
                wait_for_workers=False,
            )
        except dist.DistError as error:
            if keeps:
                raise UserError(f"MASTER_PORT={port}: cannot be listened on ({error})") from error
            raise LostRankError(self._lost(f"at {host_name}:{port}")) from error
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"preflight/{attempt}", store)

    def left(self, share: float = 1.0) -> float:
        """Seconds until this share of the time has gone; at least one."""
        return max(1.0, self._began + share * self._seconds - time.monotonic())

    def spent(self) -> float:
        """Seconds since the command's start."""
        return time.monotonic() - self._began

    def begin(self, check: str) -> None:
        """Say which check this rank begins, and where it is."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        seen = Seen(host.node_name(), here, check)
        self._set(f"at/{self.rank}", json.dumps(seen.__dict__))

    def send(self, stage: str, text: str) -> None:
        """Give rank 0 this rank's part of a stage."""
        self._set(f"{stage}/{self.rank}", text)

    def collect(
        self, stage: str, share: float, ranks: Iterable[int] | None = None
    ) -> dict[int, str]:
        """The parts that all ranks, or these, send before this share of the time has gone."""
        until = time.monotonic() + self.left(share)
        wanted = set(range(self.size) if ranks is None else ranks)
        missing = set(wanted)
        while missing and time.monotonic() < until:
            # One question for all, as long as that is enough.
            if self._has(f"{stage}/{rank}" for rank in missing):
                missing = set()
            else:
                time.sleep(_POLL_SECONDS)
        missing = {rank for rank in missing if not self._has([f"{stage}/{rank}"])}
        return {rank: self._get(f"{stage}/{rank}") for rank in sorted(wanted - missing)}

    def seen(self) -> dict[int, Seen]:
        """Where ranks are and what they began last; without those that never began."""
        keys = {rank: f"at/{rank}" for rank in range(self.size)}
        return {r: Seen(**json.loads(self._get(k))) for r, k in keys.items() if self._has([k])}

    def decide(self, stage: str, text: str) -> None:
        """Tell every rank how to go on; by rank 0."""
        self._set(stage, text)

    def decision(self, stage: str) -> str:
        """What rank 0 has decided; waits for it."""
        try:
            self._store.wait([stage], timedelta(seconds=self.left(_DECIDED)))
        except dist.DistError as error:
            raise LostRankError(self._lost("in time")) from error
        return self._get(stage)

    def _has(self, keys: Iterable[str]) -> bool:
        try:
            return bool(self._store.check(list(keys)))
        except dist.DistError as error:
            raise LostRankError(self._lost("any more")) from error

    def _get(self, key: str) -> str:
        try:
            return bytes(self._store.get(key)).decode()
        except dist.DistError as error:
            raise LostRankError(self._lost("any more")) from error

    def _set(self, key: str, text: str) -> None:
        try:
            self._store.set(key, text)
        except dist.DistError as error:
            raise LostRankError(self._lost("any more")) from error

    def _lost(self, how: str) -> str:
        return f"rank {self.rank} on {host.node_name()}: rank 0 did not answer {how}"


_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
