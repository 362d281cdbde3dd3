"""Level 4: a host's pipes, emptied in batches and sent as log messages.

A pipe that has woken us is left alone for ``BATCH`` seconds and then emptied: so a rank that prints 100,000 lines a
second wakes the agent 100 times, not 100,000 times, while a pipe of 1 MiB keeps it from waiting. When the supervisor's
credit is used up nothing is read; the pipes fill, and the ranks wait as they would for any terminal.
"""

from __future__ import annotations

import array
import fcntl
import os
import termios
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from msgspec import Struct, field

from ..model import StreamName
from ..protocol.messages import Log
from .lines import LineSplitter

BATCH = 0.01
PIPE_SIZE = 1 << 20
READ_SIZE = 1 << 20
FRAME = 1 << 20
F_SETPIPE_SZ = 1031
STATE_EVERY, SELDOM = 0.5, 5.0
"""Seconds between two looks at a line that redraws itself, such as a progress bar: as a view is drawn, and where there
are very many of them."""
STATES = 1000
"""Of them in a second, of all ranks of a run."""
STATE_SIZE = 500
"""Bytes of it that are shown."""

SendLog = Callable[[Log, list[bytes]], None]


class Stream(Struct):
    """The read end of one rank's stdout or stderr."""

    step: str
    rank: int
    name: StreamName
    fd: int
    splitter: LineSplitter = field(default_factory=LineSplitter)
    due: float | None = None
    """When it is to be emptied; ``None`` while it is quiet."""
    state_every: float = STATE_EVERY
    state_due: float | None = None
    """When the state of a line that redraws itself is to be shown; ``None`` where there is no new one."""
    state_shown: float | None = None
    """When that was done last; ``None`` of a line that has just begun."""


class Pump:
    """All streams of a host's ranks."""

    def __init__(self, send: SendLog) -> None:
        self.send = send
        self.streams: dict[int, Stream] = {}
        self.credit = 0
        self.sent = 0
        """Log messages so far."""

    def open(self, step: str, rank: int, name: StreamName, world_size: int = 1) -> int:
        """A new pipe for a rank's stream; returns its write end, which the caller passes on and closes."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        with suppress(OSError):  # the user's share of pipe memory is used up (pipe-user-pages-soft): slower, not wrong
            fcntl.fcntl(write_end, F_SETPIPE_SZ, PIPE_SIZE)
        every = min(SELDOM, max(STATE_EVERY, world_size / STATES))
        self.streams[read_end] = Stream(step, rank, name, read_end, state_every=every)
        return write_end

    def watched(self) -> Collection[int]:
        """The pipes to wait for: those that are quiet."""
        if self.credit <= 0:
            return ()
        return [fd for fd, stream in self.streams.items() if stream.due is None]

    def deadline(self) -> float | None:
        """When the next pipe is to be emptied, or a state shown."""
        if self.credit <= 0:
            return None
        times = [time for s in self.streams.values() for time in (s.due, s.state_due) if time is not None]
        return min(times, default=None)

    def readable(self, fd: int, now: float) -> None:
        """A quiet pipe has something."""
        self.streams[fd].due = now + BATCH

    def tick(self, now: float) -> None:
        """Empty what is due, and show states that are."""
        for stream in list(self.streams.values()):
            if stream.due is not None and stream.due <= now and self.credit > 0:
                stream.due = None
                self._empty(stream)
                self._plan_state(stream, now)
            if stream.state_due is not None and stream.state_due <= now and self.credit > 0:
                stream.state_due, stream.state_shown = None, now
                self._send(stream, stream.splitter.state()[:STATE_SIZE], piece=False, redraw=True)

    def drain(self, step: str, rank: int) -> None:
        """A rank is dead: forward what its pipes hold now, its unfinished lines too.

        Bounded by what is in the pipes, and not by their end: a process that the rank left behind may hold and fill
        them. Credit is not asked for: a fate does not wait for a slow console.
        """
        for stream in [s for s in self.streams.values() if (s.step, s.rank) == (step, rank)]:
            self._read(stream, _pipe_content(stream.fd))
            rest = stream.splitter.finish()
            if rest:
                self._send(stream, rest, piece=False)

    def close(self, step: str) -> None:
        """A step is over and its processes are gone: what they still wrote is forwarded, and the pipes are closed."""
        for stream in [s for s in self.streams.values() if s.step == step]:
            self.drain(step, stream.rank)
            del self.streams[stream.fd]
            os.close(stream.fd)

    def _empty(self, stream: Stream) -> None:
        if not self._read(stream, READ_SIZE):
            self.streams.pop(stream.fd)  # every writer has closed it
            rest = stream.splitter.finish()
            if rest:
                self._send(stream, rest, piece=False)
            os.close(stream.fd)

    def _plan_state(self, stream: Stream, now: float) -> None:
        """A bar that is finished soon is shown once, as the line that it has become; a long one again and again."""
        if not stream.splitter.redraws:
            stream.state_due = stream.state_shown = None
        elif stream.state_due is None:
            stream.state_due = max(
                now, (now if stream.state_shown is None else stream.state_shown) + stream.state_every
            )

    def _read(self, stream: Stream, size: int) -> bool:
        """Forward up to ``size`` bytes; False at the pipe's end."""
        while size > 0:
            try:
                data = os.read(stream.fd, min(size, READ_SIZE))
            except BlockingIOError:
                return True
            if not data:
                return False
            for lines, piece in stream.splitter.feed(data):
                self._send(stream, lines, piece)
            asked, size = min(size, READ_SIZE), size - len(data)
            if len(data) < asked:
                return True  # empty for now: to ask again would be a message for every few lines of a busy rank
        return True

    def _send(self, stream: Stream, data: bytes, piece: bool, redraw: bool = False) -> None:
        self.sent += 1
        self.credit -= len(data)
        log = Log(self.sent, stream.step, stream.rank, stream.name, time.monotonic(), len(data), piece, redraw)
        if len(data) <= FRAME:
            self.send(log, [data])
        else:
            self.send(log, [data[i : i + FRAME] for i in range(0, len(data), FRAME)])


def _pipe_content(fd: int) -> int:
    size = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, size)
    return size[0]
