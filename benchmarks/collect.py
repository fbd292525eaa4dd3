"""Run every benchmark in a process of its own and print the sections of RESULTS.md.

usage: python -m benchmarks.collect [--write] [--quick] [--folder DIR]

--write also puts them into benchmarks/RESULTS.md, in place of the sections that are there. What
another heading holds stays. The other options are passed on.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    attention,
    average,
    engines,
    file_operations,
    loader,
    loop,
    reconcile,
    reshard,
    save,
    startup,
    theory,
)

MODULES = {
    "loop": loop,
    "save": save,
    "reshard": reshard,
    "engines": engines,
    "loader": loader,
    "startup": startup,
    "reconcile": reconcile,
    "file_operations": file_operations,
    "theory": theory,
    "attention": attention,
    "average": average,
}
RESULTS = Path(__file__).with_name("RESULTS.md")
ROOT = RESULTS.parents[1]


def section(name: str, arguments: Sequence[str]) -> str:
    """Run one benchmark; its section: what is measured, then how and the figures."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--markdown"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return f"## {name}\n\n{(MODULES[name].__doc__ or '').strip()}\n\n{done.stdout}"


def replaced(text: str, name: str, new: str) -> str:
    """`text` with `new` in place of its section `name`. Raises ValueError when it has none."""
    begin = text.index(f"## {name}\n")
    end = text.find("\n## ", begin)
    return text[:begin] + new.strip() + "\n" + (text[end:] if end >= 0 else "")


def main(arguments: Sequence[str]) -> None:
    """Measure everything and print it."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return
    rest = [a for a in arguments if a != "--write"]
    for name in MODULES:
        new = section(name, rest)
        print(new, flush=True)
        if "--write" in arguments:
            RESULTS.write_text(replaced(RESULTS.read_text(), name, new))


if __name__ == "__main__":
    main(sys.argv[1:])
