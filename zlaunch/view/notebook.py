"""Level 4, view: the live view in a notebook: the same table, in a display of the cell that is updated in place.

Its lines are those of the terminal's view, as HTML and, for front ends that show none, as text. What ranks print is the
cell's stdout and stderr, as without it; a notebook puts that below what was displayed before. A step of less than a
second is over before anybody could read a table, and gets none; of a longer one the last state stays.
"""

from __future__ import annotations

import html
import os
import uuid
from collections.abc import Sequence
from typing import Any

from rich.style import Style

from ..events import Event, RunEnded, RunStarted
from .board import Board
from .live import Line, Paper, frame, text_of

EVERY = 0.5
"""Seconds between updates."""
FIRST = 1.0
"""Seconds from a run's start to its table."""
PAPER = Paper(width=110, height=80)
"""A cell is as wide as most lines, and has no end below; half of the height is used at most."""
_PRE = "white-space:pre;overflow-x:auto;line-height:1.25;font-family:Menlo,'DejaVu Sans Mono',Consolas,monospace"


class Page:
    """The display of one cell; what ``Screen`` is for a terminal. For the desk's thread."""

    mixes = False
    """stdout and stderr remain two streams."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._name = uuid.uuid4().hex
        self._there = False
        self._next = 0.0
        self._drawn: Sequence[Line] = ()

    def handle(self, event: Event, now: float) -> None:
        """Takes an event in."""
        if isinstance(event, RunEnded) and self._there and event.run in self._board.runs:
            self._draw(now)
        self._board.handle(event)
        if isinstance(event, RunStarted) and not self._there:
            self._next = now + FIRST

    def due(self) -> float | None:
        """When ``tick`` has something to do."""
        return self._next if self._board.runs else None

    def tick(self, now: float) -> None:
        """Updates the display, where that is due."""
        if self._board.runs and now >= self._next:
            self._next = now + EVERY
            self._draw(now)

    def write(self, data: bytes) -> None:
        """Not for us: the streams are the cell's."""

    def step_aside(self) -> None:
        """Nobody is in our way."""

    def rest(self) -> None:
        """What is displayed stays."""

    def key(self, key: str, now: float) -> None:
        """A cell has no keys."""

    def _draw(self, now: float) -> None:
        lines = frame(self._board, now, PAPER)[1:]
        if lines == self._drawn:
            return
        self._drawn = lines
        bundle = {"text/plain": "\n".join(text_of(line).rstrip() for line in lines), "text/html": as_html(lines)}
        _publish(bundle, self._name, again=self._there)
        self._there = True


def as_html(lines: Sequence[Line], *, colour: bool | None = None) -> str:
    """The lines of a frame for a browser; without colour where ``NO_COLOR`` is set."""
    colour = not os.environ.get("NO_COLOR") if colour is None else colour
    rows = ("".join(_span(text, style, colour) for text, style in line) for line in lines)
    return f'<pre style="{_PRE}">' + "\n".join(rows) + "</pre>"


def _span(text: str, name: str, colour: bool) -> str:
    style = Style.parse(name)
    css = (style if colour else style.without_color).get_html_style()
    return f'<span style="{css}">{html.escape(text)}</span>' if css else html.escape(text)


def _publish(bundle: dict[str, str], name: str, *, again: bool) -> None:
    from IPython.display import display, update_display

    show: Any = update_display if again else display
    show(bundle, raw=True, display_id=name)
