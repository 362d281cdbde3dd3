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
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from .sinks import Outlet

LEAST_COLUMNS, LEAST_ROWS = 60, 15
"""The smallest window that the view is made for."""
PIECE = 64 << 10
"""Bytes after which the region is drawn again, however much is still to be written."""

STUCK = 0.2
"""Seconds that another thread waits for a terminal."""

_BEGIN = b"\x1b[?2026h\x1b[?25l"  # show nothing until the end; no cursor that jumps about
_END = b"\x1b[?25h\x1b[?2026l"
_ERASE = b"\r\x1b[0m\x1b[K\x1b7\x1b[B\x1b[J\x1b8"
"""This line, then all below. In one go, from the screen's first line, tmux would keep a copy in its history."""


class _Stage:
    """What all that draw on one terminal share: a program may have several launchers, each with a region of its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # guards all that follows, and the order of writes
        self.regions: dict[Terminal, Sequence[str]] = {}
        self.drawn = False
        self.begun = b""
        """What stands in the first line, and is not ours."""

    def region(self) -> bytes:
        """All regions, one below the other."""
        return _region([line for lines in self.regions.values() for line in lines], self.begun)


_stages: dict[int, _Stage] = {}
"""By the terminal's device number."""


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
    """Lines above, the region below. For one thread; ``aside`` is for all others.

    Args:
        fd: the terminal.
        outlet: what writes to it.
    """

    def __init__(self, fd: int, outlet: Outlet) -> None:
        self.outlet = outlet
        self._stage = _stages.setdefault(os.fstat(fd).st_rdev, _Stage())

    @property
    def shared_by(self) -> int:
        """How many regions there are on this terminal."""
        return len(self._stage.regions.keys() | {self})

    def show(self, lines: Sequence[str]) -> None:
        """Draws the region anew; without lines it goes with the next ``write``, or with ``hide``."""
        stage = self._stage
        with stage.lock:
            stage.regions[self] = lines
            if lines:
                self.outlet.write(_BEGIN + stage.region() + _END)
                stage.drawn = True

    def write(self, data: bytes) -> None:
        """Whole lines, above the region."""
        with self._stage.lock:
            self._write(data)

    def aside(self, data: bytes) -> bool:
        """The same from any thread; false, and nothing is written, where nothing is drawn or the terminal is stuck."""
        stage = self._stage
        if not stage.lock.acquire(timeout=STUCK):
            return False
        try:
            if not stage.drawn:
                return False
            self._write(data)
        finally:
            stage.lock.release()
        return True

    def hide(self, *, for_good: bool = False) -> None:
        """Erases the region until it is drawn again; ``for_good``: and what others have begun is not shown any more."""
        with self._stage.lock:
            self._stage.regions.pop(self, None)
            if for_good and not self._stage.regions:
                self._stage.begun = b""
            self._write(b"")

    def _write(self, data: bytes) -> None:
        stage = self._stage
        region = stage.region()
        start, more = 0, True
        while more:
            end = len(data)
            if end - start > PIECE:
                end = data.rfind(b"\n", start, start + PIECE) + 1 or data.find(b"\n", start) + 1 or end
            piece = data[start:end] if start or end < len(data) else data
            if region:
                self.outlet.write(b"".join((_BEGIN, _ERASE if stage.drawn else b"", piece, region, _END)))
            elif piece or stage.drawn:
                self.outlet.write(_ERASE + piece if stage.drawn else piece)
            stage.drawn = bool(region)
            start, more = end, end < len(data)


def aside(text: str) -> bool:
    """Writes whole lines of our own above whatever is drawn on a terminal; false where nothing is. For any thread."""
    drawing = [terminal for stage in list(_stages.values()) for terminal in list(stage.regions)[:1]]
    return any(terminal.aside(text.encode(errors="backslashreplace")) for terminal in drawing)


def lend(device: int, write: Callable[[], None], begun: bytes) -> bool:
    """Has somebody else write whole lines above what is drawn; false where nothing is, or for now. For any thread.

    Args:
        device: the terminal's number.
        write: writes them; what it raises is raised.
        begun: of a line that is not finished: it stands below them until the next time.
    """
    stage = _stages.get(device)
    if stage is None or not stage.lock.acquire(timeout=STUCK):  # or this thread has it: a signal's handler prints
        return False
    try:
        terminal = next(iter(stage.regions), None)
        if terminal is None or not stage.drawn:
            return False
        terminal.outlet.write(_ERASE)
        stage.drawn = False
        write()
        stage.begun = begun
        terminal.outlet.write(_BEGIN + stage.region() + _END)
        stage.drawn = True
    finally:
        stage.lock.release()
    return True


def _region(lines: Sequence[str], begun: bytes) -> bytes:
    """The lines, with the cursor in the first one, which is blank but for what somebody else has ``begun``.

    Lines do not wrap: a character that takes more cells than we think costs its line's end, and not the count of rows.
    """
    if not lines:
        return b""
    text = "\x1b[K\r\n".join(lines).encode(errors="replace")
    up = b"\x1b[%dA" % (len(lines) - 1) if len(lines) > 1 else b""
    return b"\r\x1b[?7l" + text + b"\x1b[K\x1b[J\r" + up + begun + b"\x1b[?7h"
