"""Level 6: ``zlaunch run --detach``: a run in a process of its own, which outlives the terminal and the ssh session.

The process is made before anything else of the run is: one ``fork``, without a thread or a socket yet. The child has a
session of its own, no terminal, and writes to a file; it does what ``zlaunch run`` does. The parent stays until the
ranks have started, and passes on what is said meanwhile: whoever types a mistake sees what they would have seen
without ``--detach``, with the same exit status. Then it prints the run's id and leaves.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Any, Literal

from ..registry import runs
from ..result import Run
from ..surroundings import say
from .grammar import UsageError
from .job import Job

CONSOLE = "console.txt"
"""The file in the folder of the run's log files that has what a terminal would have shown."""
LOOK_EVERY = 100
"""Milliseconds between looks at what the child has said."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OF_RANKS = (b"[rank", b"{")
"""What lines of ranks begin with, plain or as JSON; all else is ours."""


class Hand:
    """The child's: by which it tells the parent that the run needs it no more."""

    def __init__(self, pipe: int, console: str) -> None:
        self._pipe, self._console = pipe, console
        self._thread: threading.Thread | None = None

    def shown(self, job: Job) -> Job:
        """The job with a view for a file; with none where there is no file, which would be memory."""
        view: Literal["plain", "json", "none"] = job.view if job.view in ("json", "none") else "plain"
        return replace(job, view=view if self._console else "none")

    def over(self, running: Run[Any]) -> None:
        """Do so as soon as all ranks have been started, in a thread; of a run that fails before the parent tells."""
        running.leave(self._keep_console(running))
        self._thread = threading.Thread(target=self._over, args=(running,), name="zlaunch-detach", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until that is done, whatever has become of the run."""
        if self._thread is not None:
            self._thread.join()

    def _over(self, running: Run[Any]) -> None:
        running.wait_started()
        if running.done() and running.exit_status():
            running.exception()
            runs.remove(running.id)  # its end is told now
            return
        trouble = running.publish()
        with suppress(OSError):  # the parent may have been killed meanwhile, and the run goes on
            os.write(self._pipe, f"{running.id}\n{trouble}".encode(errors="replace"))
        os.close(self._pipe)

    def _keep_console(self, running: Run[Any]) -> str:
        """Where the console's file is from now on: among the run's log files."""
        if not self._console:
            return ""
        path = os.path.join(running.log_folder, CONSOLE)
        try:
            os.makedirs(running.log_folder, exist_ok=True)
            os.rename(self._console, path)
        except OSError:
            return self._console
        return path


def check(job: Job) -> None:
    """Raises UsageError where there is nothing to be left."""
    papers = job.papers
    if job.dry_run:
        raise UsageError("--detach starts a run, and --dry-run does not", "leave one out")
    if papers and (papers.submit or papers.only):
        raise UsageError("--detach: a batch job outlives the terminal by itself", "leave --detach out")
    if papers and papers.attended:
        raise UsageError(
            "--detach: from here the scheduler's own command waits for these ranks", "with --bg nobody need wait"
        )


def detach(job: Job) -> int | Hand:
    """Split: the parent gets its exit status, when it is time to go; the child what it tells the parent by."""
    fd, path = _console(job)
    ready, tell = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    with _held(FORWARDED):
        child = os.fork()
        if child == 0:
            _leave_terminal(fd, {tell})
            return Hand(tell, path)
        os.close(tell)
        parent = _Parent(child, fd, ready, path)
        before = {number: signal.signal(number, parent.forward) for number in FORWARDED}
    try:
        return parent.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Parent:
    def __init__(self, child: int, console: int, ready: int, path: str) -> None:
        self._child, self._console, self._ready, self._path = child, console, ready, path
        self._at = 0
        self._kept = b""

    def forward(self, number: int, _: FrameType | None) -> None:
        """A signal of ours is the child's, as long as it has not been left."""
        with suppress(ProcessLookupError):
            os.kill(self._child, number)

    def wait(self) -> int:
        """Until the run can be left, or has failed to start; returns the exit status."""
        poll, said = select.poll(), b""
        poll.register(self._ready, select.POLLIN)
        while True:
            if poll.poll(LOOK_EVERY):
                piece = os.read(self._ready, 65536)
                said += piece
                if not piece:
                    break
            self._pass_on()
        if said:
            run, _, trouble = said.decode(errors="replace").partition("\n")
            if trouble:
                say(f"other terminals will not know of this run: {trouble}")
            sys.stdout.write(f"{run}\n")
            return 0
        status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        self._pass_on()
        sys.stderr.write(self._kept.decode(errors="replace"))
        if self._path:
            with suppress(OSError):
                os.unlink(self._path)
        return status if status >= 0 else 128 - status

    def _pass_on(self) -> None:
        """What the child has said since, in whole lines; those of ranks are for the file, unless the start fails."""
        data = os.pread(self._console, 1 << 20, self._at)
        lines = data[: data.rfind(b"\n") + 1]
        self._at += len(lines)
        for line in lines.splitlines(keepends=True):
            if line.startswith(_OF_RANKS):
                self._kept += line
            else:
                sys.stderr.write(line.decode(errors="replace"))
        sys.stderr.flush()


def _console(job: Job) -> tuple[int, str]:
    """The file that the child writes to, and its path; none where there are no log files, or can be none."""
    if job.log_dir:
        with suppress(OSError):
            os.makedirs(job.log_dir, exist_ok=True)
            path = os.path.abspath(os.path.join(job.log_dir, f".console-{os.urandom(6).hex()}"))
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666), path
    return os.memfd_create("console", os.MFD_CLOEXEC), ""


def _leave_terminal(console: int, keep: set[int]) -> None:
    """In the child. What the shell, or sshd, waits for to be closed must not stay open here."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(console, 1)
    os.dup2(console, 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with suppress(OSError):
                os.close(int(name))


@contextmanager
def _held(numbers: tuple[int, ...]) -> Iterator[None]:
    """These signals wait meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
