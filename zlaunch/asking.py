"""Level 5: a scheduler's commands as they are run: questions, and the one that asks for nodes and holds them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from .backends.scheduler import Command, Nodes, Scheduler, granted
from .errors import LaunchError

ASK_EVERY = 2.0
"""Seconds between looks at a job that waits in the queue."""
PATIENCE = 30.0
"""Seconds that a scheduler's command may take; a controller that is away answers after 10 or so."""
RELEASE_PATIENCE = 10.0
"""Seconds that a job of ours may take to end by itself, with its agents; then it is cancelled."""
LAST_PATIENCE = 1.0
"""Seconds that a command may take to end once its job has been cancelled."""


def call(
    scheduler: Scheduler, argv: Sequence[str], patience: float = PATIENCE, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of a scheduler's; ``stdin`` is a file that it reads.

    Raises:
        LaunchError: it could not be started, or has not ended in time.
    """
    try:
        with open(stdin or os.devnull) as file:
            return subprocess.run(
                argv,
                env=scheduler.environment(os.environ),
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


class Holder:
    """A command that asks for nodes, starts agents there, and gives the nodes back when these have ended.

    Raises LaunchError where it cannot be started.
    """

    def __init__(self, scheduler: Scheduler, command: Command) -> None:
        self._scheduler = scheduler
        self._printed, self._said = bytearray(), bytearray()
        self._told = ""
        try:
            self.process = subprocess.Popen(
                command.argv,
                env=scheduler.environment(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C goes to us, and we give the request up
                bufsize=0,
            )
        except OSError as error:
            words = f"{command.argv[0]} could not be started: {error.strerror}; is this a login node?"
            raise LaunchError(words) from None

    @property
    def said(self) -> bytes:
        """What was on its stderr while it was waited for."""
        return bytes(self._said)

    @property
    def job(self) -> str | None:
        """The id of the job that it has asked for, once that is known."""
        return self._scheduler.job_of((self._said + self._printed).decode(errors="replace"))

    def wait(self, tell: Callable[[str], None]) -> Nodes:
        """Until there are nodes, however long the queue is; ``tell`` says what is waited for, where that is news.

        Raises:
            LaunchError: the scheduler refuses, or takes the job away again.
        """
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        streams = {self.process.stdout.fileno(): self._printed, self.process.stderr.fileno(): self._said}
        ask_at = time.monotonic() + ASK_EVERY
        while (nodes := granted(self._printed.decode(errors="replace"))) is None:
            ready, _, _ = select.select(list(streams), (), (), max(0.0, ask_at - time.monotonic()))
            for fd in ready:
                data = os.read(fd, 65536)
                streams[fd].extend(data)
                if not data:
                    del streams[fd]
            if not streams:
                raise LaunchError(self._refusal())
            if time.monotonic() >= ask_at:
                self._tell_state(tell)
                ask_at = time.monotonic() + ASK_EVERY
        return nodes

    def _refusal(self) -> str:
        words = (self._said + self._printed).decode(errors="replace").strip()
        name, status = os.path.basename(str(self.process.args[0])), self.process.wait()  # type: ignore[index]
        return f"{self._scheduler.title} gave no nodes ({name} ended with status {status}):\n{words}"

    def _tell_state(self, tell: Callable[[str], None]) -> None:
        job = self.job
        if job is None:
            return
        with suppress(LaunchError):
            state = self._scheduler.state(answer(self._scheduler, self._scheduler.state_argv(job)))
            text = f"{self._scheduler.title}'s job {job} is {state}"
            if state and text != self._told:
                tell(text)
                self._told = text

    def end(self, *, by_itself: bool) -> None:
        """Let go, and see to it that the scheduler takes back what we have, or had asked for.

        At the end of its stdin a job of ours ends ``by_itself``. One that is still in the queue reads nothing: it is
        cancelled. A command that gives nodes back must not be signalled, nor find its stderr closed: it would keep
        them. One that somebody has killed has given nothing back.
        """
        process, job = self.process, self.job
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        if job is None and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        if not (by_itself and self._has_ended(RELEASE_PATIENCE) and process.returncode >= 0):
            if job is not None:
                with suppress(LaunchError):
                    answer(self._scheduler, self._scheduler.cancel_argv(job))
            if not self._has_ended(LAST_PATIENCE):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def _has_ended(self, patience: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        return self.process.poll() is not None
