"""Level 1: the legal transitions of runs, agents and ranks, as literal tables.

The cores move through these tables and through nothing else; an illegal move raises and changes nothing. The diagrams
in ``docs/`` are drawn from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

S = TypeVar("S", bound=StrEnum)


class IllegalTransition(RuntimeError):
    """A core was asked for a move that its table does not know: a defect of zlaunch, never of its user."""


class Machine(Generic[S]):
    """One thing's state, and the table that it moves through."""

    def __init__(self, table: Mapping[tuple[S, str], S], state: S) -> None:
        self.table = table
        self.state = state

    def move(self, word: str) -> S:
        """Take the transition named ``word``; raises IllegalTransition where there is none, and changes nothing."""
        try:
            self.state = self.table[self.state, word]
        except KeyError:
            raise IllegalTransition(f"no transition {word!r} from {self.state!r}") from None
        return self.state

    def can(self, word: str) -> bool:
        """Whether the table has ``word`` here."""
        return (self.state, word) in self.table


class RunState(StrEnum):
    """A run, as the supervisor sees it."""

    QUEUED = "queued"
    RESERVING = "reserving"
    STARTING = "starting"
    RUNNING = "running"
    FAILING = "failing"
    STOPPING = "stopping"
    ENDED = "ended"


RUN_TABLE: dict[tuple[RunState, str], RunState] = {
    (RunState.QUEUED, "hosts are free"): RunState.RESERVING,
    (RunState.QUEUED, "given up"): RunState.ENDED,
    (RunState.RESERVING, "port is kept"): RunState.STARTING,
    (RunState.RESERVING, "stop"): RunState.STOPPING,
    (RunState.STARTING, "all ranks started"): RunState.RUNNING,
    (RunState.STARTING, "a rank failed"): RunState.FAILING,
    (RunState.STARTING, "stop"): RunState.STOPPING,
    (RunState.RUNNING, "a rank failed"): RunState.FAILING,
    (RunState.RUNNING, "stop"): RunState.STOPPING,
    (RunState.RUNNING, "hosts closed"): RunState.ENDED,
    (RunState.STARTING, "hosts closed"): RunState.ENDED,
    (RunState.FAILING, "cause known"): RunState.STOPPING,
    (RunState.FAILING, "stop"): RunState.STOPPING,
    (RunState.STOPPING, "hosts closed"): RunState.ENDED,
    (RunState.STOPPING, "restart"): RunState.QUEUED,
}


class AgentState(StrEnum):
    """A host's agent, as the supervisor sees it."""

    LAUNCHED = "launched"
    CONNECTED = "connected"
    LEAVING = "leaving"
    LOST = "lost"
    GONE = "gone"


AGENT_TABLE: dict[tuple[AgentState, str], AgentState] = {
    (AgentState.LAUNCHED, "hello"): AgentState.CONNECTED,
    (AgentState.LAUNCHED, "lost"): AgentState.LOST,
    (AgentState.LAUNCHED, "shutdown"): AgentState.LEAVING,
    (AgentState.CONNECTED, "lost"): AgentState.LOST,
    (AgentState.CONNECTED, "shutdown"): AgentState.LEAVING,
    (AgentState.LEAVING, "gone"): AgentState.GONE,
}


class RankState(StrEnum):
    """A rank, as its agent sees it."""

    WAITING = "waiting"
    FORKING = "forking"
    RUNNING = "running"
    ANSWERED = "answered"
    DRAINING = "draining"
    ENDED = "ended"


RANK_TABLE: dict[tuple[RankState, str], RankState] = {
    (RankState.WAITING, "fork"): RankState.FORKING,
    (RankState.WAITING, "dropped"): RankState.ENDED,
    (RankState.FORKING, "forked"): RankState.RUNNING,
    (RankState.FORKING, "exited"): RankState.DRAINING,
    (RankState.FORKING, "dropped"): RankState.ENDED,
    (RankState.RUNNING, "answered"): RankState.ANSWERED,
    (RankState.RUNNING, "exited"): RankState.DRAINING,
    (RankState.ANSWERED, "exited"): RankState.DRAINING,
    (RankState.RUNNING, "given up"): RankState.ENDED,
    (RankState.ANSWERED, "given up"): RankState.ENDED,
    (RankState.DRAINING, "drained"): RankState.ENDED,
}


class StepState(StrEnum):
    """A step on one host, as the agent sees it."""

    PREPARING = "preparing"
    RUNNING = "running"
    SWEEPING = "sweeping"
    CLOSED = "closed"


STEP_TABLE: dict[tuple[StepState, str], StepState] = {
    (StepState.PREPARING, "letter and template are there"): StepState.RUNNING,
    (StepState.PREPARING, "dropped"): StepState.SWEEPING,
    (StepState.RUNNING, "all ranks ended"): StepState.SWEEPING,
    (StepState.SWEEPING, "swept"): StepState.CLOSED,
}
