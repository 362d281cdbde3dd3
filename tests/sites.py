"""Where the same tests run: a real Slurm, and the simulated Flux and LSF, of plain hosts and of CORAL ones."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bed.programs import until
from bed.slurm import Slurm
from sim.flux import Flux
from sim.lsf import Lsf

Cluster = Slurm | Flux | Lsf


@dataclass
class Site:
    """A scheduler and its nodes, by its own commands."""

    scheduler: str
    """As zlaunch calls it."""
    cluster: Cluster
    hosts: tuple[str, ...]
    """That can be nodes."""
    size: Callable[[int], list[str]]
    """What asks for so many."""
    alone: list[str]
    """What runs a script, or a program, in a job and waits for it; the size comes behind."""
    batch: Callable[[str], list[str]]
    """What submits a job that writes to a file; the size and the script come behind."""
    jobs: Callable[[], list[str]]
    """Those that have not ended; one whose node is lost, and which nobody has but its scheduler, has."""
    cancel: list[str]
    shown: Callable[[str], tuple[str, int]]
    """The name of a job that runs, and how many minutes it was given."""
    status: Callable[[str], int]
    """Of a job that has ended."""

    def inside(self, folder: Path, count: int, argv: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
        """A program in a job of so many nodes."""
        return self.cluster.run([*self.alone, *self.size(count), self.script(folder, argv)], **more)

    def submit(self, folder: Path, count: int, argv: Sequence[str], out: Path) -> None:
        """The same as a batch job."""
        script = self.script(folder, argv)
        words = [*self.batch(str(out)), *self.size(count)]
        if self.scheduler == "lsf":
            self.cluster.ask(*words, input=script.read_text())
        else:
            self.cluster.ask(*words, script)

    def script(self, folder: Path, argv: Sequence[str]) -> Path:
        """One that becomes the program."""
        file = folder / "job.sh"
        file.write_text(f"#!/bin/sh\nexec {shlex.join(map(str, argv))}\n")
        file.chmod(0o755)
        return file

    def end_all(self) -> None:
        """By the scheduler's own command."""
        for job in self.jobs():
            self.cluster.ask(*self.cancel, job)

    def nothing_is_left(self, *but: str) -> None:
        """No job, and no process on any host."""
        until(lambda: self.jobs() == [], "the queue to be empty")
        bed = self.cluster.bed
        for host in (host for host in bed.hosts if host not in but):
            until(lambda host=host: bed.processes(host) == [], f"{host} is empty")  # type: ignore[misc]


def of_slurm(slurm: Slurm) -> Site:
    """All three hosts are nodes."""
    return Site(
        "slurm",
        slurm,
        ("node1", "node2", "node3"),
        lambda count: [f"--nodes={count}"],
        ["salloc"],
        lambda out: ["sbatch", f"--output={out}"],
        lambda: slurm.ask("squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%i").split(),
        ["scancel"],
        lambda job: _name_and_minutes(slurm.ask("squeue", "--noheader", f"--jobs={job}", "--format=%j|%l"), ":00"),
        lambda job: int(slurm.ask("scontrol", "show", "job", job).partition("ExitCode=")[2].partition(":")[0]),
    )


def of_flux(flux: Flux) -> Site:
    """The same."""
    return Site(
        "flux",
        flux,
        ("node1", "node2", "node3"),
        lambda count: [f"--nodes={count}"],
        ["flux", "alloc"],
        lambda out: ["flux", "batch", f"--output={out}"],
        lambda: flux.ask("flux", "jobs", "-n", "-o", "{id.f58plain}").split(),
        ["flux", "cancel"],
        lambda job: (
            flux.ask("flux", "jobs", "-no", "{name}", job),
            -(-int(flux.ask("flux", "job", "timeleft", job)) // 60),
        ),
        lambda job: int(flux.ask("flux", "jobs", "-no", "{returncode}", job)),
    )


def of_lsf(lsf: Lsf) -> Site:
    """The same."""
    return Site(
        "lsf",
        lsf,
        ("node1", "node2", "node3"),
        lambda count: ["-n", str(count), "-R", "span[ptile=1]"],
        ["bsub", "-I"],
        lambda out: ["bsub", "-oo", out],
        lambda: _unfinished(lsf),
        ["bkill"],
        lambda job: _name_and_minutes(_bjobs(lsf, "job_name time_left", job), " L"),
        lambda job: int(_bjobs(lsf, "exit_code", job).replace("-", "0")),
    )


def of_coral(coral: Lsf) -> Site:
    """The first host has jobs begin on it, and is no node."""
    return replace(of_lsf(coral), hosts=("node2", "node3"), size=lambda count: ["-nnodes", str(count)])


def _bjobs(lsf: Lsf, fields: str, job: str) -> str:
    return lsf.ask("bjobs", "-noheader", "-o", f"{fields} delimiter='|'", job)


def _name_and_minutes(line: str, unit: str) -> tuple[str, int]:
    """Of ``a job|6:00``, or ``a job|0:06 L``."""
    name, _, left = line.rpartition("|")
    return name, int(left.removesuffix(unit).rpartition(":")[2])


def _unfinished(lsf: Lsf) -> list[str]:
    """Asked of the simulator itself: its bjobs wants ids."""
    return [str(number) for number, job in list(lsf.jobs.items()) if job.state not in ("DONE", "EXIT", "ZOMBI")]
