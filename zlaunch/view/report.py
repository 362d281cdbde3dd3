"""Level 4, view: the report of a run that did not succeed. Pure: values in, lines out; colour is the console's.

Its first line is the cause; its last two say it once more, with the exit status and the log file, for whoever reads a
terminal from the bottom.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, TextIO

from ..events import RunEnded
from ..failure import advice, exit_status, last_words, others, same_loss, seconds, what, who
from ..model import Fate, FateKind, span_words
from ..printable import printable

Tone = Literal["cause", "words", "quote", "advice"]

COLOURS: dict[Tone, str] = {"cause": "1;31", "advice": "33"}
"""How a terminal is told (SGR); the rest is as any text."""


class Line(NamedTuple):
    """One line of a report, and what it is."""

    text: str
    tone: Tone = "words"

    def coloured(self) -> str:
        """For a terminal."""
        colour = COLOURS.get(self.tone)
        return f"\x1b[{colour}m{self.text}\x1b[0m" if colour else self.text


def report(
    ended: RunEnded,
    log_file: str | None = None,
    *,
    began: float | None = None,
    last_output: Sequence[str] = (),
) -> list[Line]:
    """What to say of a run that did not succeed. Of one that did only survivors are told.

    Args:
        ended: how it ended.
        log_file: of the rank that is the cause; where there is none, the folder with the files of all.
        began: when the run started, on the clock of ``ended.at``.
        last_output: the last lines of the rank that is the cause.
    """
    lines = [
        Line(f"still alive: pid {s.pid} on {s.hostname} ({printable(s.command)})", "cause") for s in ended.survivors
    ]
    if ended.unasked:
        hosts = ", ".join(ended.unasked)
        lines.append(
            Line(f"not to be asked what is alive there: {hosts}; agents that hear no more of us end by themselves")
        )
    if ended.outcome == "succeeded":
        return lines
    cause = ended.cause
    if cause is None:
        words = {"cancelled": "cancelled", "timed out": "the time limit has passed"}.get(ended.outcome, ended.outcome)
        after = "" if began is None else f", {seconds(max(0.0, ended.at - began))} after the start"
        told = [Line(f"{words}{after}", "cause"), *map(Line, others(None, ended.fates))]
        if ended.outcome != "cancelled":  # of which the command line knows by what, and so the status
            lines.append(Line(f"exit status {exit_status(ended.outcome, ended.cause)}: {words}"))
        return [*told, *lines, *([Line(f"the ranks' whole output: {log_file}")] if log_file else [])]
    after = "" if began is None else f", {seconds(max(0.0, cause.at - began))} after the start"
    first, *more = f"{_whose(cause, ended.fates)} {what(cause)}".splitlines()
    told = [Line(f"{first}{after}", "cause"), *(Line(line, "quote") for line in more)]
    if last := last_words(cause, last_output):
        told += [Line("its last lines:"), *(Line(f"  {line}".rstrip(), "quote") for line in last)]
    told += map(Line, others(cause, ended.fates))
    if next_step := advice(cause, last_output):
        told.append(Line(next_step, "advice"))
    told += lines
    told.append(Line(f"exit status {exit_status(ended.outcome, ended.cause)}: {_shortly(cause)}"))
    if log_file:
        told.append(Line(f"its whole output: {log_file}"))
    return told


def _whose(cause: Fate, fates: Sequence[Fate]) -> str:
    lost = sorted(fate.rank for fate in fates if same_loss(fate, cause))
    return who(cause) if len(lost) < 2 else f"ranks {span_words(tuple(lost))} ({cause.hostname})"


def _shortly(cause: Fate) -> str:
    who_was = f"{cause.hostname} was" if cause.kind is FateKind.LOST else f"rank {cause.rank} on {cause.hostname}"
    if cause.launcher:
        who_was = "the ranks were"
    return f"{who_was} {what(cause)}".partition("\n")[0]


def has_colour(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that shows colours, and its user wants some."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return not plain and is_terminal(stream)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):  # it is closed
        return False
