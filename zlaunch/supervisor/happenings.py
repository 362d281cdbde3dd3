"""Level 4, pure: all that can happen to the supervisor, as its core hears of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ..model import HostPlan, RanksCommand, Seat, TemplateSpec
from ..protocol.messages import ToSupervisor


@dataclass(frozen=True, kw_only=True)
class RunOrder:
    """What the supervisor must know of a run; the letter itself stays with the loop."""

    id: str
    name: str
    hosts: tuple[HostPlan, ...]
    seats: dict[int, tuple[Seat, ...]]
    """By host index; port, address and interface are still missing."""
    templates: dict[int, TemplateSpec]
    """By host index."""
    log_token: str = ""
    log_folder: str = ""
    """Where its log files go, as an absolute path; empty: there are none."""
    epoch: float = 0.0
    """The wall-clock time when the monotonic clock stood at 0."""
    answers: bool = True
    grace: float = 30.0
    time_limit: float | None = None
    max_restarts: int = 0
    world_size: int = field(default=0)
    ranks: RanksCommand | None = None
    """What calls for the ranks, where an MPI launcher does."""
    patience: float = 60.0
    """Seconds that it may take to call for all of them."""


@dataclass(frozen=True)
class Begun:
    """The agents' commands have been started; they have until ``connect_by``."""

    hosts: tuple[HostPlan, ...]
    connect_by: float
    templates: Mapping[int, TemplateSpec] = field(default_factory=dict)
    """By host index, for those that are to warm one up when all agents are there."""


@dataclass(frozen=True)
class Submitted:
    """Somebody wants a run."""

    order: RunOrder


@dataclass(frozen=True)
class Cancelled:
    """Somebody wants a run no more; ``grace`` of ``None`` is the run's own."""

    run: str
    grace: float | None = None


@dataclass(frozen=True)
class AgentSaid:
    """A host's agent said something; ``pending``: the payload of its answer is still on its way."""

    host: int
    message: ToSupervisor
    pending: bool = False


@dataclass(frozen=True)
class PayloadCame:
    """The payload of a rank's answer is here, whole."""

    run: str
    rank: int


@dataclass(frozen=True)
class LogsSeen:
    """A host's log messages have come up to this number."""

    host: int
    number: int


@dataclass(frozen=True)
class AgentGone:
    """A host's agent is there no more: its process ended, or its connection."""

    host: int
    reason: str


@dataclass(frozen=True)
class RanksOver:
    """The MPI launcher of a run has ended, and how."""

    run: str
    attempt: int
    text: str
    killed: bool = False
    """By a signal: that is no end of its own, and its ranks may soon end because of it."""
    status: int | None = None
    """With which it has ended by itself."""


@dataclass(frozen=True)
class Closing:
    """The launcher wants everything to end."""


@dataclass(frozen=True)
class Tick:
    """The core's deadline has come."""


Happening: TypeAlias = (
    Begun | Submitted | Cancelled | AgentSaid | PayloadCame | LogsSeen | AgentGone | RanksOver | Closing | Tick
)
