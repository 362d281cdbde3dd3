"""Level 5: a scheduler's commands as they are run: questions, and the one that asks for nodes and holds them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from .backends.scheduler import Command, Nodes, Scheduler, granted
from .errors import LaunchError

ASK_EVERY = 2.0
"""Seconds between looks at a job that waits in the queue."""
PATIENCE = 30.0
"""Seconds that a scheduler's command may take; a controller that is away answers after 10 or so."""
RELEASE_PATIENCE = 10.0
"""Seconds that a job of ours may take to end by itself, with its agents; then it is cancelled."""
BIRTH_PATIENCE = 3.0
"""Seconds that a command may take to say which job it has asked for."""
LAST_PATIENCE = 1.0
"""Seconds that a command may take to end once its job has been cancelled."""


def call(
    scheduler: Scheduler,
    argv: Sequence[str],
    patience: float = PATIENCE,
    *,
    stdin: str | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run a command of a scheduler's.

    Args:
        scheduler: whose.
        argv: the command.
        patience: seconds that it may take.
        stdin: a file that it reads.
        more: variables on top of our environment.

    Raises:
        LaunchError: it could not be started, or has not ended in time.
    """
    try:
        with open(stdin or os.devnull) as file:
            return subprocess.run(
                argv,
                env=scheduler.environment({**os.environ, **more}),
                stdin=file,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=patience,
                check=False,
            )
    except OSError as error:
        raise LaunchError(f"{argv[0]} could not be started: {error.strerror}; is this a login node?") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{argv[0]} has not answered for {patience:g} s: is {scheduler.title} there?") from None


def answer(scheduler: Scheduler, argv: Sequence[str]) -> str:
    """What a command prints that succeeds. Raises LaunchError."""
    done = call(scheduler, argv)
    if done.returncode:
        raise LaunchError(f"{argv[0]} ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def send(scheduler: Scheduler, argv: Sequence[str]) -> None:
    """Start a command that nobody waits for, nor hears."""
    with suppress(OSError):
        subprocess.Popen(
            argv,
            env=scheduler.environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


class Holder:
    """A command that asks for nodes, starts agents there, and gives the nodes back when these have ended.

    A Ctrl-C never comes between it and our knowing of it, nor between us and its end.
    """

    def __init__(self, scheduler: Scheduler, command: Command, tell: Callable[[str], None]) -> None:
        """``tell`` says what is news to people."""
        self._scheduler, self._command, self._tell = scheduler, command, tell
        self._printed, self._said = bytearray(), bytearray()
        self._told = ""
        self._given_up = os.eventfd(0, os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._given_up)  # not sooner: somebody may be about to write there
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def said(self) -> bytes:
        """What was on its stderr while it was waited for."""
        return bytes(self._said)

    @property
    def printed(self) -> bytes:
        """What was on its stdout while it was waited for."""
        return bytes(self._printed)

    @property
    def job(self) -> str | None:
        """The id of the job that it has asked for, once that is known."""
        return self._scheduler.job_of((self._said + self._printed).decode(errors="replace"))

    def give_up(self) -> None:
        """From another thread: wait no longer."""
        os.eventfd_write(self._given_up, 1)

    def wait(self) -> Nodes:
        """Start it, and wait until there are nodes, however long the queue is.

        Raises:
            LaunchError: it cannot be started, the scheduler refuses, or takes the job away again, or we were told to
                give up.
        """
        undisturbed(self._start)
        ask_at = time.monotonic() + ASK_EVERY
        while (nodes := granted(self._printed.decode(errors="replace"))) is None:
            if not self._read(max(0.0, ask_at - time.monotonic())):
                raise LaunchError(self._refusal())
            if time.monotonic() >= ask_at:
                self._tell_state()
                ask_at = time.monotonic() + ASK_EVERY
        if not nodes.names:
            raise LaunchError(
                f"{self._scheduler.title} has granted job {nodes.job}, and named no nodes:\n{self._words()}"
            )
        return nodes

    def _start(self) -> None:
        argv = self._command.argv
        try:
            self.process = subprocess.Popen(
                argv,
                env=self._scheduler.environment(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C goes to us, and we give the request up
                bufsize=0,
            )
        except OSError as error:
            raise LaunchError(f"{argv[0]} could not be started: {error.strerror}; is this a login node?") from None
        self._open = {}
        self._pidfd = os.pidfd_open(self.process.pid)
        for stream, where in ((self.process.stdout, self._printed), (self.process.stderr, self._said)):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._open[stream.fileno()] = where

    def _read(self, timeout: float) -> bool:
        """Take what it says; False when it has ended, whoever may still hold its pipes."""
        ready, _, _ = select.select([*self._open, self._pidfd, self._given_up], (), (), timeout)
        if self._given_up in ready:
            os.eventfd_read(self._given_up)
            raise LaunchError("it was stopped before there were nodes")
        for fd in [fd for fd in ready if fd in self._open]:
            with suppress(BlockingIOError):
                data = os.read(fd, 65536)
                self._open[fd].extend(data)
                if not data:
                    del self._open[fd]
        return self._pidfd not in ready or any(fd in ready for fd in self._open)

    def _words(self) -> str:
        return self._scheduler.tidy((self._said + self._printed).decode(errors="replace"))

    def _refusal(self) -> str:
        assert self.process is not None
        name, status = os.path.basename(self._command.argv[0]), self.process.wait()
        return f"{self._scheduler.title} gave no nodes ({name} ended with status {status}):\n{self._words()}"

    def _tell_state(self) -> None:
        """Say what is waited for, where that is news."""
        job, text = self.job, ""
        if job is None:
            text = ": ".join([f"{self._scheduler.title} has named no job yet", *self._words().splitlines()[-1:]])
        else:
            try:
                state = self._scheduler.state(answer(self._scheduler, self._scheduler.state_argv(job)))
                text = f"{self._scheduler.title}'s job {job} is {state}" if state else ""
            except LaunchError as error:
                text = str(error)
        if text and text != self._told:
            self._tell(text)
            self._told = text

    # --- the end ----------------------------------------------------------------------------------------------------

    def end(self, *, by_itself: bool) -> None:
        """Let go, and see to it that the scheduler takes back what we have, or had asked for.

        At the end of its stdin a job of ours ends ``by_itself``. One that is still in the queue reads nothing: it is
        cancelled. A command that gives nodes back must not be signalled, nor find its stderr closed: it would keep
        them. One that somebody has killed has given nothing back.
        """
        undisturbed(lambda: self._end(by_itself))

    def _end(self, by_itself: bool) -> None:
        process = self.process
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        if not (by_itself and self._has_ended(RELEASE_PATIENCE) and process.returncode >= 0):
            self._cancel()
            if not self._has_ended(LAST_PATIENCE):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        os.close(self._pidfd)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def _cancel(self) -> None:
        """End the job; what has not told of one yet, and may have asked for it already, is waited for a moment."""
        deadline = time.monotonic() + BIRTH_PATIENCE
        with suppress(LaunchError):
            while self.job is None and time.monotonic() < deadline and self._read(deadline - time.monotonic()):
                pass
        job = self.job
        if job is None:
            return
        argv = self._scheduler.cancel_argv(job)
        try:
            answer(self._scheduler, argv)
        except LaunchError as error:
            self._tell(f"{self._scheduler.title}'s job {job} may still be there: {error}; try {' '.join(argv)}")

    def _has_ended(self, patience: float) -> bool:
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        return self.process.poll() is not None


def undisturbed(what: Callable[[], None]) -> None:
    """Do something whole, in a thread that no Ctrl-C reaches; one that comes meanwhile is raised after it."""
    raised: list[BaseException] = []
    done = threading.Event()  # a join that is interrupted takes the thread for ended, in Python 3.11

    def call() -> None:
        try:
            what()
        except BaseException as error:
            raised.append(error)
        finally:
            done.set()

    pressed: BaseException | None = None
    threading.Thread(target=call, name="zlaunch-undisturbed").start()
    while not done.is_set():
        try:
            done.wait()
        except BaseException as error:
            pressed = error
    if pressed or raised:
        raise pressed or raised[0]
