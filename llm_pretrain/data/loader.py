"""The batch of a step as a pure function of the config and the lineage.

The sequences of a source are its training tokens cut at multiples of T, each one token longer than
T so that every token has a next one to predict. Every epoch goes through them in an order of its
own. A run draws from a source where its ancestors stopped. A branch that keeps T and the mixture
sees what its parent would have seen. When a branch changes T, a source goes on behind the tokens
consumed so far, but cut and shuffled anew: until the epoch ends, a passage seen by the parent may
come again.
"""

import bisect
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.data.mixture import Mixture
from llm_pretrain.data.permutation import permute
from llm_pretrain.data.prepare import Prepared
from llm_pretrain.data.shards import Tokens
from llm_pretrain.errors import UserError

Batch = npt.NDArray[np.int64]

_FORMAT = 1
"""Part of the fingerprint: raise it when the same config would give other batches."""


class Loader:
    """Batches for training and validation; holds no state that a resume would have to restore."""

    def __init__(self, config: TrainConfig, prepared: Prepared) -> None:
        """`prepared` holds the sources of `config.data`, each with at least T + 1 tokens."""
        data = config.data
        self.begin = config.past[-1].until if config.past else 0
        """First step of this run."""
        self._length = data.sequence_length
        self._global_batch = data.global_batch
        self._mixture = _mixture(data)
        self._history = _history(config)
        self._draws = []
        self._held_out: list[Tokens] = []
        for name in data.sources:
            source = prepared.sources[name]
            count = (len(source.train) - 1) // self._length
            # Rounded up: the sequence that contains the last token consumed is not begun again.
            first = -(-self._history.consumed.get(name, 0) // self._length)
            self._draws.append(
                _Draw(name, source.train, count, first, self._length, config.run.seed)
            )
            self._held_out.append(source.validation)
        self._validation = RoundRobin(
            [max(len(tokens) - 1, 0) // self._length for tokens in self._held_out]
        )
        self._sources = {name: prepared.sources[name].fingerprint for name in data.sources}

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Rank's share of the batch of `step`, shape (global_batch // world, T + 1).

        Ranks take consecutive blocks of the same rows, so all ranks together see the same whatever
        their number. Inputs are [:, :-1], targets [:, 1:]. Raises UserError when `world` does not
        divide the global batch, ValueError for a step before `begin` or a rank that does not exist.
        """
        if step < self.begin:
            raise ValueError(
                f"step {step} was trained by an ancestor; this run begins {self.begin}"
            )
        first, stop = _share(self._global_batch, rank, world)
        before = self._history.slots + (step - self.begin) * self._global_batch
        slots = before + np.arange(first, stop, dtype=np.int64)
        source, position = self._mixture.locate(slots)
        rows = np.empty((stop - first, self._length + 1), dtype=np.int64)  # (B, T + 1)
        for index, draw in enumerate(self._draws):
            mine = np.flatnonzero(source == index)
            starts = draw.sequences(position[mine]) * self._length
            # A row is one contiguous copy; an index per token would cost more than the loop.
            for row, start in zip(mine.tolist(), starts.tolist(), strict=True):
                rows[row] = draw.tokens.read(start, self._length + 1)
        return rows

    def validation_sequences(self, limit: int) -> int:
        """How many held-out sequences there are, at most `limit`."""
        return min(limit, self._validation.total)

    def validation_batch(self, start: int, count: int) -> Batch:
        """Held-out sequences [start, start + count), shape (count, T + 1).

        They come from the sources in turn, in the order of the text, and never change. Raises
        ValueError beyond the last one.
        """
        if start < 0 or count < 0 or start + count > self._validation.total:
            raise ValueError(
                f"held-out sequences [{start}, {start + count}) of {self._validation.total}"
            )
        rows = np.empty((count, self._length + 1), dtype=np.int64)  # (count, T + 1)
        for row in range(count):
            source, sequence = self._validation.locate(start + row)
            tokens = self._held_out[source]
            rows[row] = tokens.read(sequence * self._length, self._length + 1)
        return rows

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the batches: equal fingerprints, equal batches.

        A branch that keeps seed and data has its parent's fingerprint.
        """
        decisive = {
            "format": _FORMAT,
            "sequence_length": self._length,
            "global_batch": self._global_batch,
            "quotas": self._mixture.quotas,  # not weights: 1:1 and 2:2 are the same mixture
            "slot_of_step_0": self._history.slots - self.begin * self._global_batch,
            "draws": [[draw.name, draw.first, draw.seed] for draw in self._draws],
            "sources": self._sources,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Draw:
    """One source of the mixture: which sequence comes k-th."""

    name: str
    tokens: Tokens
    count: int
    """Sequences in an epoch (S)."""
    first: int
    """Sequences drawn before the stretch, in units of this run's T."""
    length: int
    seed: int

    def sequences(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The sequence at each position of the stretch; same shape, values in [0, S)."""
        epochs, places = np.divmod(positions + self.first, self.count)
        chosen = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            order = permute(places[mine].astype(np.uint64), self.count, self._key(epoch))
            chosen[mine] = order.astype(np.int64)
        return chosen

    def _key(self, epoch: int) -> int:
        text = json.dumps([self.seed, self.name, self.length, epoch])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


class RoundRobin:
    """Takes one item from each list in turn, passing over those that are used up."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """`lengths` of the lists; they may be long, nothing is stored per item."""
        self._lengths = list(lengths)
        self.total = sum(lengths)

    def locate(self, index: int) -> tuple[int, int]:
        """List and place in it of the item that comes at `index` in [0, total)."""
        rounds = range(max(self._lengths) + 1)
        turn = bisect.bisect_right(rounds, index, key=self._before) - 1
        open_lists = [i for i, length in enumerate(self._lengths) if length > turn]
        return open_lists[index - self._before(turn)], turn

    def _before(self, turn: int) -> int:
        return sum(min(length, turn) for length in self._lengths)


def _mixture(data: DataConfig) -> Mixture:
    return Mixture({name: source.weight for name, source in data.sources.items()})


@dataclass(frozen=True)
class _History:
    """What the ancestors drew. A stretch is training with one mixture and one T, in any runs."""

    consumed: dict[str, int]
    """Tokens drawn from each source before the stretch that a run begins in."""
    slots: int
    """Sequences of that stretch that ancestors trained on."""


def _history(config: TrainConfig) -> _History:
    consumed: dict[str, int] = {}
    begin = slots = 0
    stretches = [segment.data for segment in config.past] + [config.data]
    for segment, following in zip(config.past, stretches[1:], strict=True):
        data = segment.data
        slots += (segment.until - begin) * data.global_batch
        begin = segment.until
        if _recipe(data) == _recipe(following):
            continue
        mixture = _mixture(data)
        for name, count in zip(mixture.names, mixture.consumed(slots), strict=True):
            consumed[name] = consumed.get(name, 0) + count * data.sequence_length
        slots = 0
    return _History(consumed, slots)


def _recipe(data: DataConfig) -> tuple[list[str], list[int], int]:
    mixture = _mixture(data)
    return mixture.names, mixture.quotas, data.sequence_length


def _share(global_batch: int, rank: int, world: int) -> tuple[int, int]:
    """Rows [first, stop) of the global batch that belong to a rank."""
    if world < 1 or global_batch % world:
        raise UserError(
            f"data.global_batch: {global_batch} sequences cannot be shared by {world} processes; "
            f"use a multiple of {world}"
        )
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} processes")
    rows = global_batch // world
    return rank * rows, (rank + 1) * rows
