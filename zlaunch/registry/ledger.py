"""Level 5, pure: what is known of runs that can be watched, and what still has to be told. No threads, no I/O."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

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
from ..view.records import RecordSplitter
from .runs import RunEntry
from .story import Story

_OfRun: TypeAlias = RunStarted | RankStarted | Output | Redrawn | Record | Usage | RankEnded | RunRestarting | RunEnded

QUEUE = 16 << 20
"""Bytes of lines that may wait to be told."""


@dataclass(eq=False)
class Watched:
    """One run."""

    entry: RunEntry
    due: float
    """When it is written down."""
    story: Story = field(default_factory=Story)
    splitter: RecordSplitter | None = None
    watched: bool = False
    """Whether anybody wants to hear of it now."""
    changed: bool = False
    """What is written down is not all any more."""
    published: threading.Event = field(default_factory=threading.Event)
    trouble: str = ""
    """Why it could not be written down."""
    stops: int = 0
    """How often its end was asked for."""


class ToTell(NamedTuple):
    """What has happened since it was asked for."""

    events: Sequence[tuple[str, Event]]
    """Each with its run."""
    missed: dict[str, int]
    """Lines of each run that were too many."""


class Ledger:
    """The runs of a cluster. For one thread at a time."""

    def __init__(self) -> None:
        self.runs: dict[str, Watched] = {}
        self._agents: dict[str, AgentConnected] = {}
        self._queue: deque[tuple[str, Event]] = deque()
        self._size = 0
        self._missed: dict[str, int] = {}

    @property
    def waiting(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._queue)

    def put(self, event: Event) -> bool:
        """Something has happened; whether it has to be told, or written down, now."""
        now = False
        match event:
            case AgentConnected():
                self._agents[event.hostname] = event
            case AgentLost() | Notice():
                for run in self.runs.values():
                    now |= self._hear(run, event)
            case _:
                found = self.runs.get(event.run)
                for one in _told(found, event) if found else ():
                    assert found is not None
                    now |= self._hear(found, one)
        return now

    def newcomer(self, run: str) -> tuple[list[Event], list[Event]] | None:
        """An observer has come: what others have not heard yet, and the story so far, that being a part of it."""
        found = self.runs.get(run)
        if found is None:
            return None
        early = [event for other, event in self._queue if other == run]
        self._queue = deque((other, event) for other, event in self._queue if other != run)
        found.watched = True
        return early, found.story.tell(self._agents)

    def take(self) -> ToTell:
        """All that has to be told."""
        taken = ToTell(self._queue, self._missed)
        self._queue, self._missed, self._size = deque(), {}, 0
        return taken

    def _hear(self, found: Watched, event: Event) -> bool:
        if found.story.ended is not None:
            return False
        found.story.hear(event)
        run = found.entry.run
        match event:
            case RunStarted():
                found.entry, found.changed = replace(found.entry, state="running"), True
            case RunEnded():
                pass
            case _ if not found.watched:
                return False
            case Output() | Record():
                size = len(event.data) if isinstance(event, Output) else len(event.message)
                if self._size + size > QUEUE:
                    lines = event.data.count(b"\n") if isinstance(event, Output) else 1
                    self._missed[run] = self._missed.get(run, 0) + lines
                    return False
                self._size += size
            case _:
                pass
        self._queue.append((run, event))
        return True


def _told(found: Watched, event: _OfRun) -> Sequence[Event]:
    """The event as observers hear it: without the secret that marks records, with the records themselves."""
    match event:
        case Output() if found.splitter:
            return found.splitter.feed(event)
        case RunStarted():
            found.splitter = RecordSplitter(event.log_token) if event.log_token else None
            return [replace(event, log_token="")]
        case RankEnded(fate=fate) if found.splitter:
            like = Output(event.at, event.run, fate.rank, fate.local_rank, fate.hostname, "out", b"")
            return [*found.splitter.finish(fate.rank, event.at, like), event]
        case _:
            return [event]
