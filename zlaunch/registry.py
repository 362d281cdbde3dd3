"""Level 5: what this user has running, as files: one per batch job, in a folder that only the user can enter.

Homes are shared between login nodes and with the nodes of jobs, so any number of processes on any host may look and
write at once. Nobody locks: a file is written under another name and renamed, so that whoever reads finds it whole, and
two who write the same file have the same to say. What cannot be read, or belongs to somebody else, is left aside.

Names begin with the kind of entry (``job-``): other kinds are strangers to whoever reads this one.
"""

from __future__ import annotations

import json
import math
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote

import msgspec

KEPT_FOR = 7 * 24 * 3600.0
"""Seconds that a job is remembered for after it was seen to have ended."""
ENDED_LIMIT = 100
"""Jobs that have ended and are remembered, the last ones."""
LIMIT = 1000
"""Jobs that are remembered, the last ones, for those of whose end nobody ever asked."""
_KIND = "job-"
_LARGEST = 8 << 20
"""Bytes of a file; a command line may have 2 MiB."""
_LATEST = 2e11
"""Seconds since 1970 that a date can be made of."""
_ABANDONED = 24 * 3600.0
"""Seconds after which a file that nobody has renamed is taken away."""


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


def folder() -> str:
    """Where entries lie: below ``$XDG_STATE_HOME``, else ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # then the standard wants it ignored
        state = os.path.expanduser("~/.local/state")
    return os.path.join(state, "zlaunch", "runs")


def same_id(job: str) -> str:
    """A job's id in the one spelling that is kept: Flux writes one and the same as ``ƒ2AD`` and ``f2AD``."""
    return "f" + job[1:] if job.startswith("\u0192") else job


def add(job: BatchJob) -> None:
    """Remember a job, or what is new of it; others that are too many or too old are forgotten.

    Raises:
        OSError: it could not be written.
    """
    place = folder()
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(place, 0o700)
    if _check(place) & 0o077:
        os.chmod(place, 0o700)
    _write(place, job)
    with suppress(OSError):
        _forget(place)


def look() -> Found:
    """What is remembered.

    Raises:
        OSError: the folder cannot be read, or belongs to somebody else.
    """
    place = folder()
    try:
        _check(place)
        names = sorted(os.listdir(place))
    except FileNotFoundError:
        return Found((), ())
    jobs, odd = [], []
    for name in names:
        if not name.startswith(_KIND):
            continue
        path = os.path.join(place, name)
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
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("." + _KIND) and entry.stat(follow_symlinks=False).st_mtime < now - _ABANDONED:
                os.unlink(entry.path)
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
    # The standard library's json, since paths and arguments need not be UTF-8, and it keeps what is not.
    data = json.dumps(msgspec.to_builtins(job), indent=1).encode()
    path = _path(place, job)
    beside = os.path.join(place, f".{os.path.basename(path)}.{os.urandom(6).hex()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data + b"\n")
        os.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def _read(path: str) -> BatchJob:
    # Nothing in here is a pipe, but if it were, opening it would wait for ever.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if about.st_uid != os.geteuid() or not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
            raise PermissionError("not a file of ours")
        job = msgspec.convert(json.loads(file.read()), type=BatchJob)  # its ValidationError is a ValueError
    if not (0 <= job.submitted < _LATEST and 0 <= job.ended < _LATEST and math.isfinite(job.grace)):
        raise ValueError("no times")
    return job


def _check(place: str) -> int:
    """The folder's permissions. Raises PermissionError for one that somebody else could have filled."""
    about = os.stat(place)
    if about.st_uid != os.geteuid():
        raise PermissionError(f"{place} belongs to another user")
    return stat.S_IMODE(about.st_mode)
