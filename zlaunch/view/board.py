"""Level 4, view: what there is to be seen of the runs in progress, folded out of the events. Pure: no clock, no I/O.

A rank's state is a word: of a rank that has ended the kind of its fate, or *stopped* where zlaunch ended it; of one
that has not, what can be told from outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from ..events import (
    AgentConnected,
    Event,
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
from ..model import Fate, FateKind, HostPlan, signal_name

SILENT_AFTER = 30.0
"""Seconds without a line and without work after which a rank is called silent."""
IDLE_CPU = 5.0
"""Percent of a core, and of a GPU, up to which a rank does no work."""
KEPT = 2048
"""Bytes of what a rank printed last in which its last line is looked for."""


class Seen(StrEnum):
    """The state of a rank, as it is seen from outside."""

    WAITING = "waiting"
    RUNNING = "running"
    SILENT = "silent"
    RETURNED = "returned"
    STOPPED = "stopped"
    RAISED = "raised"
    UNPICKLABLE = "unpicklable"
    EXITED = "exited"
    SIGNALED = "signaled"
    LOST = "lost"


class Look(NamedTuple):
    """How a state is shown, never by its colour alone, and what it means."""

    glyph: str
    ascii: str
    style: str
    concern: int
    """What is shown first where not all can be: the smaller number."""
    meaning: str


LOOKS: dict[Seen, Look] = {
    Seen.WAITING: Look(
        "·", ".", "dim", 3, "It has a seat, and no process yet: what it needs is on its way or imports."
    ),
    Seen.RUNNING: Look("▸", ">", "cyan", 4, "Its process is there."),
    Seen.SILENT: Look(
        "~",
        "~",
        "bold yellow",
        2,
        f"It runs, and for {SILENT_AFTER:g} seconds it has printed nothing and used (almost) no CPU and no GPU. It may "
        "wait for a peer, or hang.",
    ),
    Seen.RETURNED: Look("✓", "+", "green", 6, "It gave its result, or its program ended with status 0."),
    Seen.STOPPED: Look("▪", "-", "magenta", 5, "zlaunch ended it: because of another rank, a Ctrl-C or a time limit."),
    Seen.RAISED: Look("✗", "x", "bold red", 0, "An exception left the user's code."),
    Seen.UNPICKLABLE: Look("✗", "x", "bold red", 0, "Its task could not be read, or its result could not be written."),
    Seen.EXITED: Look("✗", "x", "bold red", 0, "It ended with an exit status of its own, which is shown."),
    Seen.SIGNALED: Look("✗", "x", "bold red", 0, "A signal killed it; the signal is shown."),
    Seen.LOST: Look("?", "?", "bold red", 0, "Its host, its agent or its fork template is gone; nobody saw it end."),
}
_SYMPTOM = 1
"""The concern of a rank that failed because a peer was gone."""


@dataclass(slots=True, eq=False)
class RankView:
    """One rank."""

    rank: int
    local_rank: int
    hostname: str
    since: float
    """When its run started, until its process is there; then that. On the clock of the events, as all times here."""
    heard: float
    """When its last line came, or when it started."""
    active: float
    """When it was last seen to do something."""
    sampled: float = 0.0
    """When it was last looked at. Where nobody looks, nobody can say that it is silent."""
    pid: int = 0
    fate: Fate | None = None
    cpu: float | None = None
    memory: int | None = None
    gpu: float | None = None
    gpu_memory: int | None = None
    gpus: tuple[int, ...] = ()
    last: bytes | str = b""
    """The end of what it printed last, or the present state of a line that redraws itself."""

    def state(self) -> Seen:
        """In a word."""
        if self.fate is not None:
            stopped = self.fate.stopped and not self.fate.ok
            return Seen.STOPPED if stopped else Seen(self.fate.kind.value)
        if not self.pid:
            return Seen.WAITING
        return Seen.SILENT if self.sampled - self.active >= SILENT_AFTER else Seen.RUNNING

    def concern(self) -> tuple[int, float]:
        """What matters first comes first: among those that failed the first, among the others the quietest."""
        state = self.state()
        if self.fate is None:
            return LOOKS[state].concern, self.heard
        symptom = self.fate.symptom and LOOKS[state].concern == 0
        return _SYMPTOM if symptom else LOOKS[state].concern, self.fate.at

    def status(self) -> str:
        """Its exit status or its signal, once it has one."""
        fate = self.fate
        if fate is None or fate.kind is FateKind.LOST:
            return ""
        if fate.signal is not None:
            return signal_name(fate.signal)
        return "" if fate.exit_code is None and not fate.ok else str(0 if fate.ok else fate.exit_code)

    def lasted(self, now: float) -> float:
        """Seconds from its start to now, or to its end."""
        return max(0.0, (now if self.fate is None else self.fate.at) - self.since)

    def said(self) -> str:
        """Its last line that has anything in it, as it was printed."""
        if isinstance(self.last, str):
            return self.last
        lines = self.last.rstrip().rsplit(b"\n", 1)[-1]
        return lines.decode(errors="replace")


@dataclass(slots=True, eq=False)
class HostView:
    """One host of a run, and its ranks."""

    plan: HostPlan
    ranks: list[RankView]


@dataclass(slots=True, eq=False)
class RunView:
    """One run in progress."""

    run: str
    name: str
    at: float
    log_folder: str
    restart: int = 0
    restarts: int = 0
    """How many it may have; 0 while it had none."""
    hosts: list[HostView] = field(default_factory=list)
    ranks: list[RankView] = field(default_factory=list)


def counted(ranks: Iterable[RankView]) -> dict[Seen, int]:
    """How many ranks are in each state that there is, those that matter first."""
    found = Counter(rank.state() for rank in ranks)
    return dict(sorted(found.items(), key=lambda item: LOOKS[item[0]].concern))


class Board:
    """The runs in progress, in the order of their starts."""

    def __init__(self) -> None:
        self.runs: dict[str, RunView] = {}
        self._gpus: dict[str, int] = {}

    def handle(self, event: Event) -> bool:
        """Takes an event in; whether there is anything else to be seen than before."""
        match event:
            case Output() | Record() | Redrawn():
                return self._said(event)
            case Usage():
                return self._used(event)
            case RankStarted():
                return self._rank_started(event)
            case RankEnded():
                if (rank := self._rank(event.run, event.fate.rank)) is None:
                    return False
                rank.fate = event.fate
            case RunStarted():
                self._start(event)
            case RunEnded():
                self.runs.pop(event.run, None)
            case AgentConnected():
                self._gpus[event.hostname] = len(event.facts.gpus)
                return False
            case RunRestarting():
                if event.run in self.runs:
                    self.runs[event.run].restarts = event.max_restarts
            case _:
                return False
        return True

    def _rank(self, run: str, rank: int) -> RankView | None:
        found = self.runs.get(run)
        return found.ranks[rank] if found is not None and 0 <= rank < len(found.ranks) else None

    def _start(self, event: RunStarted) -> None:
        before = self.runs.get(event.run)
        at = event.at if before is None else before.at
        run = RunView(event.run, event.name, at, event.log_folder, event.restart, before.restarts if before else 0)
        for plan in event.hosts:
            ranks = [
                RankView(len(run.ranks) + local, local, plan.name, event.at, event.at, event.at)
                for local in range(plan.workers)
            ]
            if plan.workers == self._gpus.get(plan.name):  # one each: then rank and GPU have the same number
                for rank in ranks:
                    rank.gpus = (rank.local_rank,)
            run.hosts.append(HostView(plan, ranks))
            run.ranks += ranks
        self.runs[event.run] = run

    def _rank_started(self, event: RankStarted) -> bool:
        if (rank := self._rank(event.run, event.rank)) is None:
            return False
        rank.pid = event.pid
        rank.since = rank.heard = rank.active = event.at
        return True

    def _said(self, event: Output | Record | Redrawn) -> bool:
        if (rank := self._rank(event.run, event.rank)) is None:
            return False
        rank.heard = rank.active = event.at
        if isinstance(event, Output):
            if not event.data.isspace():
                rank.last = event.data if len(event.data) <= KEPT else event.data[-KEPT:]
        else:
            rank.last = event.text if isinstance(event, Redrawn) else event.message
        return True

    def _used(self, event: Usage) -> bool:
        for used in event.ranks:
            if (rank := self._rank(event.run, used.rank)) is None:
                continue
            rank.cpu, rank.memory, rank.gpu, rank.gpu_memory = used.cpu, used.memory, used.gpu, used.gpu_memory
            rank.gpus = used.gpus or rank.gpus
            rank.sampled = event.at
            if used.cpu > IDLE_CPU or (used.gpu or 0.0) > IDLE_CPU:
                rank.active = event.at
        return event.run in self.runs
