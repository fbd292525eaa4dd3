"""Measure one part on this machine's GPU, or render what was measured.

usage: python -m benchmarks.gpu PART [OUT]       check, speed, peers, fp8, profile or study
       python -m benchmarks.gpu table [--write] [OUT ...]

PART leaves OUT/PART.json and OUT/PART.log (default OUT: runs/gpu). Environment: QUICK=1 for tiny
settings, without a GPU; ITEMS, a regular expression, for those whose name it finds. `table` prints
the subsections of RESULTS.md, from several folders if several are given; --write puts those that
have results into the file.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 also when items were left out, 2 for bad input."""
    if arguments == ["facts"]:
        from benchmarks.gpu.machine import facts  # noqa: PLC0415

        print(json.dumps(facts()))
        return 0
    if arguments and arguments[0] == "table":
        return _table(arguments[1:])
    from benchmarks.gpu.parts import PARTS  # noqa: PLC0415  (imports torch)

    if len(arguments) not in (1, 2) or arguments[0] not in PARTS:
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(arguments[1] if len(arguments) > 1 else "runs/gpu").resolve()
    return _measure(arguments[0], out)


def _measure(part: str, out: Path) -> int:
    from benchmarks.gpu.parts import PARTS  # noqa: PLC0415
    from benchmarks.gpu.sitting import ROOT, Sitting  # noqa: PLC0415

    environment = dict(os.environ)
    quick = environment.get("QUICK", "") not in ("", "0")
    command = [sys.executable, "-m", "benchmarks.gpu", "facts"]
    asked = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    facts = json.loads(asked.stdout.splitlines()[-1])
    if not facts["memory"] and not quick:
        print("error: no GPU here; set QUICK=1 to try the script", file=sys.stderr)
        return 2
    # This process only starts others: it must not take memory of the device that they measure.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    only = environment.pop("ITEMS", "")
    spent = time.time() - float(environment.pop("GPU_BEGAN", time.time()))
    # As an interrupt: what runs is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sitting = Sitting(part, out, facts, environment, quick=quick, only=only, spent=spent)
    PARTS[part](sitting)
    for item in sitting.items:
        print(f"{item['name']}: {item['why'] or 'done'}")
    print(f"wrote {out / part}.json")
    return 0


def _table(arguments: Sequence[str]) -> int:
    from benchmarks.collect import RESULTS  # noqa: PLC0415
    from benchmarks.gpu.parts import PARTS  # noqa: PLC0415
    from benchmarks.gpu.records import Measured  # noqa: PLC0415
    from benchmarks.gpu.table import replaced, section  # noqa: PLC0415

    folders = [Path(a) for a in arguments if a != "--write"]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        print(f"error: {missing[0]}: no such folder", file=sys.stderr)
        return 2
    for part in PARTS:
        new, measured = section(part, folders), Measured.read(part, folders)
        print(new)
        if "--write" in arguments and measured.calls:
            if any(call["quick"] for call in measured.calls):
                print(f"error: {part}: QUICK=1 measures nothing to keep", file=sys.stderr)
                return 2
            RESULTS.write_text(replaced(RESULTS.read_text(), part, new))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
