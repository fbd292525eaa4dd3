"""Runs that are submitted together: each is a job of its own, which ends and goes on alone."""

from collections.abc import Callable

import pytest

from tests.slurm.host import until
from tests.slurm.lab import ONE_RANK, SECONDS, Lab
from tests.support import assert_same_run, record

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS = 300


def test_two_of_an_array_are_requeued_and_the_third_goes_on(lab: Lab) -> None:
    # What is swept changes no update, so that the third shows how the others should end.
    ask = lab.sweep("checkpoint.keep_last=1,2,3", "checkpoint.every=50 steps", *ONE_RANK)
    done = lab.command("train", *ask, f"schedule.total={STEPS} steps", "eval.every=100 steps")
    assert done.returncode == 0, done.stderr
    names = [f"tiny.checkpoint.keep_last={kept}" for kept in (1, 2, 3)]
    array = lab.number(names[0]).partition("_")[0]
    jobs = [f"{array}_{i}" for i in range(3)]
    assert [lab.number(name) for name in names] == jobs
    due: dict[str, Callable[[], object]] = {
        names[0]: lambda: lab.slurm.run("scancel", "--signal=TERM", jobs[0]),
        names[1]: lambda: lab.slurm.requeue(jobs[1]),
    }

    def disturbed() -> bool:
        for name in [name for name in due if lab.has_reached(name, 5)]:
            due.pop(name)()
        return not due

    until(disturbed, f"step 5 of {names[:2]}", SECONDS)
    first, second, third = [lab.finish(name) for name in names]
    assert [int(lab.slurm.job(job)["Restarts"]) for job in jobs] == [1, 1, 0]
    assert [len(record(run)["sessions"]) for run in (first, second, third)] == [2, 2, 1]
    # It was asked to stop, and saved.
    assert lab.starts(names[0])[1] >= 5
    for run in (first, second):
        assert_same_run(run, third, STEPS)
