"""Which cores a process keeps to, with folders in place of the kernel's."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llm_pretrain.numa import bind, bind_near

GPU = "0009:01:00.0"
ALL = os.sched_getaffinity(0)
FIRST = min(ALL)
"""One of at least two, as the other tests need them too."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Every thread is where it was."""
    before = {int(t.name): os.sched_getaffinity(int(t.name)) for t in tasks()}
    threads = torch.get_num_threads()
    yield
    for thread, cores in before.items():
        if Path(f"/proc/self/task/{thread}").exists():
            os.sched_setaffinity(thread, cores)
    torch.set_num_threads(threads)


def tasks() -> list[Path]:
    return list(Path("/proc/self/task").iterdir())


def kernel(place: Path, near: str | None, online: set[int] = ALL) -> Path:
    """What it says of the cores that there are, and of those beside the GPU."""
    cpus, gpu = place / "devices/system/cpu", place / "bus/pci/devices" / GPU
    cpus.mkdir(parents=True)
    (cpus / "online").write_text(",".join(map(str, online)) + "\n")
    gpu.mkdir(parents=True)
    if near is not None:
        (gpu / "local_cpulist").write_text(near + "\n")
    return place


def test_beside_the_gpu(tmp_path: Path) -> None:
    told = bind(GPU, kernel(tmp_path, f"{FIRST}-{FIRST}"))
    assert told == f"bound to the 1 of {len(ALL)} cores beside GPU {GPU}"
    assert os.sched_getaffinity(0) == {FIRST}
    assert torch.get_num_threads() == 1


def test_cores_that_are_off_do_not_count(tmp_path: Path) -> None:
    assert bind(GPU, kernel(tmp_path, f"{FIRST},{max(ALL) + 1}-{max(ALL) + 72}"))
    assert os.sched_getaffinity(0) == {FIRST}


def test_all_threads_new_and_old(tmp_path: Path) -> None:
    seen: dict[str, set[int]] = {}
    bound, ready = threading.Event(), threading.Event()

    def old() -> None:
        ready.set()
        bound.wait(30)
        seen["old"] = os.sched_getaffinity(0)

    def new() -> None:
        seen["new"] = os.sched_getaffinity(0)

    early = threading.Thread(target=old)
    early.start()
    ready.wait(30)
    bind(GPU, kernel(tmp_path, str(FIRST)))
    bound.set()
    late = threading.Thread(target=new)
    late.start()
    for thread in (early, late):
        thread.join()
    assert seen == {"old": {FIRST}, "new": {FIRST}}


@pytest.mark.parametrize(
    "near",
    [
        pytest.param(None, id="no file"),
        pytest.param("", id="empty"),
        pytest.param("nothing", id="no list"),
        pytest.param(str(max(ALL) + 1), id="none of the cores"),
        pytest.param(",".join(map(str, ALL)), id="all cores"),
    ],
)
def test_where_there_is_nothing_to_do(tmp_path: Path, near: str | None) -> None:
    assert bind(GPU, kernel(tmp_path, near)) is None
    assert os.sched_getaffinity(0) == ALL


def test_a_device_that_the_kernel_does_not_know(tmp_path: Path) -> None:
    assert bind("0000:00:00.0", kernel(tmp_path, str(FIRST))) is None
    assert bind(GPU, tmp_path / "nowhere") is None


def test_who_is_bound_already_stays_so(tmp_path: Path) -> None:
    """Fewer cores than the node has: it does not matter whether they are near."""
    os.sched_setaffinity(0, ALL - {FIRST})
    assert bind(GPU, kernel(tmp_path, str(FIRST))) is None
    assert os.sched_getaffinity(0) == ALL - {FIRST}
    os.sched_setaffinity(0, ALL)
    more = kernel(tmp_path / "more", str(FIRST), ALL | {max(ALL) + 1})
    assert bind(GPU, more) is None
    assert os.sched_getaffinity(0) == ALL


def test_nothing_on_a_cpu(tmp_path: Path) -> None:
    assert bind_near(torch.device("cpu"), kernel(tmp_path, str(FIRST))) is None
    assert os.sched_getaffinity(0) == ALL
