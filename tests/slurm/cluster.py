"""A Slurm cluster of four nodes on this machine, for tests and to look at by hand.

    python -m tests.slurm.cluster start|status|env|stop [FOLDER]

It is Debian's Slurm with accounting; controller and nodes are hosts as in host.py. Needs root. The
partitions: main (default); high, which preempts; low and short, which are preempted and requeued,
low at once, short after a grace time of 20 s (and up to 30 more, since Slurm looks rarely).
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.slurm import settings
from tests.slurm.client import Client, tail
from tests.slurm.host import UNSHARE, ClusterError, Host, program_path, until

_PROGRAMS = (
    *("munged", "mariadbd", "mariadb-install-db", "my_print_defaults"),
    *("slurmctld", "slurmd", "slurmdbd", "sbatch", "srun", "sacct"),
    *("unshare", "nsenter", "setpriv", "setsid"),
)
_PATIENCE = 120.0
"""Seconds for each step of start and reset: a busy machine may take a hundred times the usual."""
_FOLDERS = ("etc", "dev", "log", "run", "local")
_MARK = "this-folder-is-a-slurm-cluster"
"""A file without which nothing is removed, whatever folder the command line names."""


def unavailable() -> str | None:
    """Why no cluster can run here, in one line; None if it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=program_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (see tests/system-packages.sh)"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


class Cluster(Client):
    """A cluster in a folder of its own, which exists only from start to stop.

    `die_with_parent`: every host dies with the thread that switched it on, even if that is killed;
    the folder stays behind then.
    """

    def __init__(self, folder: Path, die_with_parent: bool = True) -> None:
        self.folder = folder.absolute()
        super().__init__(self.folder / "etc" / "slurm.conf")
        self._die_with_parent = die_with_parent
        self._controller = Host(settings.CONTROLLER, self.folder)
        self._nodes = {name: Host(name, self.folder) for name in settings.NODES}

    def start(self) -> None:
        """Start everything, with empty accounts; it takes 2 to 3 s on an idle machine.

        Raises:
            FolderError: the folder's path is too long.
            FileExistsError: the folder exists already.
            ClusterError: it did not start; what was begun is undone, and the ends of the logs are
                notes of the exception.
        """
        settings.check_folder(self.folder)
        self.folder.mkdir(mode=0o755)
        self.folder.joinpath(_MARK).touch()
        try:
            for name in _FOLDERS:
                self.folder.joinpath(name).mkdir()
            with settings.claimed_ports() as first_port:
                settings.write(self.folder, first_port)
                self._start_controller(settings.accounting_port(first_port))
                for node in self._nodes:
                    self.boot(node)
                until(self._all_idle, "start of the nodes", _PATIENCE)
        except BaseException as error:
            for log in sorted(self.folder.glob("log/*")):
                error.add_note(tail(log))
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the cluster and remove its folder; fine when there is none."""
        if not self.exists():
            return
        for host in (*self._nodes.values(), self._controller):
            host.power_off()
        shutil.rmtree(self.folder)

    def exists(self) -> bool:
        """Whether the folder is that of a cluster, which may have been killed."""
        return self.folder.joinpath(_MARK).exists()

    def hosts_up(self) -> dict[str, bool]:
        """Whether each host is switched on, the controller's first."""
        hosts = (self._controller, *self._nodes.values())
        return {host.name: host.is_on() for host in hosts}

    def node_states(self) -> dict[str, str]:
        """Each node's state as Slurm sees it: idle, mixed, allocated, down*, ..."""
        shown = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
        return dict(line.split() for line in shown.splitlines())

    def power_off(self, node: str) -> None:
        """Cut a node's power. Slurm sees it after about 10 s and requeues the jobs that had it."""
        self._nodes[node].power_off()

    def kill_slurmd(self, node: str) -> None:
        """Kill the daemon of a node: jobs go on there, but Slurm believes the node lost."""
        self._nodes[node].kill("slurmd")

    def boot(self, node: str) -> None:
        """Switch a node on if it is off, and start its slurmd if it does not run."""
        host = self._nodes[node]
        if not host.is_on():
            host.power_on(self._die_with_parent)
        if not host.runs("slurmd"):
            host.start("slurmd", "-D", "-N", node)

    def reset(self) -> None:
        """Cancel all jobs, boot all nodes, and wait until no job is left and all nodes are idle."""
        for node in self._nodes:
            self.boot(node)
        until(self._no_job_left, "end of all jobs", _PATIENCE)
        until(self._all_idle, "all nodes idle", _PATIENCE)

    def _start_controller(self, accounting_port: int) -> None:
        host, database = self._controller, settings.database_options(self.folder)
        host.power_on(self._die_with_parent)
        host.run("mariadb-install-db", *database, *settings.NEW_DATABASE, seconds=_PATIENCE)
        host.start("mariadbd", *database)
        host.start("munged", *settings.munge_options(self.folder))
        self._serves("mariadbd", self.folder.joinpath("mariadb.sock").is_socket)
        self._serves("munged", self.folder.joinpath("munge.sock").is_socket)
        host.start("slurmdbd", "-D")
        self._serves("slurmdbd", lambda: _listens(settings.address(host.name), accounting_port))
        host.start("slurmctld", "-D")
        self._serves("slurmctld", lambda: "is UP" in self.run("scontrol", "ping", check=False))

    def _serves(self, daemon: str, ready: Callable[[], bool]) -> None:
        """Wait until a daemon of the controller does what `ready` tests; fails if it ends."""

        def alive_and_ready() -> bool:
            if not self._controller.runs(daemon):
                raise ClusterError(f"{daemon} has ended")
            return ready()

        until(alive_and_ready, f"start of {daemon}", _PATIENCE)

    def _no_job_left(self) -> bool:
        # Each time again: a job may have been between two nodes.
        self.cancel()
        return not self.run("squeue", "--noheader")

    def _all_idle(self) -> bool:
        states = self.node_states()
        for node, state in states.items():
            if state.startswith(("down", "drain")):
                # Refused where the node is coming back by itself.
                self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return set(states.values()) == {"idle"}


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def main() -> None:
    """The command line."""
    summary, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.slurm.cluster",
        description=summary,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["start", "status", "env", "stop"])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/tmp/llm-pretrain-slurm"))
    chosen = parser.parse_args()
    try:
        _act(chosen.action, Cluster(chosen.folder, die_with_parent=False))
    except (ClusterError, settings.FolderError) as error:
        sys.exit("\n".join([*getattr(error, "__notes__", []), str(error)]))


def _act(action: str, cluster: Cluster) -> None:
    if action == "start":
        reason = "there is a cluster already" if cluster.exists() else unavailable()
        if reason is not None:
            raise ClusterError(f"cannot start: {reason}")
        cluster.start()
    elif not cluster.exists():
        raise ClusterError(f"{cluster.folder}: no cluster")
    if action in ("start", "env"):
        print(*(f"export {name}={value}" for name, value in cluster.environment().items()))
    elif action == "stop":
        cluster.stop()
    else:
        print(*(f"{name} {'up' if up else 'off'}" for name, up in cluster.hosts_up().items()))
        print(cluster.run("sinfo"), cluster.run("squeue"), sep="\n", end="")


if __name__ == "__main__":
    main()
