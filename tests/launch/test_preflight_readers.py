"""What preflight reads of a machine: kernel, driver, NCCL's log."""

import os
import stat
from pathlib import Path

import pytest

from launch.preflight import gpu as gpus
from launch.preflight import host
from launch.preflight.between import network_in
from launch.preflight.facts import Gpu


def test_what_the_kernel_says_of_this_process() -> None:
    place = host.look()
    assert host.expand(place.cores) == os.sched_getaffinity(0)
    assert place.node_cores >= len(host.expand(place.cores))


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert host.existing(tmp_path / "runs" / "more") == tmp_path
    found = host.write(tmp_path / "new")
    assert found.rate
    assert found.free == pytest.approx(os.statvfs(tmp_path).f_bavail * 4096 / 1e9, rel=0.5)
    assert list((tmp_path / "new").iterdir()) == []


LOG = """
[  12.5] NVRM: Xid (PCI:0000:04:00): 31, pid=7, name=python, Ch 00000008
[  90.1] NVRM: Xid (PCI:0000:04:00): 79, pid='<unknown>', GPU has fallen off the bus.
[  95.0] NVRM: Xid (PCI:0000:44:00): 48, pid=9, name=python
[  96.0] NVRM: Xid (PCI:0000:04:00 GPU-I:05): 94, pid=9, Contained
"""


def test_errors_in_the_kernels_log() -> None:
    assert gpus.xids_in(LOG, "00000000:04:00.0", now=100.0) == [31, 79, 94]
    assert gpus.xids_in(LOG, "00000000:04:00.0", now=90.0 + gpus.RECENT) == [79, 94]
    assert gpus.xids_in(LOG, "00000000:45:00.0", now=100.0) == []


SMI = """#!/bin/sh
# Like a driver that does not know the newer names.
case "$1" in
*clocks_event_reasons*) echo 'Field "clocks_event_reasons.hw_slowdown" is not valid.'; exit 2 ;;
--query-gpu=*) echo "GPU-11-22, 00000000:04:00.0, 525.1, 0, 1410, 1980, Not Active"
               echo "GPU-33-44, 00000000:44:00.0, 525.1, [N/A], 345, 1980, Active" ;;
*) echo "GPU-11-22, Yes, No" ;;
esac
"""


def test_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first = gpus.describe(Gpu("11-22", 80.0, 1.0), gpus.ask("11-22"))
    assert (first.uncorrected, first.remap, first.slowdown) == (0, True, False)
    assert (first.clock, first.clock_limit, first.bus) == (1410, 1980, "00000000:04:00.0")
    second = gpus.describe(Gpu("33-44", 80.0, 1.0), gpus.ask("33-44"))
    assert (second.uncorrected, second.remap, second.slowdown) == (None, None, True)
    program.unlink()
    assert gpus.ask("11-22").fields == {}


def test_the_network_in_nccls_log() -> None:
    line = "nid1:7:9 [0] NCCL INFO Using network AWS Libfabric\n"
    assert network_in(f"NCCL version 2.27\n{line}") == "AWS Libfabric"
    assert network_in("n:1:2 [0] NCCL INFO Assigned NET plugin IB to comm\n") == "IB"
    assert network_in("NCCL INFO NET/Plugin: Could not find: libnccl-net.so") is None
