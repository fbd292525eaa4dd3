"""What the commands take beside overrides: flags in Hydra's manner, and which are known where."""

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_pretrain.errors import UserError, did_you_mean, writing

_FLAGS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--info", "-i"),
    *("--config-name", "-cn", "--config-path", "-cp"),
)


def key_of(override: str) -> str:
    """The key of an override: 'optimizer.lr' of '+optimizer.lr=1e-3'."""
    return override.lstrip("+~").partition("=")[0]


def of_cluster(overrides: Iterable[str]) -> list[str]:
    """Those that say where a run is trained."""
    return [text for text in overrides if text.lstrip("+").startswith("cluster")]


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], Path | None, list[str]]:
    """Overrides, the user's config folder (--config-dir), and Hydra's other flags."""
    overrides, flags, config_dir = [], [], None
    pending = deque(arguments)
    while pending:
        argument = pending.popleft()
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            config_dir = Path(value or (pending.popleft() if pending else ""))
            if not config_dir.is_dir():
                raise UserError(f"--config-dir: '{config_dir}' is no folder")
        elif argument.startswith("-"):
            flags.append(argument)
            if argument in _FLAGS_WITH_VALUE and pending and "=" not in pending[0]:
                flags.append(pending.popleft())
        else:
            overrides.append(argument)
    return overrides, config_dir, flags


def option(
    arguments: Sequence[str], name: str, needs: str = "a value"
) -> tuple[list[str], str | None]:
    """The arguments without an option, and its last value: `--out DIR` or `--out=DIR`.

    `needs`: what is missing, for the message, when nothing follows it. Raises UserError.
    """
    rest, value, pending = [], None, deque(arguments)
    while pending:
        argument = pending.popleft()
        if argument == name:
            if not pending:
                raise UserError(f"{name}: needs {needs}")
            value = pending.popleft()
        elif argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return rest, value


def seconds_option(arguments: Sequence[str], name: str, default: float) -> tuple[list[str], float]:
    """The arguments without an option that takes seconds, and these. Raises UserError."""
    rest, text = option(arguments, name, "a number of seconds, such as 30")
    if text is None:
        return rest, default
    if not text.replace(".", "", 1).isdigit() or float(text) <= 0:
        raise UserError(f"{name}: '{text}' is no number of seconds; use 30, for example")
    return rest, float(text)


def file_option(arguments: Sequence[str], name: str, needs: str) -> tuple[list[str], Path | None]:
    """The arguments without an option that names a file to write, and the file.

    `needs`: what is missing when nothing follows, such as "one PAGE.html"; the file must end alike.
    Raises UserError when it could not be written.
    """
    rest, text = option(arguments, name, needs)
    if text is None:
        return rest, None
    path, ending = Path(text), Path(needs).suffix
    if not text:
        raise UserError(f"{name}: needs {needs}")
    with writing(name, path):
        if path.is_dir():
            raise UserError(
                f"{name}: {path} is a folder; name a file in it, such as {path}/a{ending}"
            )
        if path.suffix != ending:
            raise UserError(f"{name}: '{path}' does not end in {ending}, which is what is written")
        if not path.parent.is_dir():
            raise UserError(f"{name}: the folder {path.parent} does not exist")
    return rest, path


def check_flags(command: str, flags: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError for a flag that `command` does not know, naming the nearest that it does."""
    for flag in flags:
        if flag not in known:
            raise UserError(f"{flag}: {command} has no such option; {did_you_mean(flag, known)}")


def compose_only(
    command: str, overrides: Sequence[str], flags: Sequence[str], known: Sequence[str], about: str
) -> None:
    """Raise UserError for other flags than those `known`, and for a run to be resumed.

    `about`: what the command is about, to be read after its name, since it is not about a run.
    """
    check_flags(command, flags, [*known, "--config-dir"])
    for override in overrides:
        if override.startswith("resume="):
            raise UserError(f"{override}: {command} {about}")
