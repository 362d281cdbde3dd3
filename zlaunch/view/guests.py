"""Level 4, view: what the program itself prints while there is a table on its terminal: it stands above the table.

A program that uses the API goes on while its run is shown, and prints. Its streams stay what they are: only their
method ``write`` makes room first, while there is a table. So whoever holds a stream already (a handler of ``logging``)
is served, too, and what has no end of line yet is shown, and waits for it. What goes past the streams (``os.write``,
other processes, the question of an ``input``) is erased with the table, or stands in it.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TextIO

from ..printable import harmless
from .terminal import lend

_lock = threading.Lock()  # guards what follows
_served: dict[io.TextIOWrapper, _Stream] = {}


class Guests:
    """The program's streams that go to a terminal, as long as they are ``welcome``: while there may be a table."""

    def __init__(self, fd: int) -> None:
        self._device = os.fstat(fd).st_rdev
        self._here: list[_Stream] = []

    def welcome(self) -> None:
        """From here on."""
        with _lock:
            if self._here:
                return
            for stream in _on(self._device, (sys.stdout, sys.stderr)):
                served = _served.get(stream)
                if served is None:
                    served = _served[stream] = _Stream(stream, self._device)
                served.hosts += 1
                self._here.append(served)

    def see_off(self) -> None:
        """No more; what waits for the end of its line is written."""
        with _lock:
            leaving, self._here = self._here, []
            for served in leaving:
                served.hosts -= 1
            done = [served for served in leaving if not served.hosts]
            for served in done:
                del _served[served.stream]
        for served in done:
            served.restore()


class _Stream:
    """One of them; for all launchers that show their runs on this terminal."""

    def __init__(self, stream: io.TextIOWrapper, device: int) -> None:
        self.stream = stream
        self.hosts = 0
        self._device = device
        self._original: Callable[[str], int] = stream.write
        self._lock = threading.RLock()  # guards what has begun; a signal's handler may print while we do
        self._begun: dict[int, str] = {}
        """By thread, of which each finishes its own line: ``print`` writes in pieces."""
        self._process = os.getpid()
        vars(stream)["write"] = self.write

    def restore(self) -> None:
        """The stream is as it was."""
        if vars(self.stream).get("write") == self.write:  # else somebody has come after us, and calls us
            del vars(self.stream)["write"]
        with self._lock, suppress(OSError, ValueError):  # it may be closed, or its terminal
            for begun in self._begun.values():
                self._original(begun)
            self._begun.clear()
            self.stream.flush()

    def write(self, text: str) -> int:
        """In the place of the stream's own."""
        if not isinstance(text, str) or os.getpid() != self._process:  # a child of the program's draws no table
            return self._original(text)
        thread = threading.get_ident()
        with self._lock:
            whole = self._begun.get(thread, "") + text
            lines, end, begun = whole.rpartition("\n")
            begun = _last_state(begun)

            def write() -> None:
                self._begun[thread] = begun
                if end:
                    self._original(lines + end)
                    self.stream.flush()

            if not lend(self._device, write, harmless(begun.encode(errors="replace"))):
                self._begun.pop(thread, None)
                self._original(whole)
        return len(text)


def _on(device: int, streams: Iterable[TextIO | None]) -> Iterable[io.TextIOWrapper]:
    """Those that go to this terminal."""
    for stream in dict.fromkeys(streams):
        try:
            if isinstance(stream, io.TextIOWrapper) and os.fstat(stream.fileno()).st_rdev == device:
                yield stream
        except (OSError, ValueError):  # it is closed, or has no descriptor
            continue


def _last_state(text: str) -> str:
    """What a terminal shows of an unfinished line."""
    return text[text.rstrip("\r").rfind("\r") + 1 :]
