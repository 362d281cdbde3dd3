"""A real Slurm on the hosts of a bed: a slurmd and a munged in each, the controller on the head.

    with Bed(3) as bed, Slurm(bed) as slurm:
        job = slurm.submit("-N2", "--wrap", "srun hostname")
        slurm.wait(job, "COMPLETED")

All its files are below the bed's folder, its controller listens at the head's address in the bed only, and jobs have
cgroups of their bed's: several beds, and a Slurm that this machine may have itself, do not meet.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from . import leftovers, slurm_conf
from .commands import Commands
from .hosts import Bed
from .network import HEAD
from .programs import PATH, PATIENCE, BedError, Program, started, until
from .slurm_conf import CGROUPS, PARTITIONS, PORT

_TOOLS = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "srun": "slurm-wlm", "munged": "munge"}
_FREEZER = Path("/sys/fs/cgroup/freezer")
_AT_WORK = "PD,CF,S,R,CG,SO"  # states of a job that still has a future, as squeue abbreviates them


def missing() -> str | None:
    """Why there can be no Slurm on a bed here, or None; what the bed itself needs is not asked."""
    absent = [package for tool, package in _TOOLS.items() if not shutil.which(tool, path=PATH)]
    return f"a Slurm on the test bed needs {' '.join(dict.fromkeys(absent))}" if absent else None


class Slurm(Commands):
    """A cluster of all hosts of the bed, idle when the constructor returns.

    A host that is booted again comes back by itself; ``ready`` waits for that. Commands find the configuration by
    ``environ``; in the hosts without it, too, where there is a folder ``/etc/slurm``. Slurm looks at time limits, and
    for silent hosts, every 30 s, and for new batch jobs every second.

    Args:
        bed: hosts, all of them up.
        cpus: of each host, as Slurm sees it.
        gpus: of each host; they are empty files, and nothing keeps a job from the others.
        memory: of each host in MB, as Slurm sees it; nothing limits it.
        partitions: the options of each in Slurm's words; all have all hosts. ``short`` has a limit of 1 minute.
        settings: lines of ``slurm.conf`` besides ``slurm_conf.SETTINGS`` or in their place; an empty value removes one.

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
        self.cgroups: dict[str, Path] = {}  # of each host's jobs; empty where Slurm has to do without
        _sweep()
        atexit.register(self.down)
        bed.residents |= {"slurmd", "munged"}
        bed.hooks.append(self._start)
        try:
            self._make_cgroups()
            hosts = {name: bed.address(name) for name in bed.hosts}
            shape = slurm_conf.Shape(bed.head_address, hosts, cpus, gpus, memory, partitions)
            slurm_conf.write(self.folder, shape, bool(self.cgroups), settings)
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

    # -- jobs and nodes

    def submit(self, *options: str | Path | int, **more: Any) -> int:
        """Submit a batch job with these options of sbatch (``more`` are ``run``'s); its id."""
        return int(self.ask("sbatch", "--parsable", *options, **more))

    def state(self, job: int) -> str:
        """``PENDING``, ``RUNNING``, ``COMPLETED`` ... A job that is unknown, or is so by now, has ``""``."""
        done = self.run(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"])
        return done.stdout.strip()

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

    def give_up(self, name: str) -> None:
        """A host that is down is so for Slurm too, at once; by itself it finds out after half a minute."""
        self.ask("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=gone")

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

    def _make_cgroups(self) -> None:
        """One for all jobs of each host, or none: below the host's own, where that has a freezer of version 1."""
        try:
            for name in self.bed.hosts if (_FREEZER / "cgroup.procs").exists() else ():
                own = self.bed.cgroup(name)
                place = own if own and (own / "freezer.state").exists() else _FREEZER
                cgroup = place / f"{self.bed.folder.name}-{name}-slurm"
                cgroup.mkdir()
                self.cgroups[name] = cgroup
        except OSError:  # it may be read-only here
            self._remove_cgroups()

    def _remove_cgroups(self) -> None:
        for cgroup in self.cgroups.values():
            _remove_tree(cgroup)
        self.cgroups.clear()

    def _start_controller(self) -> None:
        options = {
            "name": HEAD,
            "hosts": str(self.folder / "hosts"),
            "commands": [slurm_conf.munged(self.folder), ["slurmctld"]],
            "environ": {"PATH": PATH, **self.environ},
        }
        self._controller = Program("controller.py", options, self.folder / "log/controller.log", ())
        self._controller.wait_up()
        try:
            until(self._answers, "slurmctld")
        except BedError as error:
            raise BedError(f"{error}\n{self._last_words()}") from None

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self.bed.head_address, PORT), 1):
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
                " ".join(slurm_conf.munged(self.folder)),
            ]
            if cgroup := self.cgroups.get(name):
                _remove_tree(cgroup)
                cgroup.mkdir()
                lines += [f"mkdir -p {CGROUPS}/freezer", f"mount --bind {cgroup} {CGROUPS}/freezer"]
            lines += ["exec slurmd"]
            with (self.folder / f"log/{name}.log").open("a") as log:
                streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                command = ["sh", "-c", "\n".join(lines)]
                starting[name] = self.bed.popen(name, command, env={"PATH": PATH, **self.environ}, **streams)
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
        self._remove_cgroups()
        shutil.rmtree(self.folder, ignore_errors=not self.bed.folder.exists())


def _remove_tree(cgroup: Path) -> None:
    """Remove a cgroup and those below it, whose processes are dead or dying."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        procs = Path(folder, "cgroup.procs")
        until(lambda procs=procs: not procs.read_text(), f"{procs} is empty")  # type: ignore[misc]
        os.rmdir(folder)


def _sweep() -> None:
    """Cgroups of beds whose owner was killed."""
    for cgroup in _FREEZER.rglob(f"{leftovers.PREFIX}*-slurm"):
        pid, _, rest = cgroup.name.removeprefix(leftovers.PREFIX).partition(".")
        began = rest.partition("-")[0]
        if pid.isdigit() and began.isdigit() and started(int(pid)) != int(began):
            with suppress(BedError, OSError):  # another bed may be at it, too
                _remove_tree(cgroup)
