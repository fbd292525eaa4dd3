"""Slurm's commands, as a user of a cluster gives them: submit jobs, look at them, wait for them."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.slurm.host import ClusterError, until

_FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"})
"""States that no job leaves on its own; a preempted one, or one whose node failed, is requeued."""
_FIELD = re.compile(r"(?:^|\s)([\w:/]+)=(\S*)")
_OURS = ("SLURM", "SBATCH", "SRUN")


class Client:
    """The commands for the cluster of one slurm.conf. Jobs are named by their id, tasks of arrays
    by ID_INDEX."""

    def __init__(self, slurm_conf: Path) -> None:
        self._slurm_conf = slurm_conf

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this cluster."""
        return {"SLURM_CONF": str(self._slurm_conf)}

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        stdin: str = "",
        check: bool = True,
        seconds: float = 120,
    ) -> str:
        """Run a command, which takes no settings of Slurm from our own environment.

        Returns: its standard output.

        Raises:
            ClusterError: it failed, unless `check` is false; the message has its errors.
            TimeoutExpired: it took longer than `seconds`.
        """
        kept = {name: v for name, v in os.environ.items() if not name.startswith(_OURS)}
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**kept, **self.environment()},
            timeout=seconds,
            check=False,
        )
        if check and done.returncode:
            raise ClusterError(f"{command}: exit status {done.returncode}\n{done.stderr}")
        return done.stdout

    def submit(self, *arguments: str | Path, cwd: Path, script: str = "") -> str:
        """Run `sbatch ARGUMENTS` in `cwd`, with the text of a script or a file's name among them.

        Returns: the job's id.
        """
        said = self.run("sbatch", "--parsable", *arguments, cwd=cwd, stdin=script)
        return said.strip().partition(";")[0]

    def tasks(self, job: str) -> list[dict[str, str]]:
        """What `scontrol show job` says: an entry for each task of an array that has been started
        and one for the rest, a single entry for another job. A value ends at its first space."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return [dict(_FIELD.findall(line)) for line in shown.splitlines() if line]

    def job(self, job: str) -> dict[str, str]:
        """The entry of a job that is not an array, or of one task."""
        (entry,) = self.tasks(job)
        return entry

    def state(self, job: str) -> str:
        """The present state of a job or a task, as PENDING or RUNNING."""
        return self.job(job)["JobState"]

    def history(self, job: str) -> list[str]:
        """The states in which the accounts have a job's attempts, the first one first; it lags."""
        columns = ("--format=State", "--noheader", "--parsable2", "--allocations", "--duplicates")
        # A cancelled job's state is "CANCELLED by UID".
        return [row.split()[0] for row in self.run("sacct", *columns, "-j", job).splitlines()]

    def wait_for(self, job: str, *states: str, seconds: float = 120) -> None:
        """Wait until a job, or every task of an array, is in one of the states.

        Raises:
            ClusterError: it has ended in another one, or it took longer; with the job's output.
        """

        def arrived() -> bool:
            now = {task["JobState"] for task in self.tasks(job)}
            if (now & _FINAL) - set(states):
                raise ClusterError(f"job {job} is {', '.join(now)}, not {', '.join(states)}")
            return now <= set(states)

        try:
            until(arrived, f"job {job} is {' or '.join(states)}", seconds)
        except ClusterError as error:
            for task in self.tasks(job):
                error.add_note(f"{task}\n{tail(Path(task.get('StdOut', '')))}")
            raise

    def requeue(self, job: str) -> None:
        """Have a job run again; it waits for 12 s first, see cred_expire."""
        self.run("scontrol", "requeue", job)

    def cancel(self, jobs: Sequence[str] = ()) -> None:
        """Cancel these jobs, or all of them."""
        self.run("scancel", *(jobs or ["--user=root"]), check=False)


def tail(path: Path, lines: int = 20) -> str:
    """The end of a file under its name; nothing where there is no such file."""
    if not path.is_file():
        return ""
    text = path.read_text(errors="replace").splitlines()
    return "\n".join([f"--- {path}", *text[-lines:]])
