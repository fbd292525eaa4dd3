"""The test cluster does what a cluster does: without this, nothing that is tested on it counts."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm import settings
from tests.slurm.cluster import Cluster
from tests.slurm.host import ClusterError, until
from tests.support import ROOT

pytestmark = pytest.mark.slurm

_TASK = """
import os, socket
address = socket.gethostbyname(os.environ["MASTER"])
print(os.environ["SLURM_PROCID"], socket.gethostname(), os.environ["CUDA_VISIBLE_DEVICES"], address)
"""
_OWNER = """
import sys, time
from pathlib import Path
from tests.slurm.cluster import Cluster
Cluster(Path(sys.argv[1])).start()
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def short(slurm_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short path, on a machine where clusters can run."""
    return tmp_path_factory.mktemp("c")


def _processes(folder: Path) -> list[str]:
    """Command lines of all processes that have the folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in process.joinpath("environ").read_bytes():
                found.append(process.joinpath("cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def _lines(path: Path) -> list[str]:
    """What a job has written so far."""
    return path.read_text().splitlines() if path.exists() else []


def test_tasks_on_two_nodes(slurm: Cluster, tmp_path: Path) -> None:
    tmp_path.joinpath("task.py").write_text(_TASK)
    script = f"""#!/bin/sh
export MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun {sys.executable} task.py
"""
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--output=out")
    job = slurm.submit(*options, cwd=tmp_path, script=script)
    slurm.wait_for(job, "COMPLETED")
    seen = sorted(_lines(tmp_path / "out"))
    where = [(0, "n1"), (1, "n1"), (2, "n2"), (3, "n2")]
    assert seen == [f"{rank} {node} 0,1 127.0.1.1" for rank, node in where]


def test_array_with_a_throttle(slurm: Cluster, tmp_path: Path) -> None:
    script = "#!/bin/sh\ndate +%s.%N; sleep 0.3; date +%s.%N\n"
    job = slurm.submit("--array=0-2%1", "--output=%a", cwd=tmp_path, script=script)
    slurm.wait_for(job, "COMPLETED")
    spans = sorted(
        [float(t) for t in tmp_path.joinpath(str(i)).read_text().split()] for i in range(3)
    )
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end < start
    until(lambda: slurm.history(job) == ["COMPLETED"] * 3, "three tasks in the accounts", 60)


def test_queue_and_accounts(slurm: Cluster, tmp_path: Path) -> None:
    good = slurm.submit("--wrap=true", cwd=tmp_path)
    bad = slurm.submit("--wrap=exit 3", f"--dependency=afterok:{good}", cwd=tmp_path)
    never = slurm.submit("--wrap=true", f"--dependency=afterok:{bad}", cwd=tmp_path)
    slurm.wait_for(bad, "FAILED")
    until(lambda: "Never" in slurm.job(never)["Reason"], "a dependency that cannot be met", 60)
    assert slurm.run("squeue", "--noheader", "--format=%A %T").split() == [never, "PENDING"]
    columns = ("-nPX", "--format=State,NodeList,ExitCode", "-j", f"{good},{bad}")
    rows = ["COMPLETED|n1|0:0", "FAILED|n1|3:0"]
    until(lambda: slurm.run("sacct", *columns).splitlines() == rows, "both in the accounts", 60)
    with pytest.raises(ClusterError, match="is FAILED, not COMPLETED"):
        slurm.wait_for(bad, "COMPLETED")


def test_preemption(slurm: Cluster, tmp_path: Path) -> None:
    low = slurm.submit("-p", "low", "-N4", "--exclusive", "--wrap=sleep 600", cwd=tmp_path)
    slurm.wait_for(low, "RUNNING")
    high = slurm.submit("-p", "high", "-N1", "--wrap=true", cwd=tmp_path)
    slurm.wait_for(high, "COMPLETED")
    assert slurm.state(low) == "PENDING"
    assert slurm.job(low)["Restarts"] == "1"
    until(lambda: slurm.history(low)[:1] == ["PREEMPTED"], "the preemption in the accounts", 60)


def test_daemon_is_killed_and_the_job_goes_on(slurm: Cluster, tmp_path: Path) -> None:
    script = "#!/bin/sh\ntouch started\nuntil [ -e go ]; do sleep 0.1; done\necho went on\n"
    job = slurm.submit("-w", "n3", "--output=out", cwd=tmp_path, script=script)
    until(tmp_path.joinpath("started").exists, "start of the job", 60)
    slurm.kill_slurmd("n3")
    with pytest.raises(ClusterError, match="no slurmd runs on n3"):
        slurm.kill_slurmd("n3")
    tmp_path.joinpath("go").touch()
    until(lambda: _lines(tmp_path / "out") == ["went on"], "the job's output", 60)
    slurm.boot("n3")
    slurm.wait_for(job, "COMPLETED")
    assert slurm.job(job)["Restarts"] == "0"


@pytest.mark.slow
def test_requeue(slurm: Cluster, tmp_path: Path) -> None:
    script = (
        '#!/bin/sh\necho ${SLURM_RESTART_COUNT:-0}\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 600\n'
    )
    options = ("--output=out", "--open-mode=append")
    job = slurm.submit(*options, cwd=tmp_path, script=script)
    slurm.wait_for(job, "RUNNING")
    until(lambda: _lines(tmp_path / "out") == ["0"], "the first attempt", 60)
    slurm.requeue(job)
    slurm.wait_for(job, "COMPLETED")
    lines = _lines(tmp_path / "out")
    assert (lines[0], lines[-1]) == ("0", "1")
    until(lambda: slurm.history(job) == ["REQUEUED", "COMPLETED"], "both in the accounts", 60)


@pytest.mark.slow
def test_node_loses_power(slurm: Cluster, tmp_path: Path) -> None:
    script = '#!/bin/sh\nsrun hostname\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 600\n'
    options = ("--nodes=2", "--output=out", "--open-mode=append")
    job = slurm.submit(*options, cwd=tmp_path, script=script)
    until(lambda: len(_lines(tmp_path / "out")) == 2, "the first attempt", 60)
    slurm.power_off("n2")
    slurm.wait_for(job, "COMPLETED")
    lines = _lines(tmp_path / "out")
    assert sorted(lines[:2]) == ["n1", "n2"]
    assert "n2" not in lines[2:]
    assert len(set(lines[-2:])) == 2
    until(lambda: slurm.history(job) == ["NODE_FAIL", "COMPLETED"], "both in the accounts", 60)
    assert slurm.node_states()["n2"].startswith("down")
    slurm.reset()
    assert set(slurm.node_states().values()) == {"idle"}


def test_reset(slurm: Cluster, tmp_path: Path) -> None:
    running = slurm.submit("--wrap=trap '' TERM; sleep 600", cwd=tmp_path)
    held = slurm.submit("--hold", "--wrap=true", cwd=tmp_path)
    slurm.wait_for(running, "RUNNING")
    slurm.power_off("n4")
    slurm.run("scontrol", "update", "nodename=n3", "state=drain", "reason=test")
    slurm.reset()
    assert [slurm.state(job) for job in (running, held)] == ["CANCELLED", "CANCELLED"]
    assert slurm.node_states() == dict.fromkeys(settings.NODES, "idle")


def test_second_cluster_dies_with_its_owner(slurm: Cluster, tmp_path: Path, short: Path) -> None:
    folder = short / ("x" * (settings.LONGEST_FOLDER - len(os.fsencode(short)) - 1))
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, folder], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as owner:
        try:
            assert owner.stdout
            assert owner.stdout.readline() == "up\n"
            second = Cluster(folder)
            job = second.submit("--wrap=srun touch started; sleep 600", cwd=tmp_path)
            until(tmp_path.joinpath("started").exists, "start of the job", 60)
            assert second.state(job) == "RUNNING"
            assert not slurm.run("squeue", "--noheader")
            assert len(_processes(folder)) > 10
        finally:
            owner.kill()
    until(lambda: not any(second.hosts_up().values()), "end of all hosts", 60)
    until(lambda: not _processes(folder), "end of all processes", 60)
    second.stop()
    assert not folder.exists()
    slurm.run("srun", "true")


def test_failed_start_leaves_nothing(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, first_port: int) -> None:
        original(folder, first_port)
        with folder.joinpath("etc", "slurm.conf").open("a") as file:
            file.write("NoSuchKey=1\n")

    original = settings.write
    monkeypatch.setattr(settings, "write", write)
    folder = short / "broken"
    with pytest.raises(ClusterError, match="has ended") as failure:
        Cluster(folder).start()
    assert "NoSuchKey" in "\n".join(failure.value.__notes__)
    assert not folder.exists()
    assert not _processes(folder)


def test_folder_with_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * settings.LONGEST_FOLDER)
    with pytest.raises(settings.FolderError, match=r"\d+ bytes; 78 are the most"):
        Cluster(folder).start()
    assert not folder.exists()
