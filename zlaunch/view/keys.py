"""Level 4, view: the few keys of the live view, read from the terminal while a run is shown.

Only where stdin is that terminal and we are in its foreground: then keys come at once and without an echo, while
Ctrl-C and Ctrl-Z stay signals. The terminal's settings are restored when the reading ends, at the interpreter's exit at
the latest. What was typed ahead belongs to whoever reads after us: where something waits already, we read nothing.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_reading: set[Keys] = set()


class Keys:
    """Reads the keys of one terminal, in a thread of its own.

    Args:
        fd: the terminal that we draw on.
        stdin: what may be the same terminal.
        pressed: called in that thread, for each key.
    """

    def __init__(self, fd: int, stdin: TextIO | None, pressed: Callable[[str], None]) -> None:
        self._pressed = pressed
        self._fd = _ours(fd, stdin)
        self._lock = threading.Lock()  # guards the settings, restored by whoever comes first
        self._before: list[int | list[bytes | int]] | None = None
        self._bell = -1
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Begins to read; false where keys are not ours to read."""
        if self._fd < 0 or self._thread is not None or not _foreground(self._fd):
            return False
        if select.select([self._fd], [], [], 0)[0]:
            return False
        with self._lock, _background_too():
            before = termios.tcgetattr(self._fd)
            wanted = [*before[:6], [*before[6]]]
            wanted[3] &= ~(termios.ICANON | termios.ECHO)
            wanted[6][termios.VMIN], wanted[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._fd, termios.TCSANOW, wanted)
            self._before = before
        _reading.add(self)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._read, name="zlaunch-keys", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> None:
        """Restores the terminal, and ends the reading."""
        self.restore()
        _reading.discard(self)
        if self._thread is not None:
            os.eventfd_write(self._bell, 1)
            self._thread.join(1.0)
            os.close(self._bell)
            self._thread = None

    def restore(self) -> None:
        """Gives the terminal its settings back."""
        with self._lock:
            before, self._before = self._before, None
            if before is not None:
                with _background_too(), suppress(termios.error, OSError):  # it may be gone
                    termios.tcsetattr(self._fd, termios.TCSANOW, before)

    def _read(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTIN, signal.SIGTTOU])
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._bell, select.POLLIN)
        while self._before is not None:
            ready = dict(poller.poll())
            if self._bell in ready:
                return
            try:
                data = os.read(self._fd, 64) if _foreground(self._fd) else b""
            except OSError:
                return
            if not data:  # hung up, or in the background: others' input
                return
            if len(data) == 1 or not data.startswith(b"\x1b"):  # else an arrow, or another key of many bytes
                for key in data.decode(errors="ignore"):
                    self._pressed(key)


def restore_all() -> None:
    """For who leaves without the usual way out: terminals are as they were."""
    for keys in list(_reading):
        keys.restore()


atexit.register(restore_all)


def _ours(fd: int, stdin: TextIO | None) -> int:
    try:
        own = stdin.fileno() if stdin is not None else -1
        same = own >= 0 and os.isatty(own) and os.fstat(own).st_rdev == os.fstat(fd).st_rdev
    except (AttributeError, OSError, ValueError):
        return -1
    return own if same else -1


def _foreground(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def _background_too() -> Iterator[None]:
    """Within, nobody is stopped for changing a terminal's settings from the background."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
