"""Level 4, view: the console: the ranks' lines, and zlaunch's own words on stderr; on a terminal a table below them.

Prefixes are ``ranklines``', folding of alike lines is ``folding``'s, the live table is ``screen``'s, descriptors are
``sinks``'. Only the desk's thread comes here.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from ..events import (
    AgentConnected,
    Event,
    Output,
    RankEnded,
    Record,
    Redrawn,
    RunEnded,
    RunRestarting,
    RunStarted,
)
from ..model import StreamName
from .board import Board
from .ranklines import RankLines
from .report import Line, has_colour, is_terminal
from .settings import ViewSettings
from .sinks import Outlet, Patience
from .states import States
from .terminal import Unfit, fit_terminal, is_notebook
from .text import short_record

if TYPE_CHECKING:
    from .notebook import Page
    from .screen import Screen

DIRECT = 32 << 10
"""Bytes from which a chunk is written by itself instead of being joined with others."""


class Console:
    """stdout and stderr of this program; ``quiet``, where another view shows the ranks: only our words.

    With the live view both are one terminal, on which all that is written scrolls by above a table of the ranks.

    Args:
        lost: is called once when a stream's reader has gone away.
        pressed: gets the keys of the live view, in a thread of their own; they come back by ``key``.
    """

    def __init__(
        self,
        settings: ViewSettings,
        patience: Patience,
        lost: Callable[[], None],
        *,
        quiet: bool,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        pressed: Callable[[str], None] = lambda key: None,
    ) -> None:
        self._settings = settings
        self.quiet = quiet
        self.out = Outlet(lambda: stdout or sys.stdout, patience, lost)
        self.err = Outlet(lambda: stderr or sys.stderr, patience, lost)
        self._pressed = pressed
        self._board = Board()
        self._screen: Screen | Page | None = None
        self._told_unfit = False
        self._runs: dict[str, RankLines] = {}
        self._states = States(verbose=settings.verbose)
        self._waiting: list[bytes] = []
        self._stream: StreamName = "out"
        self._now = 0.0

    def handle(self, event: Event, now: float) -> None:
        """Shows what is to be seen of an event; it is written by ``flush`` at the latest."""
        if not isinstance(event, RunStarted):
            self.watch(event, now)
        match event:
            case Output():
                if (run := self._runs.get(event.run)) is not None:
                    self._add(run.output(event, now))
            case Redrawn() if self._screen is None:  # else the table shows it
                if (run := self._runs.get(event.run)) is not None:
                    self._add(run.redrawn(event, now))
            case RunStarted():
                self._start(event, now)
            case RankEnded():
                if (run := self._runs.get(event.run)) is not None:
                    self._add(run.ended(event.fate.rank, now))
            case RunRestarting():
                self._drain(event.run)
            case RunEnded():
                self._drain(event.run)
                self._runs.pop(event.run, None)
            case _:
                pass
        for words in self._states.said(event, now):
            self.say(words)

    def watch(self, event: Event, now: float) -> None:
        """Lets the live table see an event."""
        if self._screen is not None:
            with self._table():
                self._screen.handle(event, now)
        elif isinstance(event, AgentConnected):  # a table that is made later asks for what its hosts have
            self._board.handle(event)

    def record(self, event: Record, now: float) -> None:
        """A logging record for which the program has no handler."""
        run = self._runs.get(event.run)
        if run is not None and not event.handled and event.level >= self._settings.log_level:
            self._add(run.text(event.rank, short_record(event), now))

    def report(self, lines: list[Line]) -> None:
        """The last words on a run, for the command line; in colour on a terminal that has some."""
        coloured = has_colour(self.err.stream())
        for line in lines:
            self.say(line.coloured() if coloured else line.text)

    def say(self, text: str) -> None:
        """zlaunch's own words, to stderr."""
        self.flush_folders()
        data = "".join(f"zlaunch: {line}\n" for line in text.splitlines() or [""])
        self._put("err", data.encode(errors="backslashreplace"))

    def be_quiet(self, quiet: bool = True) -> None:
        """From here on another view shows the ranks; or that of runs that start from here on is ours again."""
        self.quiet = quiet
        if quiet and self._screen is not None:
            self._screen.rest()
            self._screen = None

    def step_aside(self) -> None:
        """Somebody else may write to the console now: what we have comes before, and the table goes for a while."""
        if self._screen is not None:
            self.flush_folders()
            self.flush()
            self._screen.step_aside()

    def key(self, key: str, now: float) -> None:
        """A key of the live view."""
        if self._screen is not None:
            self._screen.key(key, now)

    def write_out(self, data: bytes) -> None:
        """Bytes of another view for stdout."""
        self._put("out", data)

    def due(self) -> float | None:
        """When a line has waited long enough for its likes, or the table is to be drawn."""
        dues = [self._states.due(), *(run.folder.due() for run in self._runs.values())]
        if self._screen is not None:
            dues.append(self._screen.due())
        return min((due for due in dues if due is not None), default=None)

    def tick(self, now: float) -> None:
        """Shows the lines that have waited long enough."""
        self._now = now
        for run in self._runs.values():
            self._add(run.render(run.folder.release(now)))
        for line in self._states.tick(now):
            if self._screen is None or self._settings.verbose:  # else the table shows it
                self.say(line)

    def flush_folders(self) -> None:
        """Shows the lines that wait for their likes, now."""
        for run in list(self._runs):
            self._drain(run)

    def flush(self) -> None:
        """Writes what was gathered, and draws the table where that is due."""
        if self._waiting:
            data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
            self._waiting.clear()
            if self._screen is not None and self._screen.mixes:
                self._screen.write(data)
            else:
                (self.out if self._stream == "out" else self.err).write(data)
        if self._screen is not None:
            with self._table():
                self._screen.tick(self._now)

    def close(self) -> None:
        """Shows and writes what is left, and says how much the console did not take."""
        self.flush_folders()
        self.flush()
        if self._screen is not None:
            self._screen.rest()
        for name, outlet in (("stdout", self.out), ("stderr", self.err)):
            if outlet.refused:
                self.say(f"{outlet.refused} bytes could not be written to {name}: {outlet.reason}")
        self.flush()
        self.out.close()
        self.err.close()

    @contextmanager
    def _table(self) -> Iterator[None]:
        """What fails in the table costs the table, and no line."""
        try:
            yield
        except Exception:
            screen, self._screen = self._screen, None
            if screen is not None:
                screen.rest()
            self.say(
                f"an error of zlaunch's own, in the live view; there are plain lines now:\n{traceback.format_exc()}"
            )

    def _open_screen(self) -> Screen | Page | None:
        """The live table, where it is wanted and the console is a terminal, or a notebook's."""
        if self.quiet or self._settings.view not in ("auto", "live"):
            return None
        if is_notebook(self.out.stream()):
            from .notebook import Page  # which loads rich

            return Page(self._board)
        try:
            fd = fit_terminal(self.out.stream(), self.err.stream(), os.environ)
        except Unfit as why:
            if self._settings.view == "live" and not self._told_unfit:
                self._told_unfit = True
                self.say(f"no live view, but plain lines: {why}")
            return None
        from .screen import Screen  # which loads rich

        return Screen(
            fd,
            self.out,
            board=self._board,
            settings=self._settings,
            environ=os.environ,
            pressed=self._pressed,
            choose=self._choose,
        )

    def _choose(self, ranks: str) -> None:
        """The user wants to see the lines of other ranks."""
        for run in self._runs.values():
            self._add(run.choose(replace(self._settings, ranks=ranks).shown(run.world_size)))

    def _start(self, event: RunStarted, now: float) -> None:
        self._drain(event.run)
        if not self._runs:
            self.flush()
            self.out.reopen()
            self.err.reopen()
            self._screen = self._open_screen()
        self.watch(event, now)
        if not self.quiet:
            size = sum(host.workers for host in event.hosts)
            streams: dict[StreamName, Outlet] = {"out": self.out, "err": self.err}
            tame = {name for name, outlet in streams.items() if self._screen or is_terminal(outlet.stream())}
            red = self._settings.color_stderr
            self._runs[event.run] = RankLines(self._settings.shown(size), size, red=red, tame=tame)

    def _drain(self, run: str) -> None:
        if (lines := self._runs.get(run)) is not None:
            self._add(lines.render(lines.folder.drain()))

    def _add(self, written: list[tuple[StreamName, bytes]]) -> None:
        for stream, data in written:
            self._put(stream, data)

    def _put(self, stream: StreamName, data: bytes) -> None:
        if self._screen is not None and self._screen.mixes:
            self._waiting.append(data)
            return
        if stream != self._stream:
            self.flush()
            self._stream = stream
        if len(data) >= DIRECT:
            self.flush()
            self._waiting.append(data)
            self.flush()
        else:
            self._waiting.append(data)
