"""Level 4, pure: what the supervisor decides. ``handle(event, now)`` takes what happened and returns what to do.

Agents come, speak and go here; what becomes of runs is decided in ``schedule``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from .. import events as ev
from ..model import TemplateSpec
from ..protocol import messages as m
from ..tables import AgentState
from . import effects as do
from . import happenings as on
from .schedule import Schedule
from .state import Host
from .usage import told_usage

GATHER = 1.0
"""Seconds from the first agent that could not be started to the report: whatever else is wrong belongs into it."""
REMIND_AFTER = 5.0
"""Seconds of waiting for agents until it is said for which; and again after twice as long each time."""
PING_EVERY = 30.0
"""Seconds between questions for an agent's clock: two clocks drift apart by milliseconds within a minute."""
LEAVE_PATIENCE = 10.0
"""Seconds from Shutdown to the moment when an agent that does not leave is ended."""


@dataclass
class SupervisorCore:
    """The supervisor's mind."""

    hosts: dict[int, Host] = field(default_factory=dict)
    starting: bool = False
    connect_by: float | None = None
    leave_by: float | None = None
    ping_at: float | None = None
    remind_at: float | None = None
    reminded: int = 0
    templates: Mapping[int, TemplateSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.hosts)

    def deadline(self) -> float | None:
        """When ``handle`` wants to be called with a Tick at the latest."""
        times = (self.connect_by, self.remind_at, self.leave_by, self.ping_at, self.schedule.deadline())
        return min((t for t in times if t is not None), default=None)

    def handle(self, event: on.Happening, now: float) -> list[do.Effect]:
        """What to do about ``event``."""
        match event:
            case on.Begun():
                self.hosts.update({plan.index: Host(plan) for plan in event.hosts})
                self.starting, self.connect_by, self.templates = True, event.connect_by, event.templates
                self.remind_at = now + REMIND_AFTER
                return []
            case on.Submitted():
                return self.schedule.submit(event.order, now)
            case on.Cancelled():
                return self.schedule.cancel(event, now)
            case on.AgentSaid():
                return self._said(event, now)
            case on.PayloadCame():
                return self.schedule.payload_came(event, now)
            case on.LogsSeen():
                return self.schedule.logs_seen(event, now)
            case on.AgentGone():
                return self._gone(event, now)
            case on.RanksOver():
                return self.schedule.ranks_over(event, now)
            case on.Closing():
                return self._close(now)
            case on.Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    # --- agents -----------------------------------------------------------------------------------------------------

    def _said(self, event: on.AgentSaid, now: float) -> list[do.Effect]:
        host = self.hosts[event.host]
        message = event.message
        match message:
            case m.Hello():
                return self._hello(host, message, now)
            case m.Pong():
                host.heard_clock(message.sent, message.clock, now)
            case m.TemplateReady():
                text = f"template ready after {message.seconds:.2f} s ({message.start_method})"
                return self._notice(host, "warning" if message.note else "debug", message.note or text, now)
            case m.TemplateFailed():
                return self._notice(host, "debug", message.text, now)
            case m.Said():
                return self._notice(host, message.level, message.text, now)
            case m.Usage():
                return told_usage(self.schedule.runs.get(message.step), host, message)
            case m.Leaving():
                return self.schedule.leaving(host, message.reason, now)
            case m.Bye() | m.Release():  # the latter is the loop's own: memory
                pass
            case m.Reserved():
                return self.schedule.reserved(host, message, now)
            case m.Reached():
                return self.schedule.reached(host, message, now)
            case m.Miscalled():
                return self.schedule.miscalled(host, message, now)
            case m.Called():
                return self.schedule.called(host, message)
            case m.Started():
                return self.schedule.started(host, message, now)
            case m.Answered():
                return self.schedule.answered(host, message, event.pending, now)
            case m.Ended():
                return self.schedule.ended(host, message, now)
            case m.Closed():
                return self.schedule.closed(host, message, now)
            case _:
                assert_never(message)
        return []

    def _hello(self, host: Host, message: m.Hello, now: float) -> list[do.Effect]:
        if not host.machine.can("hello"):
            return []
        host.machine.move("hello")
        host.facts = message.facts
        host.clock_offset = message.clock - now
        effects: list[do.Effect] = [
            do.Emit(ev.AgentConnected(now, host.plan.name, message.facts)),
            *self._notice(host, "debug", f"connected {_by(message.way)}", now),
        ]
        return effects + self._start_settled(now)

    def _start_settled(self, now: float) -> list[do.Effect]:
        """Whether it is known of every host that its agent has come, or that it won't."""
        states = {index: host.machine.state for index, host in self.hosts.items()}
        if not self.starting:
            return []
        if all(state is AgentState.CONNECTED for state in states.values()):
            self.starting, self.connect_by = False, None
            welcome: list[do.Effect] = []
            for host in self.hosts:
                welcome += [do.Welcome(host), do.Tell(host, m.Ping(now))]
            self.ping_at = now + PING_EVERY
            return [*welcome, do.AllReady(), *(do.Tell(host, m.Warm(spec)) for host, spec in self.templates.items())]
        lost = any(state is AgentState.LOST for state in states.values())
        if lost and AgentState.LAUNCHED in states.values() and self.connect_by is not None:
            self.connect_by = min(self.connect_by, now + GATHER)
            return []
        return self._not_ready() if lost else []

    def _not_ready(self) -> list[do.Effect]:
        self.starting, self.connect_by = False, None
        missing = [(i, h.reason) for i, h in self.hosts.items() if h.machine.state is not AgentState.CONNECTED]
        gathered = [place for place in missing if place[1]]
        return [do.NotReady(tuple(gathered or missing))]

    def _gone(self, event: on.AgentGone, now: float) -> list[do.Effect]:
        host = self.hosts[event.host]
        effects: list[do.Effect] = [do.EndAgent(event.host)]
        match host.machine.state:
            case AgentState.LAUNCHED:
                host.machine.move("lost")
                host.reason = event.reason
                effects += self._start_settled(now)
            case AgentState.CONNECTED:
                host.machine.move("lost")
                host.reason = event.reason
                effects.append(do.Emit(ev.AgentLost(now, host.plan.name, event.reason)))
                effects += self.schedule.lose_host(host, now) + self._start_settled(now)
            case AgentState.LEAVING:
                host.machine.move("gone")
                host.reason = event.reason
                effects += self.schedule.lose_host(host, now) + self._all_gone(now)
            case AgentState.LOST | AgentState.GONE:
                return []
        return effects

    def _close(self, now: float) -> list[do.Effect]:
        if self.schedule.closing:
            return []
        self.schedule.closing = True
        self.starting, self.connect_by, self.ping_at = False, None, None
        self.leave_by = now + LEAVE_PATIENCE
        effects: list[do.Effect] = []
        for run in list(self.schedule.runs):
            effects += self.schedule.cancel(on.Cancelled(run, 0.0), now)
        for index, host in self.hosts.items():
            if host.machine.state is AgentState.CONNECTED:
                effects.append(do.Tell(index, m.Shutdown()))
                host.machine.move("shutdown")
            elif host.machine.state is AgentState.LAUNCHED:
                host.machine.move("shutdown")
                effects.append(do.HangUp(index))
        return effects + self._all_gone(now)

    def _all_gone(self, now: float) -> list[do.Effect]:
        done = (AgentState.LOST, AgentState.GONE)
        if not self.schedule.closing or any(h.machine.state not in done for h in self.hosts.values()):
            return []
        self.leave_by = None
        return [*self.schedule.clear(now), do.AllGone()]

    def _tick(self, now: float) -> list[do.Effect]:
        effects: list[do.Effect] = []
        if self.connect_by is not None and now >= self.connect_by:
            effects += self._not_ready()
        if self.remind_at is not None and now >= self.remind_at:
            effects += self._remind(now)
        if self.ping_at is not None and now >= self.ping_at:
            self.ping_at = now + PING_EVERY
            there = [index for index, host in self.hosts.items() if host.machine.state is AgentState.CONNECTED]
            effects += [do.Tell(index, m.Ping(now)) for index in there]
        if self.leave_by is not None and now >= self.leave_by:
            self.leave_by = None
            effects += [do.EndAgent(i) for i, h in self.hosts.items() if h.machine.state is AgentState.LEAVING]
        return effects + self.schedule.tick(now)

    def _remind(self, now: float) -> list[do.Effect]:
        late = [host.plan.name for host in self.hosts.values() if host.machine.state is AgentState.LAUNCHED]
        self.remind_at = None
        if not self.starting or not late:
            return []
        self.reminded += 1
        self.remind_at = now + REMIND_AFTER * 2**self.reminded
        more = f" and {len(late) - 3} more" if len(late) > 3 else ""
        text = f"waiting for the agents of {', '.join(late[:3])}{more}"
        return [do.Emit(ev.Notice(now, "warning", text))]

    def _notice(self, host: Host, level: ev.Level, text: str, now: float) -> list[do.Effect]:
        return [do.Emit(ev.Notice(now, level, text, host.plan.name))]


def _by(way: str) -> str:
    return "through ssh: none of our addresses can be reached from there" if way.startswith("ipc:") else f"by {way}"
