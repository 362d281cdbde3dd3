"""What a Slurm of the bed reads: its settings, its fake GPUs, munge's key; and how its munged is called."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

PORT = 6817
CGROUPS = "/run/slurm-cgroup"
"""In a host: what slurmd takes for ``/sys/fs/cgroup``."""

PARTITIONS = MappingProxyType({"batch": "Default=YES MaxTime=INFINITE", "short": "MaxTime=00:01:00"})

SETTINGS = MappingProxyType(
    {
        "ClusterName": "bed",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "SlurmdSpoolDir": "/run/slurmd",
        "SlurmdPidFile": "/run/slurmd.pid",
        "CommunicationParameters": "NoCtldInAddrAny",  # listen at the bed's address alone
        "SlurmdParameters": "config_overrides",  # a host may have more CPUs than this machine
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "bf_interval=1,sched_min_interval=0,batch_sched_delay=0",
        "ReturnToService": "2",  # a host that was down is used again when it is back
        "SlurmdTimeout": "10",
        "MessageTimeout": "10",
        "TCPTimeout": "2",
        "KillWait": "2",
        "UnkillableStepTimeout": "15",
        "InactiveLimit": "0",
        "MinJobAge": "300",
        "SlurmdDebug": "info",
        "SlurmctldDebug": "info",
    }
)


@dataclass(frozen=True)
class Shape:
    """The hosts (name to address) and what Slurm says of each; the options of each partition."""

    head: str
    hosts: Mapping[str, str]
    cpus: int
    gpus: int
    memory: int
    partitions: Mapping[str, str]


def write(folder: Path, shape: Shape, cgroups: bool, more: Mapping[str, str]) -> None:
    """Everything that the daemons and the commands read, in a new folder; ``more`` are settings that go before ours."""
    for part in ("munge", "state", "log", "gpus"):
        (folder / part).mkdir(parents=True)
    gpus = [folder / f"gpus/gpu{index}" for index in range(shape.gpus)]
    for file in gpus:
        os.mknod(file, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # a second /dev/null: Slurm counts only devices
    names = ",".join(shape.hosts)
    for name, lines in {
        "slurm.conf": _slurm_conf(folder, shape, cgroups, more),
        "gres.conf": ["AutoDetect=off", *(f"NodeName={names} Name=gpu File={file}" for file in gpus)],
        "cgroup.conf": ["CgroupPlugin=cgroup/v1", f"CgroupMountpoint={CGROUPS}"],
        "hosts": ["127.0.0.1 localhost", f"{shape.head} head"],
    }.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))


def _slurm_conf(folder: Path, shape: Shape, cgroups: bool, more: Mapping[str, str]) -> list[str]:
    chosen = {
        **SETTINGS,
        "SlurmctldHost": f"head({shape.head})",
        "SlurmctldPort": str(PORT),
        "AuthInfo": f"socket={folder}/munge/socket",
        "StateSaveLocation": f"{folder}/state",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmctldLogFile": f"{folder}/log/slurmctld.log",
        "SlurmdLogFile": f"{folder}/log/slurmd-%n.log",
        # other ways to follow a job's processes lose those that became daemons
        "ProctrackType": "proctrack/cgroup" if cgroups else "proctrack/linuxproc",
        "GresTypes": "gpu" if shape.gpus else "",
        **more,
    }
    one = f"CPUs={shape.cpus} Sockets=1 CoresPerSocket={shape.cpus} ThreadsPerCore=1 RealMemory={shape.memory}"
    one += f" Gres=gpu:{shape.gpus}" if shape.gpus else ""
    names = ",".join(shape.hosts)
    return [
        *(f"{key}={value}" for key, value in chosen.items() if value),
        *(f"NodeName={name} NodeAddr={address} {one}" for name, address in shape.hosts.items()),
        *(f"PartitionName={name} Nodes={names} State=UP {options}" for name, options in shape.partitions.items()),
    ]


def munged(folder: Path) -> list[str]:
    """The command that starts munged, in the background; what it writes lies in ``munge``, the host's own folder."""
    own = folder / "munge"
    files = {"key": folder / "munge.key", "pid": own / "pid", "log": own / "log", "seed": own / "seed"}
    words = [f"--{what}-file={path}" for what, path in files.items()]
    return ["munged", "--force", f"--socket={own}/socket", *words]  # forced: the key may lie below /tmp
