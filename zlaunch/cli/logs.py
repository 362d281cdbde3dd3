"""Level 6: ``zlaunch logs``: what a job printed, as it lies in its files, and on demand what it goes on to print."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from ..registry.submitted import BatchJob
from ..surroundings import say
from ..view.files import safe_name
from .doorbell import reader_to_watch
from .grammar import UsageError
from .queues import Unreachable, cluster, find, look_at, printable, remembered, title

LOOK_EVERY = 0.2
"""Seconds between looks at a file that is followed; there may be a network between it and us, which tells no news."""
ASK_EVERY = 3.0
"""Seconds between questions to the scheduler whether the job has ended."""
PIECE = 1 << 20
MISSING = 1
"""The exit status where the job has ended, and there is no such file."""
PLACE = re.compile(r"(?P<host>.+):(?P<local>\d+)|(?P<rank>\d+)", re.ASCII)


class Tail:
    """A file that grows, and goes to one of our streams; it may not be there yet, be cut off, or become another one.

    Args:
        path: where the file is by now, or ``None``.
        to: where its bytes go.
        whole_lines: whether to keep back what has no end of line yet.
    """

    def __init__(self, path: Callable[[], str | None], to: BinaryIO, *, whole_lines: bool) -> None:
        self._path, self._to, self._whole_lines = path, to, whole_lines
        self._of = ""
        self._at = 0
        self.found = False

    def copy(self, *, last: bool = False) -> None:
        """Pass on what is new; with ``last`` also the beginning of a line. Raises OSError but for a missing file."""
        path = self._path()
        if path is None:
            return
        if path != self._of:  # a run that has started anew writes anew
            self._of, self._at = path, 0
        # Opened anew each time: that is when a network file system looks what there is.
        with suppress(FileNotFoundError), open(path, "rb") as file:
            self.found = True
            if os.fstat(file.fileno()).st_size < self._at:
                self._at = 0
            file.seek(self._at)
            held = b""
            while piece := file.read(PIECE):
                data = held + piece
                end = data.rfind(b"\n") + 1 if self._whole_lines and not last else len(data)
                self._to.write(data[:end])
                self._at += end
                held = data[end:]
        self._to.flush()


def logs(job: str, scheduler: str | None, rank: str | None, *, follow: bool) -> int:
    """Print them; returns the exit status.

    Raises:
        UsageError: the job is not known, or has no such rank or no such files.
        OSError: a file or the registry cannot be read.
    """
    found = _find(job, scheduler)
    if rank is None:
        tails = _own(found, whole_lines=follow)
    else:
        place = PLACE.fullmatch(rank)
        if place is None:
            raise UsageError(f"logs: --rank: expected a number, or HOST:LOCAL_RANK, not {rank!r}")
        if found.log_dir is None and (found.run or not found.own):
            raise UsageError(f"job {job} writes no log files of ranks", "that was --log-dir none")

        def path() -> str | None:
            known = _find(job, scheduler)  # where a rank is, the run itself writes down when it starts
            return _rank_file(known, place)

        tails = [Tail(path, sys.stdout.buffer, whole_lines=follow)]
    if follow:
        _follow(found, tails)
    else:
        for tail in tails:
            tail.copy()
    if any(tail.found for tail in tails):
        return 0
    return _nothing(_find(job, scheduler), rank)


def _find(job: str, scheduler: str | None) -> BatchJob:
    found = find(job, scheduler)
    if found is None:
        raise UsageError(
            f"no run or job {job} is known that was started by zlaunch from here", "zlaunch ps -a lists those that are"
        )
    return found


def _own(job: BatchJob, *, whole_lines: bool) -> list[Tail]:
    """What the job's script itself printed."""
    paths = {job.out: sys.stdout.buffer} if job.out else {}
    if job.err and job.err != job.out:
        paths[job.err] = sys.stderr.buffer
    if not paths:
        raise UsageError(
            f"where job {job.job} prints to was not left to zlaunch",
            f"look where your script or argument says, else where {title(job.scheduler)} puts it by itself: as a rule "
            f"in a file in {printable(job.folder)}",
        )
    return [Tail(lambda path=path: path, to, whole_lines=whole_lines) for path, to in paths.items()]  # type: ignore[misc]


def _rank_file(job: BatchJob, place: re.Match[str]) -> str | None:
    """The path of a rank's log file; ``None`` where it cannot be told yet. Raises UsageError."""
    directory = _run_folder(job)
    if directory is None:
        return None
    if place["host"]:
        return os.path.join(directory, f"{safe_name(place['host'])}[{int(place['local'])}].log")
    rank = first = int(place["rank"])
    if not job.hosts:
        raise UsageError(
            f"on which host rank {rank} is was not written down by job {job.job}",
            f"name it as HOST:LOCAL_RANK; there are {_files(directory)}",
        )
    for name, ranks in job.hosts:
        if first < ranks:
            return os.path.join(directory, f"{safe_name(name)}[{first}].log")
        first -= ranks
    size = sum(ranks for _, ranks in job.hosts)
    raise UsageError(f"job {job.job} has no rank {rank}: there are {size}, from 0")


def _run_folder(job: BatchJob) -> str | None:
    """The folder of its run: the last one, where it was started several times."""
    try:
        names = sorted(os.listdir(job.log_dir or ""))
    except FileNotFoundError:
        return None
    if job.run:
        end = f"-{safe_name(job.run)}"
        names = [name for name in names if name.endswith(end)]
    else:  # nobody told; the folder may be that of older jobs, too
        began = time.strftime("%Y%m%d-%H%M%S", time.localtime(job.submitted))
        names = [name for name in names if name >= began]
    return os.path.join(job.log_dir or "", names[-1]) if names else None


def _files(directory: str) -> str:
    return ", ".join(sorted(os.listdir(directory))[:16]) or "none yet"


def _follow(job: BatchJob, tails: list[Tail]) -> None:
    """Pass on what comes, until the job has ended, or nobody reads us any more."""
    here, ask_at, over, told = cluster(job.scheduler), 0.0, False, ""
    poll = select.poll()
    if (reader := reader_to_watch(1)) is not None:
        poll.register(reader, 0)
    while not over:
        news = ""
        if time.monotonic() >= ask_at:
            news, over = _news(job, here)
            ask_at = time.monotonic() + ASK_EVERY
        for tail in tails:  # after the question: what came before the end is there
            tail.copy(last=over)
        if news and news != told:
            say(told := news)
        if not over and poll.poll(LOOK_EVERY * 1000):
            raise BrokenPipeError


def _news(job: BatchJob, here: str) -> tuple[str, bool]:
    """What to say of a job, if anything, and whether it has ended."""
    try:
        _, state = look_at(job, here)
    except Unreachable as error:
        if not job.ended:
            return str(error), False
        state = remembered(job)
    if state.over:
        return f"job {job.job} has ended: {state}", True
    return "" if state.runs else f"job {job.job} is {state}", False


def _nothing(job: BatchJob, rank: str | None) -> int:
    """Why there is nothing to print."""
    what = f"job {job.job} has printed nothing" if rank is None else f"rank {rank} of job {job.job} has written no file"
    news, over = _news(job, cluster(job.scheduler))
    where = job.folder if rank is None else job.log_dir
    still = f"that is still below {printable(where or '')}" if over else "yet"
    say(f"{what} {still}{f'; {news}' if news else ''}")
    return MISSING if over else 0
