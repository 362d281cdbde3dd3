"""Level 4, pure: what the supervisor keeps in mind of a host and of a run. No decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .. import events as ev
from ..model import Fate, HostFacts, HostPlan, Seat, Survivor
from ..tables import AGENT_TABLE, RUN_TABLE, AgentState, Machine, RunState
from . import happenings as on


@dataclass
class Host:
    """A host and its agent."""

    plan: HostPlan
    facts: HostFacts | None = None
    clock_offset: float = 0.0
    """The agent's clock minus ours."""
    round_trip: float = float("inf")
    """Seconds, of the question whose answer told the offset; it grows a little with each that was worse."""
    run: str | None = None
    logs_seen: int = 0
    held: list[tuple[int, ev.Event]] = field(default_factory=list)
    """Events that must not be told before the log messages up to a number have been."""
    reason: str = ""
    machine: Machine[AgentState] = field(default_factory=lambda: Machine(AGENT_TABLE, AgentState.LAUNCHED))

    def heard_clock(self, sent: float, clock: float, now: float) -> None:
        """The agent has told its clock. Answers that were long on their way tell little, and count no more."""
        took = now - sent
        if took <= 2 * self.round_trip:
            self.clock_offset = clock - (sent + now) / 2
        self.round_trip = min(took, 1.1 * self.round_trip)


@dataclass
class Run:
    """A step in progress."""

    order: on.RunOrder
    attempt: int = 0
    outcome: ev.Outcome = "succeeded"
    cause: Fate | None = None
    fates: dict[int, Fate] = field(default_factory=dict)
    failures: dict[int, Fate] = field(default_factory=dict)
    pids: dict[int, int] = field(default_factory=dict)
    """Of ranks that have started."""
    pending: set[int] = field(default_factory=set)
    open_hosts: dict[int, int | None] = field(default_factory=dict)
    """Hosts that hold something of the run; with the number of log messages to wait for, once it has closed."""
    survivors: list[Survivor] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    """Hosts that were lost with something of the run on them."""
    decide_at: float | None = None
    limit_at: float | None = None
    answer_by: float | None = None
    """When agents whose answer is still waited for are given up."""
    port: int = 0
    launcher: Literal["none", "running", "ending", "over"] = "none"
    """Of MPI: whether it has been started, is told to end, has ended."""
    launcher_said: str = ""
    launcher_status: int | None = None
    """That it has ended with, where it is a rank's."""
    call_by: float | None = None
    """When it is to have called for all ranks."""
    uncalled: list[int] = field(default_factory=list)
    """Hosts for whose ranks it has not."""
    abandon_at: float | None = None
    """When its end counts as the end of the ranks, if these have not ended by then: the two are told separately."""
    ever_started: bool = False
    left: bool = False
    """Whether it fails because an agent was told to end, and for no other reason."""
    unwanted: bool = False
    """Cancelled while it was being stopped for another reason: it is not started again."""
    machine: Machine[RunState] = field(default_factory=lambda: Machine(RUN_TABLE, RunState.QUEUED))

    @property
    def state(self) -> RunState:
        """Where it stands."""
        return self.machine.state

    def indices(self) -> list[int]:
        """The hosts' indices, that of rank 0 first."""
        return [host.index for host in self.order.hosts]

    def again(self) -> None:
        """Made ready for a restart: nothing of the failed attempt counts any more."""
        self.attempt += 1
        self.outcome, self.cause, self.decide_at = "succeeded", None, None
        self.limit_at = self.answer_by = self.abandon_at = self.call_by = None
        self.launcher, self.launcher_said, self.launcher_status = "none", "", None
        for collection in (self.fates, self.failures, self.pids, self.pending, self.open_hosts):
            collection.clear()

    def seat(self, host: int, rank: int) -> Seat | None:
        """The rank's seat, if it is on this host: an agent can only speak for its own ranks."""
        return next((seat for seat in self.order.seats.get(host, ()) if seat.rank == rank), None)
