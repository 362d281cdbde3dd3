"""Level 5: the batch jobs that this user has submitted, as files of the state directory: one per job.

Names begin with the kind of entry (``job-``): other kinds are strangers to whoever reads this one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from . import files
from .files import LATEST, folder

KEPT_FOR = 7 * 24 * 3600.0
"""Seconds that a job is remembered for after it was seen to have ended."""
ENDED_LIMIT = 100
"""Jobs that have ended and are remembered, the last ones."""
LIMIT = 1000
"""Jobs that are remembered, the last ones, for those of whose end nobody ever asked."""
_KIND = "job-"


class BatchJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that was submitted to a scheduler."""

    scheduler: str
    cluster: str
    """The scheduler's name for the machine, where it told one."""
    job: str
    """The scheduler's id."""
    name: str
    folder: str
    """The launch directory; for a script of the user's own the directory that it was submitted from."""
    out: str | None
    err: str | None
    """Where the job's own stdout and stderr go; ``None``: wherever the user's script, or argument, says."""
    log_dir: str | None
    """Below it each run has a folder with a file per rank; ``None``: no such files."""
    nodes: int | None
    ranks: int | str | None
    """Ranks per node, or the word that they were asked for by (``gpu``); ``None``: unknown."""
    grace: float
    """Seconds that ranks get from SIGTERM to SIGKILL."""
    own: bool
    """Whether it is a script of the user's, and not of ours."""
    argv: tuple[str, ...]
    """The command line that submitted it."""
    submitted: float
    """When, in seconds since 1970."""
    hostname: str
    """Where."""
    run: str = ""
    """The id of its run, as soon as that has started."""
    hosts: tuple[tuple[str, int], ...] = ()
    """Its hosts in the order of ranks, each with its number of ranks, as soon as the run has started."""
    ended: float = 0.0
    """When it was seen to have ended; 0: it was not."""
    word: str = ""
    why: str = ""
    """How it ended, in the scheduler's words."""


class Found(NamedTuple):
    """What a look into the folder gave."""

    jobs: tuple[BatchJob, ...]
    """In the order in which they were submitted."""
    odd: tuple[str, ...]
    """Files that cannot be read as entries, or are not ours."""


def same_id(job: str) -> str:
    """A job's id in the one spelling that is kept: Flux writes one and the same as ``ƒ2AD`` and ``f2AD``."""
    return "f" + job[1:] if job.startswith("\u0192") else job


def add(job: BatchJob) -> None:
    """Remember a job, or what is new of it; others that are too many or too old are forgotten.

    Raises:
        OSError: it could not be written.
    """
    place = files.prepared()
    _write(place, job)
    with suppress(OSError):
        _forget(place)


def look() -> Found:
    """What is remembered.

    Raises:
        OSError: the folder cannot be read, or belongs to somebody else.
    """
    jobs, odd = [], []
    for path in files.names(_KIND):
        try:
            jobs.append(_read(path))
        except FileNotFoundError:
            pass  # somebody has forgotten it meanwhile
        except (OSError, ValueError, RecursionError):
            odd.append(path)
    return Found(tuple(sorted(jobs, key=lambda job: job.submitted)), tuple(odd))


def end(job: BatchJob, word: str, why: str) -> BatchJob:
    """Remember that a job has ended, and how. Where that cannot be written somebody will find out once more."""
    return _change(job, ended=time.time(), word=word, why=why)


def revive(job: BatchJob) -> BatchJob:
    """Remember that a job which had ended is in the queue again, or runs: somebody has requeued it."""
    return _change(job, ended=0.0, word="", why="")


def _change(job: BatchJob, **changes: object) -> BatchJob:
    place, found = folder(), job
    with suppress(OSError, ValueError, RecursionError):
        found = _read(_path(place, job))  # its run may have written down its hosts since we looked
    new = msgspec.structs.replace(found, **changes)
    with suppress(OSError):
        _write(place, new)
    return new


def began(scheduler: str, job: str, run: str, hosts: Sequence[tuple[str, int]], log_dir: str | None) -> None:
    """Within a job: its run has started, on these hosts. Nothing happens where the job is not known here.

    Within one of Flux's the id is not in the environment, but where its instance listens is: then the job is known by
    its folder of log files. Nothing is raised for a disk or a foreign file: a run goes on without a registry.

    A job that was seen to have ended has been requeued if it is in here.
    """
    with suppress(OSError):
        known = [one for one in look().jobs if one.scheduler == scheduler]
        if "://" in job:
            found = [one for one in known if log_dir and one.log_dir == log_dir and not one.ended][-1:]
        else:
            same = [one for one in known if one.job == same_id(job)]
            found = [one for one in same if not one.ended] or same[-1:]
        for one in found:
            places = tuple((name, workers) for name, workers in hosts)
            again = {"ended": 0.0, "word": "", "why": ""}
            _write(folder(), msgspec.structs.replace(one, run=run, hosts=places, log_dir=log_dir, **again))


def _forget(place: str) -> None:
    now = time.time()
    files.sweep(place, _KIND)
    jobs = look().jobs
    for job in {_path(place, one): one for one in _superfluous(jobs, now)}:
        with suppress(FileNotFoundError):
            os.unlink(job)


def _superfluous(jobs: Sequence[BatchJob], now: float) -> Iterator[BatchJob]:
    over = sorted((job for job in jobs if job.ended), key=lambda job: job.ended)
    yield from (job for job in over if job.ended < now - KEPT_FOR)
    yield from over[: max(0, len(over) - ENDED_LIMIT)]
    yield from jobs[: max(0, len(jobs) - LIMIT)]


def _path(place: str, job: BatchJob) -> str:
    parts = (quote(part, safe="")[-100:] for part in (job.scheduler, job.cluster, job.job))
    return os.path.join(place, f"{_KIND}{'-'.join(parts)}.json")


def _write(place: str, job: BatchJob) -> None:
    files.write(_path(place, job), job)


def _read(path: str) -> BatchJob:
    job = files.read(path, BatchJob)
    if not (0 <= job.submitted < LATEST and 0 <= job.ended < LATEST and math.isfinite(job.grace)):
        raise ValueError("no times")
    return job
