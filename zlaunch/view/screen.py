"""Level 4, view: the live view at work: when a frame is drawn, and what the keys do. For the desk's thread.

A frame is made twice a second at most, and drawn where it differs from the one before. Log lines do not wait for it:
they are written above the last frame. So a rank that prints 100,000 lines a second costs no frame more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from ..events import Event, RankEnded, RunRestarting, RunStarted
from .board import LOOKS, Board, Seen
from .guests import Guests
from .keys import Keys
from .live import Paper, ansi, frame
from .settings import ViewSettings, parse_ranks
from .sinks import Outlet
from .terminal import Terminal, in_background, window

EVERY = 0.5
"""Seconds between frames."""
SOON = 0.1
"""Seconds between them where something has happened that cannot wait."""
NOTE_STAYS = 8.0
"""Seconds that a note of ours is shown."""

_OURS = "Ctrl-C  end the run; twice: at once"
_ATTACHED = "q, Ctrl-C  leave the run to itself"
_HELP = "r  choose the ranks that are shown    ?  show this, and hide it"
_LEGEND = (Seen.WAITING, Seen.RUNNING, Seen.SILENT, Seen.RETURNED, Seen.STOPPED, Seen.RAISED, Seen.LOST)
_NOT_TO_BE_LEFT = "this run ends with its terminal: one that was started with --detach can be left"


class Screen:
    """The terminal while runs are in progress.

    Args:
        fd: the terminal.
        outlet: what writes to it.
        board: the runs; it has heard of the hosts already.
        settings: the user's.
        environ: the environment.
        pressed: gets each key, in another thread; it is to come back by ``key``.
        choose: shows the lines of other ranks from here on.
    """

    mixes = True
    """stdout and stderr are one terminal, which only this writes to."""

    def __init__(
        self,
        fd: int,
        outlet: Outlet,
        *,
        board: Board,
        settings: ViewSettings,
        environ: Mapping[str, str],
        pressed: Callable[[str], None],
        choose: Callable[[str], None],
    ) -> None:
        self._fd = fd
        self._board = board
        self._settings = settings
        self._choose = choose
        self._colour = not environ.get("NO_COLOR")
        encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
        self._utf8 = encoding == "utf8" and environ.get("TERM") != "linux"  # whose console's fonts have no such glyphs
        self.terminal = Terminal(fd, outlet)
        self._guests = Guests(fd)
        self._keys = Keys(fd, sys.stdin, pressed) if settings.keys else None
        self._drawn: tuple[tuple[int, int], list[str]] = ((0, 0), [])
        self._next = 0.0
        self._last = 0.0
        self._only: str | None = None
        self._asking: str | None = None
        self._help = False
        self._note, self._note_until = "", 0.0

    def handle(self, event: Event, now: float) -> None:
        """Takes an event in."""
        self._board.handle(event)
        if isinstance(event, RunStarted):
            self._next = now
            self._guests.welcome()
            if self._keys is not None:
                self._keys.start()
        elif isinstance(event, RunRestarting) or (isinstance(event, RankEnded) and not event.fate.ok):
            self._next = min(self._next, self._last + SOON)

    def due(self) -> float | None:
        """When ``tick`` has something to do."""
        return self._next if self._board.runs else None

    def write(self, data: bytes) -> None:
        """Whole lines, above the region."""
        if data:
            self.terminal.write(data)

    def tick(self, now: float) -> None:
        """Draws a frame, where one is due; without a run, or in the background, nothing is left of it."""
        if not self._board.runs:
            self.rest()
        elif now >= self._next and in_background(self._fd):
            self.step_aside()
            self._next = now + EVERY
        elif now >= self._next:
            self._last, self._next = now, now + EVERY
            size = window(self._fd)
            lines = [ansi(line, colour=self._colour) for line in self._frame(size, now)]
            if (size, lines) != self._drawn:
                self._drawn = size, lines
                self.terminal.show(lines) if lines else self.terminal.hide()

    def step_aside(self) -> None:
        """Somebody else is about to write to the terminal: the region is drawn again afterwards."""
        self.terminal.hide()
        self._drawn = ((0, 0), [])
        self._next = self._last

    def rest(self) -> None:
        """No run is in progress: the terminal is as it was before."""
        if self._keys is not None:
            self._keys.stop()
        self.terminal.hide(for_good=True)
        self._guests.see_off()
        self._drawn = ((0, 0), [])
        self._asking, self._help, self._note = None, False, ""

    def key(self, key: str, now: float) -> None:
        """A key was pressed."""
        self._note = ""
        if self._asking is not None:
            self._answer(key, now)
        elif key == "?":
            self._help = not self._help
        elif key == "r":
            self._asking = ""
        elif key == "q":
            if self._settings.leave is None:
                self._say(_NOT_TO_BE_LEFT, now)
            else:
                self._settings.leave()
        self._next = now

    def _answer(self, key: str, now: float) -> None:
        text = self._asking or ""
        if key in ("\r", "\n"):
            self._asking = None
            try:
                spans = parse_ranks(text) if text.strip() else None
            except ValueError as error:
                self._say(str(error), now)
                return
            self._only = text if spans else None
            self._choose(text.strip() or "all")
        elif key in ("\x1b", "\x07"):
            self._asking = None
        elif key in ("\x7f", "\b"):
            self._asking = text[:-1]
        elif key.isprintable():
            self._asking = text + key

    def _say(self, text: str, now: float) -> None:
        self._note, self._note_until = text, now + NOTE_STAYS

    def _frame(self, size: tuple[int, int], now: float) -> list[tuple[tuple[str, str], ...]]:
        columns, rows = size
        if columns < 20 or rows < 8:  # no room for anything
            return []
        notes = [_OURS if self._settings.leave is None else _ATTACHED, _HELP, self._legend()] if self._help else []
        if self._asking is not None:
            notes = [f"show which ranks (0,4-7, all or none; Enter): {self._asking}_"]
        elif self._note and now < self._note_until:
            notes = [self._note]
        elif self._only:
            notes.append(f"only ranks {self._only} are shown; r and all: all of them")
        return frame(
            self._board, now, Paper(columns, rows // self.terminal.shared_by, self._utf8), self._ranks(), notes
        )

    def _legend(self) -> str:
        """What the glyphs mean; all that failed have the same."""
        words = {Seen.RAISED: "failed"}
        looks = [(LOOKS[state], words.get(state, state.value)) for state in _LEGEND]
        return "  ".join(f"{look.glyph if self._utf8 else look.ascii} {word}" for look, word in looks)

    def _ranks(self) -> frozenset[int] | None:
        if self._only is None:
            return None
        spans = parse_ranks(self._only) or ()
        most = max((len(run.ranks) for run in self._board.runs.values()), default=0)
        return frozenset(rank for rank in range(most) if any(rank in span for span in spans))
