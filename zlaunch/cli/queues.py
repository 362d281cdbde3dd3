"""Level 6: what is asked of a scheduler about a job that was submitted, and which job is meant."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from .. import registry
from ..asking import PATIENCE, call
from ..backends import schedulers
from ..backends.scheduler import Scheduler, State
from ..backends.schedulers import TABLE
from ..errors import LaunchError
from ..registry import BatchJob
from .grammar import UsageError

SIGNAL_PATIENCE = 5.0
"""Seconds for a signal: scancel tries again and again where the job is in no state to be sent one."""
_UNKNOWN = re.compile(r"invalid job ?id|is not found|job ?id \S+ unknown|unknown job|no such job", re.IGNORECASE)


class Unreachable(Exception):
    """A scheduler that does not answer, or answers something else."""


UNKNOWN = State("unknown", over=True)
"""Of a job that the scheduler does not know, or does not know any more."""


def _of(name: str) -> Scheduler:
    try:
        return schedulers.of(name)
    except KeyError:
        raise UsageError(f"no jobs of {name!r} are known to zlaunch", f"there are {', '.join(TABLE)}") from None


def title(scheduler: str) -> str:
    """A scheduler's name as it is written."""
    return _of(scheduler).title


def cluster(scheduler: str) -> str:
    """What the scheduler calls the machine that we are on; empty where it does not say.

    Two clusters may share a home, and each has a job 12. An instance of Flux is known by where it listens, but for the
    system's own.
    """
    if scheduler == "flux":
        return os.environ.get("FLUX_URI", "")
    if scheduler != "slurm":
        return ""
    if name := os.environ.get("SLURM_CLUSTER_NAME"):
        return name
    try:
        said = _answer(("scontrol", "show", "config"), _of(scheduler))
    except Unreachable:
        return ""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", said, re.MULTILINE)
    return found[1] if found else ""


def state(scheduler: str, job: str) -> State:
    """Where a job stands; ``UNKNOWN`` for one that the scheduler does not know. Raises UsageError, Unreachable."""
    table = _of(scheduler)
    lines = _answer(table.state_argv(job), table).splitlines()  # several of an array
    found = [one for line in lines if (one := table.state(line))]
    return next((one for one in found if not one.over), found[-1] if found else UNKNOWN)


def cancel(scheduler: str, job: str) -> None:
    """Have the scheduler end a job. Raises Unreachable."""
    table = _of(scheduler)
    _answer(table.cancel_argv(job), table)


def warn(scheduler: str, job: str) -> bool:
    """Send SIGTERM to the zlaunch of a job that runs, and to nothing else in it; false where that cannot be done."""
    table = _of(scheduler)
    try:
        _answer(table.warn_argv(job), table, SIGNAL_PATIENCE)
    except Unreachable:
        return False
    return True


def find(job: str, scheduler: str | None) -> BatchJob | None:
    """The job that is meant by an id, if it is remembered.

    Raises:
        UsageError: there are several.
        OSError: the registry cannot be read.
    """
    wanted = registry.same_id(job)
    found = [one for one in registry.look().jobs if one.job == wanted and scheduler in (None, one.scheduler)]
    if len(found) > 1:
        found = [one for one in found if one.cluster == cluster(one.scheduler)] or found
    if len(found) > 1:
        whose = ", ".join(f"{one.scheduler} {one.cluster}".rstrip() for one in found)
        raise UsageError(f"there are several jobs {job}: of {whose}", "say which by --scheduler, on its own cluster")
    return found[0] if found else None


def look_at(job: BatchJob, here: str) -> tuple[BatchJob, State]:
    """A job and its state; that it has ended is remembered.

    Args:
        job: what is known of it.
        here: the name of the cluster that we are on.

    Raises:
        Unreachable: nobody here can tell.
    """
    if job.ended:
        return job, State(job.word, job.why, over=True)
    if job.cluster and here and job.cluster != here:
        raise Unreachable(f"job {job.job} is of {title(job.scheduler)}'s cluster {job.cluster}, and this one is {here}")
    found = state(job.scheduler, job.job)
    if found is UNKNOWN:
        # Schedulers forget jobs some minutes after their end. But another one than ours has never heard of it.
        if job.cluster != here or (not here and job.hostname != os.uname().nodename):
            whose = title(job.scheduler)
            raise Unreachable(f"job {job.job} is not known to {whose} here; it was submitted on {job.hostname}")
        found = State("ended", over=True)
    return (registry.end(job, found.word, found.why) if found.over else job), found


def _answer(argv: Sequence[str], table: Scheduler, patience: float = PATIENCE) -> str:
    """What a scheduler's command prints; nothing, where it says that it does not know the job. Raises Unreachable."""
    try:
        done = call(table, argv, patience)
    except LaunchError as error:
        raise Unreachable(str(error)) from None
    if done.returncode and not _UNKNOWN.search(done.stderr + done.stdout):
        raise Unreachable(f"{argv[0]} ended with status {done.returncode}: {done.stderr.strip()}")
    return "" if done.returncode else done.stdout
