"""Level 4, view: the board as lines for a terminal. Pure: board, time and size in, lines out; no I/O.

A line is a tuple of spans, each a text with the name of its style: cheap to make and to compare. Rich knows how many
cells a text takes and how a style is written; its tables and layouts would cost a hundred times as much.
Where the ranks fit, each has a row; else each host has one, with a glyph per rank, and those that matter come first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.style import Style

from ..printable import printable
from .board import LOOKS, Board, HostView, RankView, RunView, counted

Span: TypeAlias = tuple[str, str]
Line: TypeAlias = tuple[Span, ...]

LEAST_TEXT = 15
"""Cells that the last line needs at least; before that it is columns that go."""
LEAST_LINES = 4
"""Of which there are always as many: a blank one, two of the run, and a row."""


class Paper(NamedTuple):
    """What is drawn on."""

    width: int
    height: int
    utf8: bool = True


def frame(
    board: Board, now: float, paper: Paper, only: frozenset[int] | None = None, notes: Sequence[str] = ()
) -> list[Line]:
    """What there is to be seen of all runs, on half of the paper at most; empty without a run.

    Args:
        board: the runs.
        now: the time, on the clock of their events.
        paper: what is drawn on.
        only: the ranks that rows are shown of; ``None``: all.
        notes: lines of our own, below all others.
    """
    if not board.runs:
        return []
    room = max(LEAST_LINES, paper.height // 2) - 1
    notes = notes[-max(1, room - LEAST_LINES) :]
    runs = list(board.runs.values())
    share = max(2, (room - len(notes)) // len(runs))
    fitting = max(1, (room - len(notes)) // share)
    lines: list[Line] = [()]
    for run in runs[-fitting:]:
        lines += _run(run, now, paper, share, only)
    if len(runs) > fitting:
        lines[-1] = ((f"and {len(runs) - fitting} more runs", "dim"),)
    return lines + [(("  " + cut(note, paper.width - 3), "bold"),) for note in notes]


def _run(run: RunView, now: float, paper: Paper, room: int, only: frozenset[int] | None) -> list[Line]:
    head = [_headline(run, now, paper)]
    if run.log_folder and room > LEAST_LINES - 1:
        head.append((("  logs: ", "dim"), (shorten(nearby(run.log_folder), paper.width - 10), "")))
    room -= len(head)
    hosts, ranks = run.hosts, run.ranks
    if only is not None:
        ranks = [rank for rank in ranks if rank.rank in only]
        hosts = [host for host in hosts if any(rank.rank in only for rank in host.ranks)]
    if len(ranks) < room:
        return head + rank_rows(ranks, now, paper, many_hosts=len(run.hosts) > 1)
    rows = host_rows(hosts, paper, room)
    spare = room - len(rows)
    if spare > 1:  # room for the ranks that matter
        first = sorted(ranks, key=lambda rank: rank.concern())[: spare - 1]
        rows += rank_rows(first, now, paper, many_hosts=len(run.hosts) > 1)
    return head + rows


def _headline(run: RunView, now: float, paper: Paper) -> Line:
    hosts, ranks = len(run.hosts), run.hosts[0].plan.workers if run.hosts else 0
    alike = all(host.plan.workers == ranks for host in run.hosts)
    size = (
        f"{_many(hosts, 'host')} \u00d7 {_many(ranks, 'rank')}"
        if alike
        else f"{_many(hosts, 'host')}, {len(run.ranks)} ranks"
    )
    parts: list[list[Span]] = [
        [(size if paper.utf8 else size.replace("\u00d7", "x"), "")],
        [(duration(now - run.at), "")],
    ]
    parts.append(_counted(run.ranks))
    if run.restart or run.restarts:
        parts.append([(f"restart {run.restart} of {max(run.restart, run.restarts)}", "yellow")])
    spans: list[Span] = []
    for part in parts:
        spans += [("  ", ""), *part]
    used = sum(cell_len(text) for text, _ in spans)
    name = cut(printable(run.name), max(8, paper.width - 1 - used)).rstrip()
    return fit(((name, "bold"), *spans), paper.width - 1)


def _counted(ranks: Iterable[RankView]) -> list[Span]:
    spans: list[Span] = []
    for state, count in counted(ranks).items():
        spans += [(", ", "")] if spans else []
        spans.append((f"{count} {state.value}", LOOKS[state].style))
    return spans


# --- a row per rank -------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """One fact of a rank. Where not all have room, those with the highest ``spare`` go first."""

    title: str
    spare: int
    text: Callable[[RankView, float], str]
    right: bool = True


_HOST, _STATE = "host", "state"
COLUMNS = (
    Column("rank", 0, lambda rank, now: str(rank.rank)),
    Column(_HOST, 4, lambda rank, now: f"{shorten(printable(rank.hostname), 20)}:{rank.local_rank}", right=False),
    Column("gpu", 8, lambda rank, now: ",".join(map(str, rank.gpus))),
    Column(_STATE, 0, lambda rank, now: rank.state().value, right=False),
    Column("status", 1, lambda rank, now: rank.status(), right=False),
    Column("time", 3, lambda rank, now: duration(rank.lasted(now)) if rank.pid or rank.fate else ""),
    Column("cpu", 5, lambda rank, now: "" if rank.cpu is None else f"{rank.cpu:.0f}%"),
    Column("memory", 6, lambda rank, now: size_words(rank.memory)),
    Column("gpu use", 9, lambda rank, now: "" if rank.gpu is None else f"{rank.gpu:.0f}%"),
    Column("gpu memory", 10, lambda rank, now: size_words(rank.gpu_memory)),
)
_LEAST_WIDTHS = {_STATE: 9, "time": 4, "cpu": 4, "memory": 6}
"""So that the table does not jump with every number."""


def rank_rows(ranks: Sequence[RankView], now: float, paper: Paper, *, many_hosts: bool) -> list[Line]:
    """A title, and a row per rank; columns without anything in them are left out, and so are those without room."""
    table = [[column.text(rank, now) for rank in ranks] for column in COLUMNS]
    there = [
        (column, cells, max(cell_len(column.title), _LEAST_WIDTHS.get(column.title, 0), *map(cell_len, cells)))
        for column, cells in zip(COLUMNS, table, strict=True)
        if any(cells)
    ]
    spare = {column.title: column.spare for column, _, _ in there}
    if not many_hosts:
        spare[_HOST] = 11
    room = paper.width - 1 - LEAST_TEXT
    while sum(width + 2 for _, _, width in there) + 2 > room and any(spare.values()):
        gone = max(spare, key=lambda title: spare[title])
        spare.pop(gone)
        there = [entry for entry in there if entry[0].title != gone]
    titles = "  ".join(
        _padded(("  " if c.title == _STATE else "") + c.title, width + 2 * (c.title == _STATE), right=c.right)
        for c, _, width in there
    )
    lines: list[Line] = [fit(((f"{titles}  last line", "dim"),), paper.width - 1)]
    for place, rank in enumerate(ranks):
        look = LOOKS[rank.state()]
        spans: list[Span] = []
        for column, cells, width in there:
            text = _padded(cells[place], width, right=column.right)
            if column.title == _STATE:
                spans.append((f"{_glyph(look.glyph, look.ascii, paper)} {text}", look.style))
            else:
                spans.append((text, look.style if column.title == "status" and look.concern < 2 else ""))
            spans.append(("  ", ""))
        spans.append((tidy(rank.said()), ""))
        lines.append(fit(tuple(spans), paper.width - 1))
    return lines


# --- a row per host -------------------------------------------------------------------------------------------------


def host_rows(hosts: Iterable[HostView], paper: Paper, room: int) -> list[Line]:
    """A row per host, those that matter first, and at the end a count of those that have no room."""
    order = sorted(hosts, key=lambda host: min((rank.concern() for rank in host.ranks), default=(9, 0.0)))
    shown = order if len(order) <= room else order[: max(0, room - 1)]
    width = min(20, max((cell_len(printable(host.plan.name)) for host in shown), default=0))
    most = max((len(host.ranks) for host in shown), default=0)
    strip = min(most, max(8, paper.width // 3))
    lines = [_host(host, paper, width, strip) for host in shown]
    if len(shown) < len(order):
        rest = _counted(rank for host in order[len(shown) :] for rank in host.ranks)
        more = _many(len(order) - len(shown), "more host" if shown else "host")
        lines.append(fit(((f"and {more}: " if shown else f"{more}: ", ""), *rest), paper.width - 1))
    return lines


def _host(host: HostView, paper: Paper, width: int, strip: int) -> Line:
    name = set_cell_size(shorten(printable(host.plan.name), width), width)
    spans: list[Span] = [(name, ""), ("  ", "")]
    states = [rank.state() for rank in host.ranks]
    if len(states) > strip:  # the ones that matter are seen, in whatever order
        states = sorted(states, key=lambda state: LOOKS[state].concern)[: strip - 1]
    for state in states:
        look = LOOKS[state]
        glyph = _glyph(look.glyph, look.ascii, paper)
        if spans[-1][1] == look.style:
            spans[-1] = (spans[-1][0] + glyph, look.style)
        else:
            spans.append((glyph, look.style))
    spans.append((("+" if len(host.ranks) > strip else "") + " " * (strip - len(states)) + "  ", ""))
    spans += _counted(host.ranks)
    first = min(host.ranks, key=lambda rank: rank.concern())
    words = f"{first.status()}: " if first.status() not in ("", "0") else ""
    spans.append((f"  rank {first.rank}: {words}{tidy(first.said())}", "dim"))
    return fit(tuple(spans), paper.width - 1)


# --- words, widths, colours -------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """``0:07``, ``12:34``, ``1:02:03``, ``2d 03:04``."""
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def size_words(size: int | None) -> str:
    """``312M``, ``1.2G``: in steps of 1024, as ``top`` has them; empty for nothing."""
    if size is None:
        return ""
    for unit, step in (("T", 1 << 40), ("G", 1 << 30)):
        if size >= step:
            return f"{size / step:.1f}{unit}"
    return f"{size >> 20}M"


def nearby(path: str) -> str:
    """A path as one would type it here: relative where it lies below the working directory."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return path
    return os.path.relpath(path, here) if path.startswith(f"{here.rstrip('/')}/") else path


def tidy(text: str) -> str:
    """A rank's text on one line of ours."""
    text = printable(text[-4096:]).replace("\t", " ").strip()
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\u200d" else "\ufffd" for c in text)


def cut(text: str, width: int) -> str:
    """Its first ``width`` cells."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)) + "…"


def shorten(text: str, width: int) -> str:
    """Its last cells, where all are too many: what differs between hosts or paths stands at their ends."""
    while text and cell_len(text) > width:
        text = "…" + text[2 if text.startswith("…") else 1 :]
    return text


def fit(line: Line, width: int) -> Line:
    """The line, ``width`` cells at most."""
    spans: list[Span] = []
    for text, style in line:
        cells = cell_len(text)
        if cells > width:
            if width > 0:
                spans.append((cut(text, width), style))
            break
        spans.append((text, style))
        width -= cells
    return tuple(spans)


def text_of(line: Line) -> str:
    """The line without its styles."""
    return "".join(text for text, _ in line)


def ansi(line: Line, *, colour: bool = True) -> str:
    """The line as a terminal takes it."""
    return "".join(_style(style, colour).render(text, color_system=ColorSystem.STANDARD) for text, style in line)


@lru_cache(maxsize=64)
def _style(name: str, colour: bool) -> Style:
    style = Style.parse(name)
    return style if colour else style.without_color


def _glyph(glyph: str, plain: str, paper: Paper) -> str:
    return glyph if paper.utf8 else plain


def _padded(text: str, width: int, *, right: bool) -> str:
    spaces = " " * (width - cell_len(text))
    return spaces + text if right else text + spaces


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
