"""The errors that reach a user as one message, and the exit codes that scripts may rely on."""

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

_DISK_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENAMETOOLONG),
)
"""What a person can mend: rights, space, names, a file system without locks. Others are our
defects."""

EXIT_OK = 0
EXIT_FAILED = 1
"""A run failed, or another rank was lost: trying again may help."""
EXIT_BAD_INPUT = 2
EXIT_CONTINUE = 75
"""Stopped on request after a save: the same command continues the run (EX_TEMPFAIL)."""


class UserError(Exception):
    """Input that cannot work; the message names the field, the value and what would be valid."""


class DamagedCheckpointError(UserError):
    """A checkpoint whose files are missing or differ from its manifest."""


class RunInUseError(UserError):
    """A run directory that another live process holds."""


class LostRankError(Exception):
    """Another rank of the run is gone, or did not answer in time."""

    silent = False
    """Whether it did not answer; else it closed its connections, as a process that ends does."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A suggestion for a mistyped name, or the list of valid names when none is near.

    >>> did_you_mean("liner", ["linear", "1-sqrt"])
    "did you mean 'linear'?"
    """
    names = list(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"valid: {', '.join(names)}" if names else "none is valid here"


def disk_reason(error: OSError) -> str:
    """File and reason; what was raised by hand may have neither a file nor a number.

    >>> disk_reason(FileNotFoundError(2, "No such file or directory", "a.txt"))
    'a.txt: No such file or directory'
    """
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


@contextmanager
def writing(name: str, path: Path) -> Iterator[None]:
    """Around what writes the file that the argument `name` asks for: an OSError names both."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be written ({error.strerror})") from error


def guarded(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a command; bad input becomes one message and exit code 2, never a traceback.

    So does a lost rank, with exit code 1: its own output has the traceback.
    """
    try:
        return command(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except LostRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        print(f"error: {disk_reason(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def leave(code: int) -> NoReturn:
    """End this process, without what Python does at its end, when it is one of several ranks.

    A thread of gloo's may ask for the interpreter's lock while that goes, and aborts a process that
    has done all its work (pytorch/pytorch pull request 179291).
    """
    if "RANK" not in os.environ:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
