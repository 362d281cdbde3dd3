"""Level 2: which batch scheduler this machine has, and whether we are inside of one of its allocations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

SchedulerName = Literal["slurm", "flux", "lsf", "none"]


class Scheduler(NamedTuple):
    """A scheduler, by name."""

    name: SchedulerName
    allocation: str
    """The id of the allocation that we are in; empty outside of one."""


# The variable that holds the allocation's id, and the program that submits a job. Flux comes first: it often
# runs within an allocation of another scheduler, and then it is the one that knows the hosts.
_NAMES: tuple[tuple[SchedulerName, str, str], ...] = (
    ("flux", "FLUX_JOB_ID", "flux"),
    ("slurm", "SLURM_JOB_ID", "sbatch"),
    ("lsf", "LSB_JOBID", "bsub"),
)


def scheduler(environ: Mapping[str, str], which: Callable[[str], str | None]) -> Scheduler:
    """The scheduler whose allocation we are in, else the one whose commands are on PATH, else ``none``."""
    for name, variable, _ in _NAMES:
        if environ.get(variable):
            return Scheduler(name, environ[variable])
    if environ.get("FLUX_URI"):  # the shell of `flux alloc` has the address of its instance, and no job id
        return Scheduler("flux", environ["FLUX_URI"])
    for name, _, program in _NAMES:
        if which(program):
            return Scheduler(name, "")
    return Scheduler("none", "")
