"""Level 6: what is asked of a scheduler about a job that was submitted, and which job is meant."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress

from ..asking import PATIENCE, call
from ..backends import schedulers
from ..backends.scheduler import Scheduler, State
from ..backends.schedulers import TABLE
from ..errors import LaunchError
from ..registry import submitted
from ..registry.submitted import BatchJob
from .grammar import UsageError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
SIGNAL_PATIENCE = 5.0
"""Seconds for a signal: scancel tries again and again where the job is in no state to be sent one."""
ASK_AGAIN = 3600.0
"""Seconds for which a scheduler is asked once more about a job that has ended: it may have been requeued."""


class Unreachable(Exception):
    """A scheduler that does not answer, or answers something else."""


class Elsewhere(Unreachable):
    """A job that the scheduler here has never heard of. Of others it may know."""


def printable(text: str) -> str:
    """A name, or a scheduler's word, may have anything in it; on a terminal it shall not do anything."""
    return _CONTROL.sub("?", text)


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

    Two clusters may share a home, and each has a job 12.
    """
    table = TABLE.get(scheduler)
    if table is None:
        return ""

    def ask(argv: Sequence[str]) -> str:
        with suppress(Unreachable):
            return _answer(argv, table)
        return ""

    return table.cluster(os.environ, ask)


def state(scheduler: str, job: str) -> State:
    """Where a job stands; ``UNKNOWN`` for one that the scheduler does not know. Raises UsageError, Unreachable."""
    table = _of(scheduler)
    lines = _answer(table.state_argv(job), table).splitlines()  # several of an array
    found = [one for line in lines if (one := table.state(line))]
    one = next((one for one in found if not one.over), found[-1] if found else UNKNOWN)
    return one if one is UNKNOWN else one._replace(word=printable(one.word), why=printable(one.why))


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
    wanted = submitted.same_id(job)
    found = [one for one in submitted.look().jobs if one.job == wanted and scheduler in (None, one.scheduler)]
    if len(found) > 1:
        found = [one for one in found if one.cluster == cluster(one.scheduler)] or found
    if len(found) > 1:
        whose = ", ".join(f"{one.scheduler} {one.cluster}".rstrip() for one in found)
        raise UsageError(f"there are several jobs {job}: of {whose}", "say which by --scheduler, on its own cluster")
    return found[0] if found else None


def is_settled(job: BatchJob) -> bool:
    """Whether it has ended so long ago that nobody asks any more."""
    return 0 < job.ended < time.time() - ASK_AGAIN


def remembered(job: BatchJob) -> State:
    """How a job has ended, as somebody saw it."""
    return State(printable(job.word), printable(job.why), over=True)


def look_at(job: BatchJob, here: str, *, again: bool = False) -> tuple[BatchJob, State]:
    """A job and its state; that it has ended is remembered.

    Args:
        job: what is known of it.
        here: the name of the cluster that we are on.
        again: whether to ask also of one that has ended long ago.

    Raises:
        UsageError: there is no such scheduler.
        Unreachable: nobody here can tell.
    """
    if is_settled(job) and not again:
        return job, remembered(job)
    if job.cluster and here and job.cluster != here:
        whose = f"{title(job.scheduler)}'s cluster {printable(job.cluster)}"
        raise Unreachable(f"job {job.job} is of {whose}, and this one is {here}")
    found = state(job.scheduler, job.job)
    if found is UNKNOWN:
        if job.ended:
            return job, remembered(job)
        # Schedulers forget jobs some minutes after their end. But another one than ours has never heard of it.
        if job.cluster != here or (not here and job.hostname != os.uname().nodename):
            where = f"{title(job.scheduler)} here; it was submitted on {printable(job.hostname)}"
            raise Elsewhere(f"job {job.job} is not known to {where}")
        found = State("ended", over=True)
    if not found.over:
        return (submitted.revive(job) if job.ended else job), found
    if job.ended and (job.word, job.why) == (found.word, found.why):
        return job, found
    return submitted.end(job, found.word, found.why), found


def _answer(argv: Sequence[str], table: Scheduler, patience: float = PATIENCE) -> str:
    """What a scheduler's command prints; nothing, where it says that it does not know the job. Raises Unreachable."""
    try:
        done = call(table, argv, patience)
    except LaunchError as error:
        raise Unreachable(str(error)) from None
    if done.returncode and not table.unknown.search((done.stderr + done.stdout).lower()):
        raise Unreachable(f"{argv[0]} ended with status {done.returncode}: {done.stderr.strip()}")
    return "" if done.returncode else done.stdout
