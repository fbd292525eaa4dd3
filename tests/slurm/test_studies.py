"""A study on the cluster: trunks, then branches, each one job, whoever asks and however often."""

import signal
import time

import pytest

from tests.slurm.lab import ONE_RANK, SECONDS, Lab
from tests.support import CONF, record

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_applied_twice_at_once_killed_and_watched_to_its_end(lab: Lab) -> None:
    ask = ["study=tiny", f"--config-dir={CONF}", f"data.cache={lab.cache}", "cluster=local_slurm"]
    ask += [*ONE_RANK, f"study.root={lab.place.parent}", f"study.name={lab.place.name}"]
    ask += ["~study.sizes.large", "study.horizons=[30 steps, 40 steps]"]
    killed = lab.start("study", "apply", *ask)
    time.sleep(2.5)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    pair = [lab.start("study", "apply", *ask) for _ in range(2)]
    said = [process.communicate(timeout=SECONDS)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    pair = [lab.start("study", "watch", *ask, "--every", "0.5") for _ in range(2)]
    said = [process.communicate(timeout=SECONDS)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    names = {path.parent.name for path in lab.place.glob("*/run.json")}
    assert names == {
        "small-constant-s0",
        "small-constant-s0.24-30.1-sqrt",
        "small-constant-s0.32-40.1-sqrt",
        "small-cosine-40-s0",
    }
    for name in names:
        assert record(lab.place / name)["state"] == "finished"
        assert len(record(lab.place / name)["sessions"]) == 1
    assert lab.submitted() == len(names)
    again = lab.command("study", "apply", *ask)
    assert again.returncode == 0, again.stderr
    assert "apply would start 0 runs now" in again.stdout
    assert lab.submitted() == len(names)
