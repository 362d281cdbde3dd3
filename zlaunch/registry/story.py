"""Level 3, pure: what somebody who comes late must be told of a run to see it as if they had been there. No I/O.

Events in, events out: the hosts, the last start, who is there and who is not, the last lines of each rank. What has
been superseded is forgotten, so a run of any length has a story of the same size: 8 KiB of lines per rank at most.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from msgspec.structs import replace

from ..events import (
    AgentConnected,
    AgentLost,
    Event,
    Notice,
    Output,
    RankEnded,
    RankStarted,
    Record,
    Redrawn,
    RunEnded,
    RunRestarting,
    RunStarted,
    Usage,
)

LINES = 50
"""Last lines of a rank that are told."""
TAIL = 8 << 10
"""Bytes of them."""
ALL = 2 << 20
"""Bytes of them, of all ranks together: the last ones."""
NOTICES = 20
"""Last notices that are told, and restarts."""


@dataclass
class _Rank:
    """One rank's part."""

    began: RankStarted | None = None
    ended: RankEnded | None = None
    redrawn: Redrawn | None = None
    said: deque[Output | Record] = field(default_factory=deque)
    size: int = 0

    def add(self, event: Output | Record) -> None:
        """Remember what it said, and forget what it said long ago."""
        if isinstance(event, Output) and len(event.data) > TAIL:
            cut = event.data.find(b"\n", len(event.data) - TAIL) + 1 or len(event.data) - TAIL
            event = replace(event, data=event.data[cut:])
        self.said.append(event)
        self.size += _size(event)
        while len(self.said) > LINES or (self.size > TAIL and len(self.said) > 1):
            self.size -= _size(self.said.popleft())

    def last(self) -> list[Output | Record]:
        """Its last lines and records."""
        room, found = LINES, deque[Output | Record]()
        for event in reversed(self.said):
            if room <= 0:
                break
            if isinstance(event, Output):
                lines = event.data.splitlines(keepends=True)[-room:]
                room -= len(lines)
                found.appendleft(replace(event, data=b"".join(lines)))
            else:
                room -= 1
                found.appendleft(event)
        return list(found)


class Story:
    """The story of one run. ``hear`` its events, and those of its hosts."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.ended: RunEnded | None = None
        self._ranks: dict[int, _Rank] = {}
        self._usage: dict[str, Usage] = {}
        self._restarts: deque[RunRestarting] = deque(maxlen=NOTICES)
        self._lost: list[AgentLost] = []
        self._notices: deque[Notice] = deque(maxlen=NOTICES)

    def hear(self, event: Event) -> None:
        """Remember what counts of it."""
        match event:
            case Output() | Record():
                rank = self._rank(event.rank)
                rank.redrawn = None
                rank.add(event)
            case Redrawn():
                self._rank(event.rank).redrawn = event
            case Usage():
                self._usage[event.hostname] = event
            case RunStarted():
                self.started = event
                for rank in self._ranks.values():
                    rank.began = rank.ended = rank.redrawn = None
            case RankStarted():
                self._rank(event.rank).began = event
            case RankEnded():
                rank = self._rank(event.fate.rank)
                rank.ended, rank.redrawn = event, None
            case RunRestarting():
                self._restarts.append(event)
            case AgentLost():
                self._lost.append(event)
            case Notice():
                self._notices.append(event)
            case RunEnded():
                self.ended = event
            case AgentConnected():
                pass

    def _rank(self, rank: int) -> _Rank:
        return self._ranks.setdefault(rank, _Rank())

    def tell(self, agents: dict[str, AgentConnected]) -> list[Event]:
        """The story, in an order in which it could have happened. ``agents`` are the hosts' by their names."""
        told: list[Event] = []
        if self.started is not None:
            told += [agents[host.name] for host in self.started.hosts if host.name in agents]
            told += [*self._restarts, self.started]
        told += self._lost
        ranks = [rank for _, rank in sorted(self._ranks.items())]
        told += [rank.began for rank in ranks if rank.began]
        told += _latest([event for rank in ranks for event in rank.last()])
        told += [rank.redrawn for rank in ranks if rank.redrawn]
        told += self._usage.values()
        told += self._notices
        told += sorted((rank.ended for rank in ranks if rank.ended), key=lambda event: event.at)
        return [*told, self.ended] if self.ended else told


def _latest(said: list[Output | Record]) -> list[Output | Record]:
    said.sort(key=lambda event: event.at)
    room, first = ALL, len(said)
    while first and room >= _size(said[first - 1]):
        first -= 1
        room -= _size(said[first])
    return said[first:]


def _size(event: Output | Record) -> int:
    return len(event.data) if isinstance(event, Output) else len(event.message) + len(event.exc_text)
