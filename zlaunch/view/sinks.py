"""Level 4, view: the console's descriptors. A console may be slow, stopped or gone; the writer can be freed.

A pipe or a terminal is opened anew, non-blocking, so that a reader that has stopped reading holds up a
``poll`` that we can leave and not a ``write`` that we cannot, and so that no other user of the descriptor
sees it change. Python's own buffered streams are by-passed: a thread that is stuck within one holds its
lock, and the interpreter could not exit.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO


class Patience:
    """How long a stuck console is waited for: for ever, until someone is in a hurry. Thread-safe."""

    def __init__(self) -> None:
        self._deadline: float | None = None
        self._lock = threading.Lock()  # guards the bell against being rung once it is closed
        self._closed = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def hurry(self, seconds: float) -> None:
        """From now on all waiting together may take so long."""
        self._deadline = time.monotonic() + seconds
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._bell, 1)

    def relax(self) -> None:
        """Wait for as long as it takes again."""
        self._deadline = None

    def wait(self, fd: int) -> bool:
        """Waits until ``fd`` takes bytes; false where patience ended first."""
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        poller.register(self._bell, select.POLLIN)
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            ready = {number for number, _ in poller.poll(None if left is None else left * 1000)}
            if fd in ready:
                return True
            if self._bell in ready:
                os.eventfd_read(self._bell)
            elif left == 0:
                return False

    def close(self) -> None:
        """Gives the descriptor back."""
        with self._lock:
            self._closed = True
            os.close(self._bell)


class Sink(Protocol):
    """Where the console's bytes go. ``write`` gives the bytes that were not taken, and raises OSError."""

    def write(self, data: bytes) -> int:
        """Writes; waits where it must."""

    def close(self) -> None:
        """Gives back what was opened."""


class DescriptorSink:
    """A console with a file descriptor."""

    def __init__(self, stream: TextIO, fd: int, patience: Patience) -> None:
        self._stream = stream
        self._patience = patience
        self._own: int | None = None
        self._socket: socket.socket | None = None
        self._blocking = False
        kind = os.fstat(fd).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:  # someone else's terminal, a pipe without a reader: small writes where poll allows one
                self._blocking = True
        elif stat.S_ISSOCK(kind):
            self._socket = socket.socket(fileno=os.dup(fd))
        self._fd = fd if self._own is None else self._own
        self._waits = not stat.S_ISREG(kind)

    def write(self, data: bytes) -> int:
        """Writes; gives the bytes that were not taken."""
        view = memoryview(data)
        flushed = False
        while view:
            try:
                if self._waits and (self._blocking or not flushed) and not self._patience.wait(self._fd):
                    return len(view)
                if not flushed:
                    self._stream.flush()  # what the program itself printed before comes first
                    flushed = True
                view = view[self._send(view) :]
            except BlockingIOError:
                if not self._patience.wait(self._fd):
                    return len(view)
        return 0

    def _send(self, view: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._fd, view[:1024] if self._blocking else view)

    def close(self) -> None:
        """Gives back what was opened."""
        if self._own is not None:
            os.close(self._own)
        if self._socket is not None:
            self._socket.close()


class StreamSink:
    """A console that is only a Python object: a notebook's, or one that a test captures."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._buffer: Any = getattr(stream, "buffer", None)

    def write(self, data: bytes) -> int:
        """Writes; gives the bytes that were not taken."""
        if self._buffer is None:
            self._stream.write(data.decode(errors="replace"))
        else:
            self._stream.flush()
            self._buffer.write(data)
            self._buffer.flush()
        self._stream.flush()
        return 0

    def close(self) -> None:
        """Nothing: the stream is not ours."""


def open_sink(stream: TextIO | None, patience: Patience) -> Sink | None:
    """The sink for a stream such as ``sys.stdout``; ``None`` where it is closed or missing."""
    if stream is None or getattr(stream, "closed", False):
        return None
    if getattr(stream, "buffer", None) is not None:
        try:
            return DescriptorSink(stream, stream.fileno(), patience)
        except (OSError, ValueError):
            pass
    return StreamSink(stream)


class Outlet:
    """One of the console's two streams: opened when needed, given up when gone, its refusals counted."""

    def __init__(
        self,
        stream: Callable[[], TextIO | None],
        patience: Patience,
        lost: Callable[[], None],
    ) -> None:
        self.stream = stream
        self._patience = patience
        self._lost = lost
        self._sink: Sink | None = None
        self.broken = False
        self.refused = 0
        self.reason = ""

    def write(self, data: bytes) -> None:
        """Writes all of ``data`` or counts what was refused; raises nothing."""
        if self.broken or not data:
            return
        try:
            if self._sink is None:
                self._sink = open_sink(self.stream(), self._patience)
                if self._sink is None:
                    return
            left = self._sink.write(data)
            if left:
                self.refused += left
                self.reason = "it took nothing more"
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self.refused += len(data)
                self.reason = os.strerror(error.errno)
                return
            self._give_up()
        except ValueError:  # closed under us
            self._give_up()

    def reopen(self) -> None:
        """The next write resolves the stream again: ``sys.stdout`` may be another one by now."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None
        self.broken = False

    def close(self) -> None:
        """Gives back what was opened."""
        self.reopen()
        self.broken = True

    def _give_up(self) -> None:
        self.broken = True
        self._lost()
