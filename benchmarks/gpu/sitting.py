"""One call of a part: runs commands until the time is up, and keeps what came of each."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_pretrain import atomic

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 530.0
"""After so many nothing new is begun."""
END_SECONDS = 575.0
"""After so many what still runs is ended."""
MEMORY = "out of memory"
TIME = "no time was left"
_SIGNS_OF_MEMORY = ("OutOfMemoryError", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    seconds: float
    text: str
    """All that it printed."""
    ended: bool = False
    """Whether it was ended because the time was up."""

    @property
    def out_of_memory(self) -> bool:
        """Whether a device had too little memory for it."""
        return self.code != 0 and any(sign in self.text for sign in _SIGNS_OF_MEMORY)

    @property
    def why(self) -> str:
        """Why there is no result, in a line: what the program says, else the last line."""
        if self.ended:
            return "ended, the time was up"
        if self.out_of_memory:
            return MEMORY
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (told or lines or [f"exit code {self.code}"])[-1][:300]


class Sitting:
    """The time that a call has, its log, and its record OUT/PART.json, whole after each item."""

    def __init__(
        self,
        part: str,
        out: Path,
        facts: Mapping[str, Any],
        environment: Mapping[str, str],
        *,
        quick: bool = False,
        only: str = "",
        spent: float = 0.0,
    ) -> None:
        """`facts`: about the machine. `environment`: of what runs. `only`: a regular expression;
        other items are not begun. `spent`: seconds of the call that are gone already."""
        out.mkdir(parents=True, exist_ok=True)
        self.part, self.out, self.quick = part, out, quick
        self.facts = dict(facts)
        self.items: list[dict[str, Any]] = []
        self._file, self._log = out / f"{part}.json", out / f"{part}.log"
        self._only, self._environment = re.compile(only), dict(environment)
        self._began = time.monotonic() - spent
        self._log.write_text("")

    @property
    def capacity(self) -> int:
        """Bytes of the device's memory; 0 without a GPU."""
        return int(self.facts.get("memory", 0))

    @property
    def left(self) -> float:
        """Seconds in which something may still be begun."""
        return START_SECONDS - (time.monotonic() - self._began)

    def wanted(self, name: str) -> bool:
        """Whether this call is to measure the item."""
        return self._only.search(name) is not None

    def may_begin(self, name: str, least: float) -> bool:
        """Whether `least` seconds are left; if not, the item is recorded as left out."""
        if self.quick or self.left >= least:
            return True
        self.record(name, why=TIME)
        return False

    def run(self, command: Sequence[str]) -> Outcome:
        """Run one command from the root of the checkout; its output goes to the log."""
        print(f"{self.part}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
        began = time.monotonic()
        limit = END_SECONDS - (began - self._began)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # So that what it has started can be ended with it.
            process_group=0,
        )
        ended = False
        try:
            text, _ = process.communicate(timeout=max(1.0, limit))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            ended = True
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        seconds = time.monotonic() - began
        with self._log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n{text}\n# {process.returncode}, {seconds:.1f} s\n\n")
        return Outcome(process.returncode, seconds, text, ended)

    def record(
        self, name: str, result: Mapping[str, Any] | None = None, why: str | None = None
    ) -> None:
        """Keep what came of an item: a result, or why there is none."""
        print(f"{self.part}: {name}: {why or 'done'}", file=sys.stderr, flush=True)
        self.items.append({"name": name, "result": result, "why": why})
        whole = {"part": self.part, "quick": self.quick, **self.facts, "items": self.items}
        atomic.write_text(self._file, json.dumps(whole, indent=1) + "\n")
