"""A host of the test cluster: namespaces on this machine, with a name and daemons of its own.

It has its own hostname, /etc/hosts, /dev/shm, processes and a tmpfs at FOLDER/local; it shares
the network and all other files with the machine. Switching it off is killing its process 1: the
kernel then ends every process in it and drops its mounts, so nothing can be left.
"""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tests.slurm.processes import Noted, children, name

_INIT = Path(__file__).with_name("host.sh")
UNSHARE = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
_ENTER = ("nsenter", "--mount", "--uts", "--ipc", "--pid")


class ClusterError(Exception):
    """The cluster does not do what it should; the message says what was waited for."""


def until(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Wait for `condition`; raises ClusterError, naming `what`, after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.03)


def program_path() -> str:
    """PATH with the folders of daemons, which a user's own may lack."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Host:
    """One host. Any process may hold an object of it, since what runs is noted in the folder."""

    def __init__(self, hostname: str, folder: Path) -> None:
        self.name = hostname
        self._folder = folder
        self._init = Noted(folder / "run" / hostname)
        self._unshare: subprocess.Popen[str] | None = None

    def power_on(self, die_with_parent: bool) -> None:
        """Make the namespaces; nothing runs in them yet.

        `die_with_parent`: the host is switched off when the thread that called this ends, in
        whatever way, SIGKILL included.
        """
        bond = ("setpriv", "--pdeathsig", "KILL") if die_with_parent else ()
        with self._log("init") as log:
            # A session of its own: Ctrl-C at the terminal is for the tests, which then stop it.
            self._unshare = subprocess.Popen(
                [*bond, *UNSHARE, "--kill-child", "sh", _INIT, self.name, self._folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment(),
                start_new_session=True,
            )
        assert self._unshare.stdout
        with self._unshare.stdout as said:
            if said.readline() != "up\n":
                raise ClusterError(f"host {self.name} did not start")
        self._init.note(children(self._unshare.pid)[0])

    def power_off(self) -> None:
        """End everything on the host at once; does nothing when it is off."""
        self._init.kill()
        if self._unshare is not None:
            # It ends with process 1, unless power_on failed before that was noted.
            self._unshare.kill()
            self._unshare.wait()
            self._unshare = None

    def is_on(self) -> bool:
        """Whether its process 1 lives."""
        return self._init.pid() is not None

    def run(self, *command: str | Path, seconds: float = 60) -> None:
        """Run a command on the host and wait for it; its output goes to log/HOST.COMMAND.

        Raises:
            ClusterError: the command failed or took longer than that.
        """
        with self._log(Path(command[0]).name) as log:
            self._enter(*command, log=log.fileno(), seconds=seconds)

    def start(self, *daemon: str | Path) -> None:
        """Start a program in the background, as a child of process 1; output as for `run`."""
        earlier = set(children(self._init.pid() or 0))
        with self._log(Path(daemon[0]).name) as log:
            self._enter("setsid", "--fork", *daemon, log=log.fileno(), seconds=60)
        # setsid has gone, so what it forked is process 1's child, before any that it forks in turn.
        names = ("setsid", Path(daemon[0]).name)
        new = [pid for pid in children(self._init.pid() or 0) if pid not in earlier]
        named = [pid for pid in new if name(pid) in names]
        if named:
            self._daemon(names[1]).note(named[0])

    def runs(self, daemon: str) -> bool:
        """Whether a daemon runs that was started by this name."""
        return self._daemon(daemon).pid() is not None

    def kill(self, daemon: str) -> None:
        """Kill a daemon, and nothing that it started. Raises ClusterError when it does not run."""
        if not self.runs(daemon):
            raise ClusterError(f"no {daemon} runs on {self.name}")
        self._daemon(daemon).kill()

    def environment(self) -> dict[str, str]:
        """Variables of its daemons."""
        return {
            "PATH": program_path(),
            "SLURM_CONF": str(self._folder / "etc" / "slurm.conf"),
            # slurmdbd has no setting for the database's socket.
            "MYSQL_UNIX_PORT": str(self._folder / "mariadb.sock"),
        }

    def _enter(self, *command: str | Path, log: int, seconds: float) -> None:
        target = f"--target={self._init.pid()}"
        try:
            done = subprocess.run(
                [*_ENTER, target, "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{command[0]} on {self.name}: over {seconds:.0f} s") from error
        if done.returncode:
            raise ClusterError(f"{command[0]} on {self.name}: exit status {done.returncode}")

    def _daemon(self, program: str) -> Noted:
        return Noted(self._folder / "run" / f"{self.name}.{program}")

    def _log(self, program: str) -> BinaryIO:
        return (self._folder / "log" / f"{self.name}.{program}").open("ab")
