"""Level 4, view: lines that several ranks print alike are shown once. Pure: the time comes in as an argument.

Lines wait in one queue, as groups: a line with the ranks that said it. A rank's line joins the first group
of its likes that stands behind the group of that rank's line before, or opens a group at the end; groups
leave from the front only. So each rank's lines keep their order, whatever is joined. The front leaves when
every living rank has said it, or after ``WAIT`` seconds. Where more than ``RATE`` lines came within the
last second nothing waits: chunks pass whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..model import StreamName

WAIT = 0.05
RATE = 1000
LONG = 256 << 10
"""Bytes: a chunk of this size passes whole; it is many lines, or one that no one wants twice in memory."""


class Shown(NamedTuple):
    """Whole lines to be shown under one prefix."""

    ranks: tuple[int, ...]
    stream: StreamName
    data: bytes


@dataclass(eq=False)
class _Group:
    number: int
    stream: StreamName
    line: bytes
    since: float
    ranks: set[int] = field(default_factory=set)


class Folder:
    """The lines of one run that wait for their likes."""

    def __init__(self, ranks: Iterable[int], wait: float = WAIT, rate: int = RATE) -> None:
        self._living = set(ranks)
        self._wait = wait
        self._rate = rate
        self._queue: deque[_Group] = deque()
        self._alike: dict[tuple[StreamName, bytes], deque[_Group]] = {}
        self._last: dict[int, int] = {}  # by rank: the number of the group that holds its last waiting line
        self._number = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._recent_lines = 0

    def feed(self, rank: int, stream: StreamName, data: bytes, now: float, *, one: bool = False) -> list[Shown]:
        """Takes whole lines of a rank, gives what can be shown. ``one``: they belong together."""
        lines = 1 if one else data.count(b"\n")
        if self._too_fast(lines, now) or len(data) >= LONG or len(self._living) < 2:
            return [*self.drain(), Shown((rank,), stream, data)]
        for line in (data,) if one else data.splitlines(keepends=True) if _plain(data) else _split(data):
            self._join(rank, stream, line, now)
        return self.release(now)

    def ended(self, rank: int, now: float) -> list[Shown]:
        """A rank says nothing more: nobody waits for it."""
        self._living.discard(rank)
        return self.release(now)

    def due(self) -> float | None:
        """When ``release`` has something to do; ``None`` where nothing waits."""
        return self._queue[0].since + self._wait if self._queue else None

    def release(self, now: float) -> list[Shown]:
        """What need not wait any longer."""
        shown = []
        while self._queue and (now >= self._queue[0].since + self._wait or self._living <= self._queue[0].ranks):
            shown.append(self._pop())
        return shown

    def drain(self) -> list[Shown]:
        """Everything that waits, now."""
        return [self._pop() for _ in range(len(self._queue))]

    def _too_fast(self, lines: int, now: float) -> bool:
        while self._recent and self._recent[0][0] <= now - 1.0:
            self._recent_lines -= self._recent.popleft()[1]
        self._recent.append((now, lines))
        self._recent_lines += lines
        return self._recent_lines > self._rate

    def _join(self, rank: int, stream: StreamName, line: bytes, now: float) -> None:
        after = self._last.get(rank, -1)
        alike = self._alike.setdefault((stream, line), deque())
        group = next((group for group in alike if group.number > after), None)
        if group is None:
            group = _Group(self._number, stream, line, now)
            self._number += 1
            self._queue.append(group)
            alike.append(group)
        group.ranks.add(rank)
        self._last[rank] = group.number

    def _pop(self) -> Shown:
        group = self._queue.popleft()
        key = (group.stream, group.line)
        alike = self._alike[key]
        alike.popleft()  # groups of one line leave in the order in which they came
        if not alike:
            del self._alike[key]
        return Shown(tuple(sorted(group.ranks)), group.stream, group.line)


def _plain(data: bytes) -> bool:
    return b"\r" not in data  # bytes.splitlines ends lines at \r too


def _split(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.removesuffix(b"\n").split(b"\n")]
