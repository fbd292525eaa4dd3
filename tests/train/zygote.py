"""A process that has imported everything and forks a fresh child for each command it reads.

Starting Python with torch takes seconds; a kill at a random moment would mostly hit imports.
Reads lines of JSON {"commands": [[argument, ...], ...], "log": path} and answers with the child's
pid, later with its exit status.
"""

import json
import os
import sys
from pathlib import Path

import datasets  # noqa: F401  (imported for the children)

from llm_pretrain.cli import dispatch
from llm_pretrain.errors import guarded


def child(commands: list[list[str]], log: Path) -> None:
    """Run the commands one after the other in this forked process; never returns."""
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
            child(request["commands"], Path(request["log"]))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
