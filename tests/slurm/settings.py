"""The files that make a cluster: the settings of Slurm, munge and MariaDB, keys, fake GPUs.

A cluster has a block of PORTS ports: the first stands for the block while it is being claimed,
slurmctld, slurmdbd and each node's slurmd listen on the next ones.
"""

import os
import random
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CONTROLLER = "ctl"
NODES = ("n1", "n2", "n3", "n4")
PORTS = 8
GPUS = 2
"""On each node; the device files are copies of /dev/null."""

NEW_DATABASE = ("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve")
"""Further options for the first start: root comes in without a password."""

_ALL_PORTS = range(10000, 20000, PORTS)
"""Below those that the kernel gives to connections and those that other tests take."""

LONGEST_FOLDER = 107 - len("/local/n1_67108863.4294967295")
"""Bytes of a folder's path: that of a Unix socket may have 107, and a job's step has one there."""


class FolderError(Exception):
    """No cluster can be in this folder."""


def check_folder(folder: Path) -> None:
    """Raises FolderError where the paths of sockets would be too long."""
    length = len(os.fsencode(folder))
    if length > LONGEST_FOLDER:
        raise FolderError(
            f"{folder}: a path of {length} bytes; {LONGEST_FOLDER} are the most, for those of "
            "sockets below it must not have more than 107"
        )


@contextmanager
def claimed_ports() -> Iterator[int]:
    """The first port of a free block, which no other cluster gets before the context ends."""
    for first in random.sample(_ALL_PORTS, len(_ALL_PORTS)):
        with socket.socket() as claim, ExitStack() as probes:
            try:
                claim.bind(("", first))
                for port in range(first + 1, first + PORTS):
                    probes.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            probes.close()
            yield first
            return
    raise OSError(f"no {PORTS} free ports in a row in {_ALL_PORTS}")


def write(folder: Path, first_port: int) -> None:
    """Make the files in folder/etc, which exists, and the fake GPUs in folder/dev."""
    gpus = [folder / "dev" / f"gpu{i}" for i in range(GPUS)]
    for gpu in gpus:
        os.mknod(gpu, 0o666 | stat.S_IFCHR, Path(os.devnull).stat().st_rdev)
    etc = folder / "etc"
    etc.joinpath("gres.conf").write_text(f"Name=gpu File={','.join(map(str, gpus))}\n")
    etc.joinpath("slurm.conf").write_text(_slurm(folder, first_port))
    hosts = [f"{address(name)} {name}\n" for name in ("localhost", CONTROLLER, *NODES)]
    etc.joinpath("hosts").write_text("".join(hosts))
    _private(etc / "slurmdbd.conf", _accounting(folder, first_port).encode())
    _private(etc / "munge.key", secrets.token_bytes(128))


def address(host: str) -> str:
    """Where a host listens: 127.0.1.K for the K-th node, and 127.0.0.1."""
    return f"127.0.1.{NODES.index(host) + 1}" if host in NODES else "127.0.0.1"


def accounting_port(first_port: int) -> int:
    """Where slurmdbd listens."""
    return first_port + 2


def database_options(folder: Path) -> list[str]:
    """Of MariaDB: small, without a network, and careless of what a power failure would lose."""
    paths = {
        "datadir": folder / "local" / "database",
        "socket": folder / "mariadb.sock",
        "pid-file": folder / "local" / "mariadb.pid",
        # In a shared one, names made of process ids meet those of another cluster, whose namespace
        # has the same ids.
        "tmpdir": folder / "local",
    }
    fast = {
        "innodb-log-file-size": "8M",
        "innodb-log-buffer-size": "2M",
        "innodb-buffer-pool-size": "8M",
        "innodb-autoextend-increment": "1",
        "innodb-temp-data-file-path": "ibtmp1:1M:autoextend",
        "aria-pagecache-buffer-size": "1M",
        "key-buffer-size": "1M",
        "innodb-lock-wait-timeout": "900",
        "innodb-flush-log-at-trx-commit": "0",
        "innodb-flush-method": "nosync",
        "innodb-doublewrite": "0",
    }
    options = [f"--{name}={value}" for name, value in {**paths, **fast}.items()]
    return ["--no-defaults", "--user=root", "--skip-networking", *options]


def munge_options(folder: Path) -> list[str]:
    """Of munged; without --force it refuses a folder that other users cannot enter."""
    files = {
        "socket": folder / "munge.sock",
        "key-file": folder / "etc" / "munge.key",
        "pid-file": folder / "local" / "munge.pid",
        "seed-file": folder / "local" / "munge.seed",
    }
    return ["--foreground", "--force", *(f"--{name}={path}" for name, path in files.items())]


def _private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _slurm(folder: Path, first_port: int) -> str:
    nodes = "\n".join(
        f"NodeName={node} NodeAddr={address(node)} Port={first_port + 3 + i} Gres=gpu:{GPUS}"
        for i, node in enumerate(NODES)
    )
    # Ids that no other cluster uses: submitit takes an old result with the same id for its own, and
    # train.sbatch makes a port of it.
    first_job = 1 + int(time.time() * 1000) % 60_000_000
    return f"""
ClusterName=test
SlurmctldHost={CONTROLLER}({address(CONTROLLER)})
SlurmctldPort={first_port + 1}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/local/state
SlurmdSpoolDir={folder}/local
SlurmctldPidFile={folder}/local/slurmctld.pid
SlurmdPidFile={folder}/local/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true
FirstJobId={first_job}
MinJobAge=3600

# A requeued job waits for cred_expire seconds. Shorter, the job may start again before its
# processes on a lost node are dead; slurmctld 22.05 was seen to crash with 5.
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=12
KillWait=2

# A node that does not answer is down after about 10 s.
SlurmdTimeout=6
MessageTimeout=4
TCPTimeout=1
ReturnToService=2

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address(CONTROLLER)}
AccountingStoragePort={accounting_port(first_port)}
AccountingStoragePass={folder}/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations

SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=250
GresTypes=gpu
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# A job's --signal is sent when it is preempted, too.
SlurmctldParameters=preempt_send_user_signal

# Nodes may claim more than the machine has.
SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs=4 Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000
{nodes}
PartitionName=DEFAULT Nodes={",".join(NODES)} MaxTime=60 DefaultTime=10 PreemptMode=OFF
PartitionName=main PriorityTier=10 Default=YES
PartitionName=high PriorityTier=100
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=short PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
"""


def _accounting(folder: Path, first_port: int) -> str:
    return f"""
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdAddr={address(CONTROLLER)}
DbdPort={accounting_port(first_port)}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
PidFile={folder}/local/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
"""
