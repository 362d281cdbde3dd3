"""Level 4, view: a terminal on which log lines scroll by above a region that is drawn again and again.

The cursor rests in the region's first line, which is blank. To erase the region is then one code, whatever the window
has become meanwhile: a terminal that wraps lines anew when its window is resized moves the cursor with its line. What
somebody else prints meanwhile (a program that uses the API, the echo of a ``^C``) stands in that blank line, and stays.
And there is nothing to give back: who is killed leaves a terminal as it was, with a visible cursor, above some text. A
scroll region would keep others' lines apart more neatly, and leave a broken terminal to whoever is killed.

Each change is one write, so that two threads' changes do not mix; terminals that can do so show it at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TextIO

from .sinks import Outlet

LEAST_COLUMNS, LEAST_ROWS = 60, 15
"""The smallest window that the view is made for."""
PIECE = 64 << 10
"""Bytes after which the region is drawn again, however much is still to be written."""

_BEGIN = b"\x1b[?2026h\x1b[?25l"  # show nothing until the end; no cursor that jumps about
_END = b"\x1b[?25h\x1b[?2026l"
_ERASE = b"\r\x1b[0m\x1b[K\x1b7\x1b[B\x1b[J\x1b8"
"""This line, then all below. In one go, from the screen's first line, tmux would keep a copy in its history."""

_drawing: set[Terminal] = set()


class Unfit(Exception):
    """The console is no terminal to draw on; says why."""


def fit_terminal(stdout: TextIO | None, stderr: TextIO | None, environ: Mapping[str, str]) -> int:
    """The descriptor of the one terminal that both streams go to. Raises ``Unfit``."""
    descriptors = []
    for name, stream in (("stdout", stdout), ("stderr", stderr)):
        try:
            fd = stream.fileno() if stream is not None else -1
        except (AttributeError, OSError, ValueError):
            fd = -1
        if fd < 0 or not os.isatty(fd):
            raise Unfit(f"{name} is no terminal")
        descriptors.append(fd)
    out, err = descriptors
    if os.fstat(out).st_rdev != os.fstat(err).st_rdev:
        raise Unfit("stdout and stderr are two terminals")
    if environ.get("TERM", "") in ("", "dumb", "unknown"):
        raise Unfit("TERM says that the terminal cannot move its cursor")
    if in_background(out):
        raise Unfit("another program is in the foreground of this terminal")
    columns, rows = window(out)
    if columns < LEAST_COLUMNS or rows < LEAST_ROWS:
        raise Unfit(f"the window has {columns} x {rows} characters, and {LEAST_COLUMNS} x {LEAST_ROWS} are needed")
    return out


def is_notebook(stream: TextIO | None) -> bool:
    """Whether a stream is that of a notebook's cell."""
    return type(stream).__module__.partition(".")[0] == "ipykernel"


def in_background(fd: int) -> bool:
    """Whether the terminal is ours, and somebody else is at it (a shell, of whose background jobs we are)."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # it is not the one that we could be in the background of
        return False


def window(fd: int) -> tuple[int, int]:
    """Columns and rows; (0, 0) where the terminal is gone."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return size.columns, size.lines


class Terminal:
    """Lines above, the region below. For one thread, and ``aside`` for all others."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._lock = threading.Lock()  # guards all that follows, and the order of writes
        self._region = b""
        self._drawn = False

    def show(self, lines: Sequence[str]) -> None:
        """Draws the region anew; without lines it goes with the next ``write``, or with ``hide``."""
        with self._lock:
            self._region = _region(lines)
            if lines:
                self._outlet.write(_BEGIN + self._region + _END)
                self._drawn = True
                _drawing.add(self)

    def write(self, data: bytes) -> None:
        """Whole lines, above the region."""
        with self._lock:
            self._write(data)

    def aside(self, data: bytes) -> bool:
        """The same from any thread; false, and nothing is written, where nothing is drawn or the terminal is stuck."""
        if not self._lock.acquire(timeout=0.2):
            return False
        try:
            if not self._drawn:
                return False
            self._write(data)
        finally:
            self._lock.release()
        return True

    def hide(self) -> None:
        """Erases the region until it is drawn again."""
        with self._lock:
            self._region = b""
            self._write(b"")
            _drawing.discard(self)

    def _write(self, data: bytes) -> None:
        start, more = 0, True
        while more:
            end = len(data)
            if end - start > PIECE:
                end = data.rfind(b"\n", start, start + PIECE) + 1 or data.find(b"\n", start) + 1 or end
            piece = data[start:end] if start or end < len(data) else data
            if self._region:
                self._outlet.write(b"".join((_BEGIN, _ERASE if self._drawn else b"", piece, self._region, _END)))
            elif piece or self._drawn:
                self._outlet.write(_ERASE + piece if self._drawn else piece)
            self._drawn = bool(self._region)
            start, more = end, end < len(data)


def aside(text: str) -> bool:
    """Writes whole lines of our own above whatever is drawn on a terminal; false where nothing is. For any thread."""
    return any(terminal.aside(text.encode(errors="backslashreplace")) for terminal in list(_drawing))


def _region(lines: Sequence[str]) -> bytes:
    """The lines, with the cursor at the beginning of the first one.

    Lines do not wrap: a character that takes more cells than we think costs its line's end, and not the count of rows.
    """
    if not lines:
        return b""
    text = "\x1b[K\r\n".join(lines).encode(errors="replace")
    up = b"\x1b[%dA" % (len(lines) - 1) if len(lines) > 1 else b""
    return b"\r\x1b[?7l" + text + b"\x1b[K\x1b[J\r" + up + b"\x1b[?7h"
