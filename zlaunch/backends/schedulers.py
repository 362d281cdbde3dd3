"""Level 4: the schedulers that there are, and which of them is ours here."""

from __future__ import annotations

from collections.abc import Mapping

from .flux import Flux
from .lsf import Lsf
from .scheduler import Job, Scheduler
from .slurm import Slurm

TABLE: dict[str, Scheduler] = {one.name: one for one in (Flux(), Slurm(), Lsf())}
"""By name. Flux comes first: it often runs within a job of another one, and then it is who knows the nodes."""


def of(name: str) -> Scheduler:
    """The scheduler of this name. Raises KeyError."""
    return TABLE[name]


def job_in(environ: Mapping[str, str]) -> tuple[Scheduler, Job] | None:
    """The job that we are in, and whose it is; ``None`` where we are in none."""
    found = ((one, one.job_in(environ)) for one in TABLE.values())
    return next(((one, job) for one, job in found if job), None)


def configured(environ: Mapping[str, str]) -> Scheduler | None:
    """The scheduler whose commands are here; ``None`` where there is none."""
    return next((one for one in TABLE.values() if one.is_configured(environ)), None)
