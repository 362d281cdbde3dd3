"""A real Slurm on the hosts of a bed: a slurmd and a munged in each, the controller on the head.

    with Bed(3) as bed, Slurm(bed) as slurm:
        job = slurm.submit("-N2", "--wrap", "srun hostname")
        slurm.wait(job, "COMPLETED")

All its files are below the bed's folder, its controller listens at the head's address in the bed only, and its jobs have
cgroups of their own: several beds, and a Slurm that this machine may have itself, do not meet.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import socket
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from . import leftovers
from .hosts import Bed
from .network import HEAD
from .programs import PATH, PATIENCE, BedError, Program, started, until

_TOOLS = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "srun": "slurm-wlm", "munged": "munge"}
_PORT = 6817
_FREEZER = Path("/sys/fs/cgroup/freezer")
_CGROUPS = "/run/slurm-cgroup"  # in a host: what slurmd takes for /sys/fs/cgroup
_AT_WORK = "PD,CF,S,R,CG,SO"  # states of a job that still has a future, as squeue abbreviates them

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


def missing() -> str | None:
    """Why there can be no Slurm on a bed here, or None; what the bed itself needs is not asked."""
    absent = [package for tool, package in _TOOLS.items() if not shutil.which(tool, path=PATH)]
    return f"a Slurm on the test bed needs {' '.join(dict.fromkeys(absent))}" if absent else None


class Slurm:
    """A cluster of all hosts of the bed, idle when the constructor returns.

    A host that is booted again comes back by itself; ``ready`` waits for that. Commands find the configuration by
    ``environ``, in the hosts also without it.

    Args:
        bed: hosts, all of them up.
        cpus: of each host, as Slurm sees it.
        gpus: of each host; they are empty files, and nothing keeps a job from the others.
        memory: of each host in MB, as Slurm sees it; nothing limits it.
        partitions: the options of each in Slurm's words; all have all hosts. ``short`` has a limit of 1 minute.
        settings: lines of ``slurm.conf``, in addition to ``SETTINGS`` or in their place; an empty value removes one.

    Raises:
        BedError: it did not come up; nothing is left of it.
    """

    def __init__(
        self,
        bed: Bed,
        *,
        cpus: int = 4,
        gpus: int = 4,
        memory: int = 4000,
        partitions: Mapping[str, str] = PARTITIONS,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.bed = bed
        self.folder = bed.folder / "slurm"
        self.environ = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._owner = os.getpid()
        self._controller: Program | None = None
        _sweep()
        self._cgroups = {name: place / f"{bed.folder.name}-{name}-slurm" for name, place in self._places().items()}
        for part in ("munge", "state", "log", "gpus"):
            (self.folder / part).mkdir(parents=True)
        self._write_settings(cpus, gpus, memory, partitions, settings)
        atexit.register(self.down)
        bed.residents |= {"slurmd", "munged"}
        bed.hooks.append(self._start)
        try:
            self._start_controller()
            self._start(bed.hosts)
            self.ready()
        except BaseException:
            self.down()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- commands

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        """Ours, in which nobody else's Slurm is."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_", "SALLOC_"))}
        return ours | self.environ | dict(more or {})

    def run(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the head; what it prints is returned.

        ``env`` is added to our environment; ``options`` are those of ``subprocess.run``, 30 s for ``timeout``.
        """
        defaults: dict[str, Any] = {"text": True, "timeout": 30, "check": False, "capture_output": True}
        if "input" not in options:
            defaults["stdin"] = subprocess.DEVNULL
        if "stdout" in options or "stderr" in options:
            del defaults["capture_output"]
        return subprocess.run(list(map(str, argv)), env=self._environment(env), **(defaults | options))  # noqa: PLW1510

    def popen(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command on the head; ``options`` are those of ``subprocess.Popen``, text mode is the default."""
        chosen: dict[str, Any] = {"text": True, "stdin": subprocess.DEVNULL} | options
        return subprocess.Popen(list(map(str, argv)), env=self._environment(env), **chosen)

    def ask(self, *argv: str | Path, **options: Any) -> str:
        """What a command on the head prints. Raises ``BedError`` where it fails."""
        done = self.run(argv, **options)
        if done.returncode != 0:
            raise BedError(f"{' '.join(map(str, argv))}: {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    # -- jobs and nodes

    def submit(self, *options: str | Path, **more: Any) -> int:
        """Submit a batch job with these options of sbatch (``more`` are ``run``'s); its id."""
        return int(self.ask("sbatch", "--parsable", *options, **more))

    def state(self, job: int) -> str:
        """``PENDING``, ``RUNNING``, ``COMPLETED`` ... A job that is unknown, or is so by now, has ``""``."""
        done = self.run(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"])
        return done.stdout.strip()

    def wait(self, job: int, *states: str, seconds: float = PATIENCE) -> str:
        """Until the job has one of these states, which is returned.

        Raises:
            BedError: it has not within these seconds.
        """
        state = ""

        def reached() -> bool:
            nonlocal state
            state = self.state(job)
            return state in states

        try:
            until(reached, f"job {job}", seconds)
        except BedError as error:
            raise BedError(f"{error}: not {' or '.join(states)} but {state or 'unknown'}") from None
        return state

    def nodes(self) -> dict[str, str]:
        """The state of each host in Slurm's eyes: ``idle``, ``mixed``, ``allocated``, ``down*`` ..."""
        return dict(line.split() for line in self.ask("sinfo", "-h", "-N", "-o", "%N %T").splitlines())

    def ready(self, seconds: float = PATIENCE) -> None:
        """Until all hosts are idle. Raises ``BedError`` where they are not within these seconds."""
        nodes: dict[str, str] = {}

        def idle() -> bool:
            with suppress(BedError):  # the controller may be about to come up
                nodes.update(self.nodes())
            return len(nodes) == len(self.bed.hosts) and set(nodes.values()) == {"idle"}

        try:
            until(idle, "all nodes are idle", seconds)
        except BedError as error:
            raise BedError(f"{error}: {nodes}\n{self._last_words()}") from None

    def restore(self) -> None:
        """No job, and all hosts up, healed and idle. Raises ``AssertionError`` for processes that a job left there."""
        self.ask("scancel", f"--user={os.getuid()}")
        self.bed.mend()
        tired = [name for name, state in self.nodes().items() if state.startswith(("down", "drain"))]
        for name in tired:
            self.run(["scontrol", "update", f"NodeName={name}", "State=RESUME"])  # it may be back by itself
        until(lambda: not self.ask("squeue", "--noheader", f"--states={_AT_WORK}"), "the end of all jobs")
        self.bed.restore()
        self.ready()

    # -- what it is made of

    def _places(self) -> dict[str, Path]:
        """Where a host's jobs get their cgroups: below the host's own, where that has a freezer of version 1."""
        if not (_FREEZER / "cgroup.procs").exists():
            return {}
        owns = {name: self.bed.cgroup(name) for name in self.bed.hosts}
        return {name: own if own and (own / "freezer.state").exists() else _FREEZER for name, own in owns.items()}

    def _write_settings(
        self, cpus: int, gpus: int, memory: int, partitions: Mapping[str, str], settings: Mapping[str, str]
    ) -> None:
        names = ",".join(self.bed.hosts)
        chosen = {
            **SETTINGS,
            "SlurmctldHost": f"{HEAD}({self.bed.head_address})",
            "SlurmctldPort": str(_PORT),
            "AuthInfo": f"socket={self.folder}/munge/socket",
            "StateSaveLocation": f"{self.folder}/state",
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "SlurmctldLogFile": f"{self.folder}/log/slurmctld.log",
            "SlurmdLogFile": f"{self.folder}/log/slurmd-%n.log",
            # other ways to follow a job's processes lose those that became daemons
            "ProctrackType": "proctrack/cgroup" if self._cgroups else "proctrack/linuxproc",
            "GresTypes": "gpu" if gpus else "",
            **settings,
        }
        lines = [f"{key}={value}" for key, value in chosen.items() if value]
        of_each = f"CPUs={cpus} Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory}"
        of_each += f" Gres=gpu:{gpus}" if gpus else ""
        lines += [f"NodeName={name} NodeAddr={self.bed.address(name)} {of_each}" for name in self.bed.hosts]
        lines += [f"PartitionName={name} Nodes={names} State=UP {more}" for name, more in partitions.items()]
        files = [self.folder / f"gpus/gpu{index}" for index in range(gpus)]
        for file in files:
            os.mknod(file, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # a second /dev/null: Slurm counts only devices
        gres = [f"NodeName={names} Name=gpu File={file}" for file in files]
        for name, text in {
            "slurm.conf": lines,
            "gres.conf": ["AutoDetect=off", *gres],
            "cgroup.conf": ["CgroupPlugin=cgroup/v1", f"CgroupMountpoint={_CGROUPS}"],
        }.items():
            (self.folder / name).write_text("\n".join(text) + "\n")
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))

    def _munged(self) -> list[str]:
        own = self.folder / "munge"
        files = {"key": self.folder / "munge.key", "pid": own / "pid", "log": own / "log", "seed": own / "seed"}
        words = [f"--{what}-file={path}" for what, path in files.items()]
        return ["munged", "--force", f"--socket={own}/socket", *words]  # forced: the key may lie below /tmp

    def _start_controller(self) -> None:
        hosts = self.folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{self.bed.head_address} {HEAD}\n")
        options = {
            "name": HEAD,
            "hosts": str(hosts),
            "commands": [self._munged(), ["slurmctld"]],
            "environ": {"PATH": PATH, **self.environ},
        }
        self._controller = Program("controller.py", options, self.folder / "log/controller.log", ())
        self._controller.wait_up()
        try:
            until(self._answers, "slurmctld")
        except BedError as error:
            raise BedError(f"{error}\n{self._last_words()}") from None

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self.bed.head_address, _PORT), 1):
            return True
        return False

    def _start(self, names: Sequence[str]) -> None:
        """munged and slurmd of these hosts, at each boot; returns when slurmd is in the background."""
        starting = {}
        for name in names:
            lines = [
                "set -e",
                f"mount -t tmpfs -o mode=755 munge {self.folder}/munge",  # the host's own: a munged has a memory
                f"[ ! -d /etc/slurm ] || mount --bind {self.folder} /etc/slurm",
                " ".join(self._munged()),
            ]
            if cgroup := self._cgroups.get(name):
                _remove_tree(cgroup)
                cgroup.mkdir()
                lines += [f"mkdir -p {_CGROUPS}/freezer", f"mount --bind {cgroup} {_CGROUPS}/freezer"]
            lines += ["exec slurmd"]
            environ = {"PATH": PATH, **self.environ}
            with (self.folder / f"log/{name}.log").open("a") as log:
                options = {"env": environ, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                starting[name] = self.bed.popen(name, ["sh", "-c", "\n".join(lines)], **options)
        failed = [name for name, process in starting.items() if process.wait(PATIENCE) != 0]
        if failed:
            raise BedError(f"Slurm did not start in {', '.join(failed)}:\n{self._last_words()}")

    def _last_words(self) -> str:
        logs = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs)

    # -- the end

    def down(self) -> None:
        """Remove all of it; hosts that are up boot again, without Slurm. Nothing happens where it is down."""
        if os.getpid() != self._owner or self._start not in self.bed.hooks:
            return
        atexit.unregister(self.down)
        self.bed.hooks.remove(self._start)
        self.bed.residents -= {"slurmd", "munged"}
        if self._controller is not None:
            self._controller.kill()
        if self.bed.folder.exists():
            self.bed.reboot(*(name for name in self.bed.hosts if self.bed.alive(name)))
        if self._controller is not None:
            self._controller.wait_gone()
        for cgroup in self._cgroups.values():
            _remove_tree(cgroup)
        shutil.rmtree(self.folder, ignore_errors=not self.bed.folder.exists())


def _remove_tree(cgroup: Path) -> None:
    """Remove a cgroup and those below it, whose processes are dead or dying."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        procs = Path(folder, "cgroup.procs")
        until(lambda procs=procs: not procs.read_text(), f"{procs} is empty")  # type: ignore[misc]
        os.rmdir(folder)


def _sweep() -> None:
    """Cgroups of beds whose owner was killed."""
    for cgroup in _FREEZER.glob(f"{leftovers.PREFIX}*-slurm"):
        pid, _, rest = cgroup.name.removeprefix(leftovers.PREFIX).partition(".")
        began = rest.partition("-")[0]
        if pid.isdigit() and began.isdigit() and started(int(pid)) != int(began):
            with suppress(BedError, OSError):  # another bed may be at it, too
                _remove_tree(cgroup)
