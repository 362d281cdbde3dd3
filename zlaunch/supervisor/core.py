"""Level 4, pure: what the supervisor decides. ``handle(event, now)`` takes what happened and returns what to do.

Cause, not symptom. When a rank fails, others fail because it did, and often they tell of it first. So the fates are
collected for ``COLLECT`` seconds, put in the order of the hosts' corrected clocks, and the first is the cause; an error
that only says that a peer is gone waits up to ``SYMPTOM_PATIENCE`` seconds for a better one, and every other failure
outranks it. Nothing is stopped before the cause is known; then everything is.

Steps that want the same hosts queue, first come first served.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

import msgspec

from .. import events as ev
from ..model import Fate, FateKind, HostFacts, HostPlan, Seat, Survivor
from ..protocol import messages as m
from ..tables import AGENT_TABLE, RUN_TABLE, AgentState, Machine, RunState
from . import effects as do
from . import happenings as on
from .fates import choose_cause, lost_fates, provisional_fate

COLLECT = 0.02
SYMPTOM_PATIENCE = 2.0
LEAVE_PATIENCE = 10.0
"""Seconds from Shutdown to the moment when an agent that does not leave is ended."""


@dataclass
class Host:
    """A host and its agent."""

    plan: HostPlan
    facts: HostFacts | None = None
    clock_offset: float = 0.0
    """The agent's clock minus ours."""
    run: str | None = None
    logs_seen: int = 0
    held: list[tuple[int, ev.Event]] = field(default_factory=list)
    """Events that must not be told before the log messages up to a number have been."""
    reason: str = ""
    machine: Machine[AgentState] = field(default_factory=lambda: Machine(AGENT_TABLE, AgentState.LAUNCHED))


@dataclass
class Run:
    """A step in progress."""

    order: on.RunOrder
    attempt: int = 0
    outcome: ev.Outcome = "succeeded"
    cause: Fate | None = None
    fates: dict[int, Fate] = field(default_factory=dict)
    failures: dict[int, Fate] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)
    open_hosts: dict[int, int | None] = field(default_factory=dict)
    """Hosts that hold something of the run; with the number of log messages to wait for, once it has closed."""
    survivors: list[Survivor] = field(default_factory=list)
    decide_at: float | None = None
    limit_at: float | None = None
    ever_started: bool = False
    machine: Machine[RunState] = field(default_factory=lambda: Machine(RUN_TABLE, RunState.QUEUED))

    @property
    def state(self) -> RunState:
        """Where it stands."""
        return self.machine.state

    def again(self) -> None:
        """Made ready for a restart: nothing of the failed attempt counts any more."""
        self.attempt += 1
        self.outcome, self.cause, self.decide_at, self.limit_at = "succeeded", None, None, None
        for collection in (self.fates, self.failures, self.started, self.pending, self.open_hosts):
            collection.clear()


@dataclass
class SupervisorCore:
    """The supervisor's mind."""

    hosts: dict[int, Host] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    """Those that have not ended, in the order in which they came."""
    connect_by: float | None = None
    leave_by: float | None = None
    closing: bool = False

    def deadline(self) -> float | None:
        """When ``handle`` wants to be called with a Tick at the latest."""
        times = [self.connect_by, self.leave_by]
        for run in self.runs.values():
            times += [run.decide_at, run.limit_at]
        return min((t for t in times if t is not None), default=None)

    def handle(self, event: on.Happening, now: float) -> list[do.Effect]:
        """What to do about ``event``."""
        match event:
            case on.Begun():
                self.hosts = {plan.index: Host(plan) for plan in event.hosts}
                self.connect_by = event.connect_by
                return []
            case on.Submitted():
                self.runs[event.order.id] = Run(event.order)
                return self._schedule(now)
            case on.Cancelled():
                return self._cancel(event, now)
            case on.AgentSaid():
                return self._said(event, now)
            case on.PayloadCame():
                run = self.runs.get(event.run)
                if run:
                    run.pending.discard(event.rank)
                return self._settle(run, now)
            case on.LogsSeen():
                return self._logs_seen(event, now)
            case on.AgentGone():
                return self._gone(event, now)
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
                host.clock_offset = message.clock - (message.sent + now) / 2
                return []
            case m.TemplateReady():
                text = f"template ready after {message.seconds:.2f} s ({message.start_method})"
                return self._notice(host, "warning" if message.note else "debug", message.note or text, now)
            case m.TemplateFailed():
                return self._notice(host, "debug", message.text, now)
            case m.Said():
                return self._notice(host, message.level, message.text, now)
            case m.Bye():
                return []
            case m.Release():
                return []  # the loop's own: memory
            case m.Reserved():
                return self._reserved(host, message, now)
            case m.Started():
                return self._started(host, message, now)
            case m.Answered():
                return self._answered(host, message, event.pending, now)
            case m.Ended():
                return self._ended(host, message, now)
            case m.Closed():
                return self._closed(host, message, now)
            case _:
                assert_never(message)

    def _hello(self, host: Host, message: m.Hello, now: float) -> list[do.Effect]:
        if not host.machine.can("hello"):
            return []
        host.machine.move("hello")
        host.facts = message.facts
        host.clock_offset = message.clock - now
        effects: list[do.Effect] = [
            do.Tell(host.plan.index, m.Ping(now)),
            do.Emit(ev.AgentConnected(now, host.plan.name, message.facts)),
        ]
        if all(h.machine.state is AgentState.CONNECTED for h in self.hosts.values()):
            self.connect_by = None
            effects.append(do.AllReady())
        return effects

    def _gone(self, event: on.AgentGone, now: float) -> list[do.Effect]:
        host = self.hosts[event.host]
        effects: list[do.Effect] = [do.EndAgent(event.host)]
        match host.machine.state:
            case AgentState.LAUNCHED:
                host.machine.move("lost")
                host.reason = event.reason
                effects.append(do.NotReady(host.plan.name, event.reason))
            case AgentState.CONNECTED:
                host.machine.move("lost")
                host.reason = event.reason
                effects.append(do.Emit(ev.AgentLost(now, host.plan.name, event.reason)))
                effects += self._lose_host(host, now)
            case AgentState.LEAVING:
                host.machine.move("gone")
                effects += self._all_gone(now)
            case AgentState.LOST | AgentState.GONE:
                return []
        return effects

    def _lose_host(self, host: Host, now: float) -> list[do.Effect]:
        effects: list[do.Effect] = [do.Emit(event) for _, event in host.held]
        host.held.clear()
        for run in list(self.runs.values()):
            index = host.plan.index
            if index not in run.order.seats:
                continue
            if run.state is RunState.QUEUED:
                effects += self._give_up(run, now, lost=host)
                continue
            run.open_hosts.pop(index, None)
            for fate in lost_fates(run.order.seats[index], run.fates, host.reason, now):
                run.fates[fate.rank] = fate
                run.pending.discard(fate.rank)
                effects.append(do.Emit(ev.RankEnded(now, run.order.id, fate)))
                effects += self._failed(run, fate, now)
            if run.state is RunState.RESERVING:
                run.cause = run.cause or next(iter(run.failures.values()), None)
                run.outcome = "lost"
                effects += self._stop(run, 0.0)
            effects += self._settle(run, now)
        return effects

    def _close(self, now: float) -> list[do.Effect]:
        if self.closing:
            return []
        self.closing = True
        self.connect_by = None
        self.leave_by = now + LEAVE_PATIENCE
        effects: list[do.Effect] = []
        for run in list(self.runs.values()):
            effects += self._cancel(on.Cancelled(run.order.id, 0.0), now)
        for index, host in self.hosts.items():
            if host.machine.state is AgentState.CONNECTED:
                effects.append(do.Tell(index, m.Shutdown()))
                host.machine.move("shutdown")
            elif host.machine.state is AgentState.LAUNCHED:
                host.machine.move("shutdown")
                effects.append(do.EndAgent(index))
        return effects + self._all_gone(now)

    def _all_gone(self, now: float) -> list[do.Effect]:
        done = (AgentState.LOST, AgentState.GONE)
        if not self.closing or any(h.machine.state not in done for h in self.hosts.values()):
            return []
        self.leave_by = None
        effects: list[do.Effect] = []
        for run in list(self.runs.values()):  # its hosts left without a last word
            run.open_hosts.clear()
            effects += self._settle(run, now)
        return [*effects, do.AllGone()]

    def _tick(self, now: float) -> list[do.Effect]:
        effects: list[do.Effect] = []
        if self.connect_by is not None and now >= self.connect_by:
            self.connect_by = None
            late = [h.plan.name for h in self.hosts.values() if h.machine.state is AgentState.LAUNCHED]
            effects += [do.NotReady(name, "its agent did not connect in time") for name in late]
        if self.leave_by is not None and now >= self.leave_by:
            self.leave_by = None
            effects += [do.EndAgent(i) for i, h in self.hosts.items() if h.machine.state is AgentState.LEAVING]
        for run in list(self.runs.values()):
            if run.decide_at is not None and now >= run.decide_at:
                effects += self._decide(run)
            if run.limit_at is not None and now >= run.limit_at:
                run.limit_at = None
                if run.machine.can("stop"):
                    run.outcome = "timed out"
                    effects += self._stop(run, run.order.grace)
        return effects

    # --- a run's way ------------------------------------------------------------------------------------------------

    def _schedule(self, now: float) -> list[do.Effect]:
        effects: list[do.Effect] = []
        wanted: set[int] = set()
        for run in list(self.runs.values()):
            if run.state is not RunState.QUEUED:
                continue
            mine = set(run.order.seats)
            lost = next((self.hosts[i] for i in mine if self.hosts[i].machine.state is AgentState.LOST), None)
            if lost:
                effects += self._give_up(run, now, lost=lost)
            elif not wanted & mine and all(self._is_free(i) for i in mine):
                effects += self._begin(run)
            wanted |= mine
        return effects

    def _is_free(self, index: int) -> bool:
        host = self.hosts[index]
        return host.machine.state is AgentState.CONNECTED and host.run is None

    def _begin(self, run: Run) -> list[do.Effect]:
        run.machine.move("hosts are free")
        effects: list[do.Effect] = []
        for index in run.order.seats:
            self.hosts[index].run = run.order.id
            effects.append(do.Tell(index, m.Warm(run.order.template)))
        first = min(run.order.seats)
        effects.append(do.Tell(first, m.Reserve(run.order.id, run.attempt)))
        return effects

    def _reserved(self, host: Host, message: m.Reserved, now: float) -> list[do.Effect]:
        run = self._run_of(message.step, message.attempt)
        if run is None or run.state is not RunState.RESERVING:
            return []
        run.machine.move("port is kept")
        order = run.order
        if order.time_limit is not None:
            run.limit_at = now + order.time_limit
        effects: list[do.Effect] = [
            do.Emit(ev.RunStarted(now, order.id, order.name, order.hosts, run.attempt, order.log_token))
        ]
        for index, seats in order.seats.items():
            placed = tuple(
                msgspec.structs.replace(seat, master_port=message.port, restart_count=run.attempt) for seat in seats
            )
            run.open_hosts[index] = None
            effects.append(do.SendStart(index, order.id, run.attempt, order.template.key, placed, order.answers))
        return effects

    def _started(self, host: Host, message: m.Started, now: float) -> list[do.Effect]:
        run = self._run_of(message.step, message.attempt)
        seat = self._seat(run, host, message.rank)
        if run is None or seat is None:
            return []
        run.started.add(message.rank)
        run.ever_started = True
        if run.state is RunState.STARTING and len(run.started) == run.order.world_size:
            run.machine.move("all ranks started")
        at = message.at - host.clock_offset
        started = ev.RankStarted(at, run.order.id, message.rank, seat.local_rank, host.plan.name, message.pid)
        return [do.Emit(started)]

    def _answered(self, host: Host, message: m.Answered, pending: bool, now: float) -> list[do.Effect]:
        run = self._run_of(message.step, message.attempt)
        seat = self._seat(run, host, message.rank)
        if run is None or seat is None:
            return []
        if pending:
            run.pending.add(message.rank)
        if message.kind == "value":
            return []
        return self._failed(run, provisional_fate(seat, message, message.at - host.clock_offset), now)

    def _ended(self, host: Host, message: m.Ended, now: float) -> list[do.Effect]:
        run = self._run_of(message.step, message.attempt)
        if run is None or self._seat(run, host, message.fate.rank) is None:
            return []
        fate = msgspec.structs.replace(message.fate, at=message.fate.at - host.clock_offset)
        run.fates[fate.rank] = fate
        effects = self._tell_after_logs(host, message.logs, ev.RankEnded(now, run.order.id, fate))
        if not fate.ok:
            effects += self._failed(run, fate, now)
        if run.state is RunState.FAILING and len(run.fates) == run.order.world_size:
            effects += self._decide(run)
        return effects

    def _closed(self, host: Host, message: m.Closed, now: float) -> list[do.Effect]:
        run = self._run_of(message.step, message.attempt)
        if run is None or host.plan.index not in run.open_hosts:
            return []
        run.open_hosts[host.plan.index] = message.logs
        run.survivors += [Survivor(host.plan.name, s.pid, s.command) for s in message.survivors]
        return self._settle(run, now)

    # --- failure ----------------------------------------------------------------------------------------------------

    def _failed(self, run: Run, fate: Fate, now: float) -> list[do.Effect]:
        run.failures[fate.rank] = fate
        if run.machine.can("a rank failed"):
            run.machine.move("a rank failed")
            run.decide_at = now + (SYMPTOM_PATIENCE if fate.symptom else COLLECT)
        elif run.state is RunState.FAILING and not fate.symptom:
            run.decide_at = min(run.decide_at or now, now + COLLECT)
        return []

    def _decide(self, run: Run) -> list[do.Effect]:
        run.decide_at = None
        if run.state is not RunState.FAILING:
            return []
        run.cause = choose_cause(run.failures.values())
        run.outcome = "lost" if run.cause.kind is FateKind.LOST else "failed"
        run.machine.move("cause known")
        return self._stop_hosts(run, run.order.grace)

    def _cancel(self, event: on.Cancelled, now: float) -> list[do.Effect]:
        run = self.runs.get(event.run)
        if run is None:
            return []
        grace = run.order.grace if event.grace is None else event.grace
        if run.state is RunState.QUEUED:
            run.outcome = "cancelled"
            return self._give_up(run, now, lost=None)
        if run.state is RunState.STOPPING:
            return self._stop_hosts(run, grace)
        run.outcome = "cancelled"
        return self._stop(run, grace) + self._settle(run, now)

    def _stop(self, run: Run, grace: float) -> list[do.Effect]:
        run.machine.move("stop")
        run.decide_at = None
        return self._stop_hosts(run, grace)

    def _stop_hosts(self, run: Run, grace: float) -> list[do.Effect]:
        run.limit_at = None
        return [
            do.Tell(index, m.Stop(run.order.id, run.attempt, grace))
            for index in run.order.seats
            if self.hosts[index].machine.state is AgentState.CONNECTED
        ]

    # --- the end of a run -------------------------------------------------------------------------------------------

    def _settle(self, run: Run | None, now: float) -> list[do.Effect]:
        """End the run, or start it again, if every host has closed and all that it sent is here."""
        if run is None or run.state not in (
            RunState.STARTING,
            RunState.RUNNING,
            RunState.FAILING,
            RunState.STOPPING,
        ):
            return []
        for index, logs in run.open_hosts.items():
            if logs is None or self.hosts[index].logs_seen < logs:
                return []
        if run.pending:
            return []
        effects = self._decide(run) if run.state is RunState.FAILING else []
        for index in run.order.seats:
            if self.hosts[index].run == run.order.id:
                self.hosts[index].run = None
        if run.outcome == "failed" and run.attempt < run.order.max_restarts and not self.closing:
            effects.append(self._restart(run, now))
        else:
            run.machine.move("hosts closed")
            effects += self._finish(run, now)
        return effects + self._schedule(now)

    def _restart(self, run: Run, now: float) -> do.Effect:
        run.machine.move("restart")
        cause = run.cause
        assert cause is not None  # an outcome of "failed" has one
        run.again()
        return do.Emit(ev.RunRestarting(now, run.order.id, cause, run.attempt, run.order.max_restarts))

    def _give_up(self, run: Run, now: float, lost: Host | None) -> list[do.Effect]:
        """End a run that never left the queue."""
        if lost:
            run.outcome = "lost"
            for fate in lost_fates(run.order.seats[lost.plan.index], run.fates, lost.reason, now):
                run.fates[fate.rank] = fate
            run.cause = next(iter(run.fates.values()))
        run.machine.move("given up")
        return self._finish(run, now)

    def _finish(self, run: Run, now: float) -> list[do.Effect]:
        del self.runs[run.order.id]
        fates = tuple(sorted(run.fates.values(), key=lambda fate: fate.at))
        cause = run.fates.get(run.cause.rank, run.cause) if run.cause else None
        ended = ev.RunEnded(now, run.order.id, run.outcome, cause, fates, tuple(run.survivors))
        return [do.Emit(ended), do.Finish(ended, run.ever_started)]

    # --- telling ----------------------------------------------------------------------------------------------------

    def _logs_seen(self, event: on.LogsSeen, now: float) -> list[do.Effect]:
        host = self.hosts[event.host]
        host.logs_seen = event.number
        effects: list[do.Effect] = []
        while host.held and host.held[0][0] <= host.logs_seen:
            effects.append(do.Emit(host.held.pop(0)[1]))
        return effects + (self._settle(self.runs.get(host.run), now) if host.run else [])

    def _tell_after_logs(self, host: Host, logs: int, event: ev.Event) -> list[do.Effect]:
        if host.logs_seen >= logs and not host.held:
            return [do.Emit(event)]
        host.held.append((logs, event))
        return []

    def _notice(self, host: Host, level: ev.Level, text: str, now: float) -> list[do.Effect]:
        return [do.Emit(ev.Notice(now, level, text, host.plan.name))]

    def output(self, index: int, log: m.Log, data: bytes) -> ev.Output | None:
        """A log message as an event; ``None`` where its run or rank is not this host's, or is over."""
        host = self.hosts[index]
        run = self.runs.get(log.step)
        seat = self._seat(run, host, log.rank)
        if run is None or seat is None:
            return None
        at = log.at - host.clock_offset
        name = host.plan.name
        return ev.Output(at, log.step, log.rank, seat.local_rank, name, log.stream, data, log.piece)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _run_of(self, step: str, attempt: int) -> Run | None:
        run = self.runs.get(step)
        return run if run and run.attempt == attempt else None

    def _seat(self, run: Run | None, host: Host, rank: int) -> Seat | None:
        """The rank's seat, if it sits on this host: an agent can only speak for its own ranks."""
        if run is None:
            return None
        return next((s for s in run.order.seats.get(host.plan.index, ()) if s.rank == rank), None)
