"""Level 6: one place where ``zlaunch run`` waits: for a signal, for the end, for a reader that leaves.

A signal handler that called into the launcher could find it holding the very lock that it needs. So no
handler does anything: Python's wake-up descriptor writes each signal's number into a pipe, whoever else has
news writes there too, and the main thread reads them in the order in which they came.
"""

from __future__ import annotations

import os
import select
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Literal, NamedTuple

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
_DONE = 0  # no signal has this number


class Ring(NamedTuple):
    """Why the doorbell rang; ``signal`` is 0 but for a signal."""

    kind: Literal["signal", "done", "broken"]
    signal: int = 0


class Interrupted(BaseException):
    """A signal came while we were ``impatient``."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


class Doorbell:
    """Answers the signals of a run, from ``with`` to the end of its block. For the main thread."""

    def __init__(self, *more: int) -> None:
        """``more`` are signals besides ``SIGNALS``."""
        self._signals = (*SIGNALS, *more)
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pending = b""
        self._before: dict[int, object] = {}
        self._fd_before = -1
        self._impatient = False

    def __enter__(self) -> Doorbell:
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._signals:
            # What was ignored when we came (nohup; a shell's background job) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as getsignal gave it
        os.close(self._read)
        self._read = -1

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Within this block a signal raises ``Interrupted``: for a call that we cannot ask to come back."""
        self._impatient = True
        try:
            yield
        finally:
            self._impatient = False

    def done(self, _: object = None) -> None:
        """Ring from any thread: the run is over."""
        os.write(self._write, bytes([_DONE]))

    def wait(self, reader: int | None = None) -> Ring:
        """The next ring. ``reader`` is a descriptor that we write to: ``broken`` once nobody reads it."""
        while not self._pending:
            poll = select.poll()
            poll.register(self._read, select.POLLIN)
            if reader is not None:
                poll.register(reader, 0)  # an end of the other side is told without asking for it
            for fd, _ in poll.poll():
                if fd == self._read:
                    self._pending += os.read(self._read, 4096)
                elif not self._pending:
                    return Ring("broken")
        number, self._pending = self._pending[0], self._pending[1:]
        return Ring("done") if number == _DONE else Ring("signal", number)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """The wake-up descriptor has the number already; Python only needs a handler to be there."""
        if self._impatient and number != signal.SIGTSTP:
            raise Interrupted(number)


def reader_to_watch(fd: int) -> int | None:
    """``fd`` where it is a pipe or a socket, so that its reader can leave before we do (``| head``)."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return None
    return fd if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None
