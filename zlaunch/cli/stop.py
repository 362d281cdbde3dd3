"""Level 6: ``zlaunch stop``: a run or a job is ended, and its end waited for.

A run's own supervisor is told. Of jobs: one in the queue the scheduler cancels. In a running one zlaunch itself gets
SIGTERM first, so that ranks have their grace period and the job its last words and its status; what has not ended by
then the scheduler ends.
"""

from __future__ import annotations

import re
import time

from ..backends.scheduler import State
from ..events import RunEnded
from ..registry import submitted
from ..registry.runs import RunEntry
from ..registry.submitted import BatchJob
from ..surroundings import say
from .grammar import UsageError
from .queues import UNKNOWN, Unreachable, cancel, cluster, find, look_at, printable, state, title, warn

MARGIN = 10.0
"""Seconds that zlaunch may take beyond the grace period of its ranks, to say what became of them."""
PATIENCE = 120.0
"""Seconds that a scheduler may take to end a job: it has a grace period, and a host may not answer."""
FIRST_LOOK, LAST_LOOK = 0.2, 2.0
"""Seconds between questions to the scheduler, the first ones and the later ones."""
FAILED = 125
INTERRUPTED = 130
_ID = re.compile(r"[\w.+\[\]]+")


def stop_run(entry: RunEntry, grace: float | None) -> int:
    """Stop a run; returns the exit status, 0 when nothing of it is alive.

    Raises:
        LinkError: it does not answer.
    """
    from ..link.gallery import myself
    from ..protocol.gallery import Stop, Told
    from .attach import Over, connected, over

    if entry.ended:
        return _was_over(entry)
    try:
        visitor = connected(entry)
    except Over as ended:
        return _was_over(ended.entry)
    try:
        visitor.say(Stop(myself(), grace))
        allowed = entry.grace if grace is None else grace
        how = f"its ranks get SIGTERM, and SIGKILL after {allowed:g} s; stop it once more to kill now"
        say(f"run {entry.run} is told to end: {how if allowed else 'its ranks get SIGKILL'}")
        while not visitor.gone:
            for message in visitor.poll(None)[0]:
                if isinstance(message, Told) and isinstance(message.event, RunEnded):
                    return _ended(entry, message.event)
        if (by_now := over(entry)) is not None:
            return _was_over(by_now.entry)
        say(f"run {entry.run} has been told to end, and then {visitor.gone}")
        return FAILED
    except KeyboardInterrupt:
        say(f"run {entry.run} has been told to end, and nobody waits for it now")
        return INTERRUPTED
    finally:
        visitor.close()


def _was_over(entry: RunEntry) -> int:
    say(f"run {entry.run} has ended already" + (f": {printable(entry.state)}" if entry.ended else ""))
    return 0


def _ended(entry: RunEntry, ended: RunEnded) -> int:
    for survivor in ended.survivors:
        say(f"still alive: pid {survivor.pid} on {survivor.hostname} ({printable(survivor.command)})")
    say(f"run {entry.run} has ended: {ended.outcome}")
    return FAILED if ended.survivors else 0


def stop(job: str, scheduler: str | None, grace: float | None) -> int:
    """Stop it; returns the exit status, 0 when it is gone.

    Raises:
        UsageError: no such job is known.
        Unreachable: the scheduler does not answer.
        OSError: the registry cannot be read.
    """
    known = find(job, scheduler)
    if known is None and (scheduler is None or not _ID.fullmatch(job)):
        raise UsageError(
            f"no run or job {job} is known that was started by zlaunch from here",
            "zlaunch ps lists those that are; with --scheduler any job of yours is stopped, slurm's for example",
        )
    stopping = _Stopping(known, scheduler or "", job)
    before = stopping.look()
    if before is UNKNOWN:
        raise UsageError(f"{title(stopping.scheduler)} knows no job {job}")
    if before.over:
        say(f"job {job} has ended already: {before}")
        return 0
    try:
        after = stopping.end(before, grace)
    except KeyboardInterrupt:
        say(f"job {job} has been told to end, and nobody waits for it now")
        return INTERRUPTED
    if after.over:
        say(f"job {job} has ended" + ("" if after is UNKNOWN else f": {after}"))
        return 0
    say(f"job {job} is still {after} after {PATIENCE:g} s; {title(stopping.scheduler)} has been told to end it")
    return FAILED


class _Stopping:
    """A job on its way out."""

    def __init__(self, known: BatchJob | None, scheduler: str, job: str) -> None:
        self.known = known
        self.scheduler = known.scheduler if known else scheduler
        self.id = known.job if known else submitted.same_id(job)
        self._here = cluster(self.scheduler) if known else ""

    def look(self) -> State:
        """Where it stands. Raises Unreachable."""
        if self.known is None:
            return state(self.scheduler, self.id)
        self.known, found = look_at(self.known, self._here, again=True)
        return found

    def end(self, now: State, grace: float | None) -> State:
        """End it; where it stands at last. Raises Unreachable."""
        if self.known and not self.known.own and now.runs and grace != 0:
            allowed = self.known.grace
            patience = allowed + MARGIN if grace is None else grace
            ranks = f"its ranks get SIGTERM, and SIGKILL after {allowed:g} s; stop it once more to kill now"
            say(f"job {self.id} is {now}: {ranks}")
            if warn(self.scheduler, self.id):
                now = self._wait(now, patience)
                if now.over:
                    return now
            say(f"job {self.id} is {now}: {title(self.scheduler)} ends it")
        else:
            say(f"job {self.id} is {now}: {title(self.scheduler)} is told to end it")
        cancel(self.scheduler, self.id)
        return self._wait(now, PATIENCE)

    def _wait(self, now: State, seconds: float) -> State:
        deadline, pause = time.monotonic() + seconds, FIRST_LOOK
        while True:
            try:
                now = self.look()
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
            left = deadline - time.monotonic()
            if now.over or left <= 0:
                return now
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LAST_LOOK)
