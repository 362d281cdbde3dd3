"""Level 4, pure: all that the supervisor's core can want done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..events import Event, RunEnded
from ..model import RanksCommand, Seat
from ..protocol.messages import ToAgent


@dataclass(frozen=True)
class Tell:
    """Say this to a host's agent."""

    host: int
    message: ToAgent


@dataclass(frozen=True)
class Welcome:
    """Tell a host's agent that all are there, and what it may send."""

    host: int


@dataclass(frozen=True)
class SendStart:
    """Send a step's letter and seats to a host."""

    host: int
    run: str
    attempt: int
    template: str
    seats: tuple[Seat, ...]
    answers: bool
    called: bool


@dataclass(frozen=True)
class StartRanks:
    """Have an MPI launcher start a process per rank, which calls for it at its host's agent."""

    run: str
    attempt: int
    command: RanksCommand


@dataclass(frozen=True)
class EndRanks:
    """Nothing of this run is alive: its launcher ends by itself as a rule; see to it that it does."""

    run: str
    why: str = ""
    """What is the matter, where its end is not waited for."""


@dataclass(frozen=True)
class Emit:
    """Let everybody who listens know."""

    event: Event


@dataclass(frozen=True)
class Finish:
    """A run is over: its letter may go, its answers are due."""

    ended: RunEnded
    started: bool
    """Whether any rank ever started."""


@dataclass(frozen=True)
class AllReady:
    """Every agent has connected."""


@dataclass(frozen=True)
class NotReady:
    """Some agents did not come: host index and reason of each; a reason is empty where time ran out."""

    missing: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class EndAgent:
    """Make sure that a host's agent is gone: close what we hold of it."""

    host: int


@dataclass(frozen=True)
class GiveUp:
    """This host's agent has not answered in time: from now on it counts as gone."""

    host: int
    reason: str


@dataclass(frozen=True)
class HangUp:
    """This agent has not come yet, and is wanted no more: let it end by itself, and make sure of it after a moment."""

    host: int


@dataclass(frozen=True)
class AllGone:
    """No agent is left: the loop may end."""


Effect: TypeAlias = (
    Tell
    | Welcome
    | SendStart
    | StartRanks
    | EndRanks
    | Emit
    | Finish
    | AllReady
    | NotReady
    | EndAgent
    | GiveUp
    | HangUp
    | AllGone
)
