"""A process that has imported everything and forks a fresh child for each command it reads.

Starting Python with torch takes seconds; a kill at a random moment would mostly hit imports.
Reads lines of JSON {"commands": [[argument, ...], ...], "log": path, "die": null or [function,
call, when]} and answers with the child's pid, later with its exit status. With "die", the child
kills itself just before or after the given call of a function.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  (imported for the children)

from llm_pretrain.cli import dispatch
from llm_pretrain.errors import guarded


def arm(function: str, call: int, when: str) -> None:
    """Make this process kill itself around the n-th call of 'module:function'."""
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), [0]

    def dying(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


def child(commands: list[list[str]], log: Path, die: list[Any] | None) -> None:
    """Run the commands one after the other in this forked process; never returns."""
    if die:
        arm(*die)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 0
    for arguments in commands:
        code = code or guarded(dispatch, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Serve until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(request["commands"], Path(request["log"]), request["die"])
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
