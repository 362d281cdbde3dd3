"""Level 4, pure: a run's way, from the queue to its end.

Cause, not symptom. When a rank fails, others fail because it did, and often they tell of it first. So the fates are
collected for ``COLLECT`` seconds, put in the order of the hosts' corrected clocks, and the first is the cause; an error
that only says that a peer is gone waits up to ``SYMPTOM_PATIENCE`` seconds for a better one, and every other failure
outranks it. Nothing is stopped before the cause is known; then everything is.

Steps that want the same hosts queue, first come first served.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from .. import events as ev
from ..model import Fate, FateKind, Survivor
from ..protocol import messages as m
from ..tables import AgentState, RunState
from . import effects as do
from . import happenings as on
from .callings import Callings
from .fates import choose_cause, lost_fates, provisional_fate
from .state import Host, Run

COLLECT = 0.01
SYMPTOM_PATIENCE = 2.0
CLOSE_PATIENCE = 20.0
"""Seconds, after the grace, that an agent may take to end a step: 5 for ranks that hang in the kernel, then a sweep."""


@dataclass
class Schedule(Callings):
    """All runs that have not ended, and what becomes of them."""

    def deadline(self) -> float | None:
        """When ``tick`` wants to be called at the latest."""
        runs = self.runs.values()
        found = (t for run in runs for t in (run.decide_at, run.limit_at, run.answer_by, run.abandon_at, run.call_by))
        times = [t for t in found if t is not None]
        return min(times, default=None)

    def tick(self, now: float) -> list[do.Effect]:
        """Causes are due to be known, and time limits have passed."""
        effects: list[do.Effect] = []
        for run in list(self.runs.values()):
            if run.decide_at is not None and now >= run.decide_at:
                effects += self._decide(run, now)
            if run.limit_at is not None and now >= run.limit_at:
                run.limit_at = None
                if run.machine.can("stop"):
                    run.outcome = "timed out"
                    effects += self._stop(run, run.order.grace, now)
            effects += self.late_launcher(run, now)
            if run.answer_by is not None and now >= run.answer_by:
                run.answer_by = None
                effects += [do.GiveUp(host, "its agent does not answer") for host in self._owing(run)]
        return effects

    def _owing(self, run: Run) -> list[int]:
        """The hosts of whose agents an answer is waited for."""
        if run.state is RunState.RESERVING:
            first, *_ = indices = run.indices()
            return [first] if run.port == 0 else self.routes.missing(first, indices)
        return [host for host, logs in run.open_hosts.items() if logs is None]

    def submit(self, order: on.RunOrder, now: float) -> list[do.Effect]:
        """Somebody wants a run."""
        run = self.runs[order.id] = Run(order)
        if self.closing:
            run.outcome = "cancelled"
            return self._give_up(run, now, lost=None)
        return self._schedule(now)

    def payload_came(self, event: on.PayloadCame, now: float) -> list[do.Effect]:
        """An answer that was on its way is here."""
        run = self.runs.get(event.run)
        if run:
            run.pending.discard(event.rank)
        return self._settle(run, now)

    def logs_seen(self, event: on.LogsSeen, now: float) -> list[do.Effect]:
        """A host's log messages have come up to a number: what waited for them may be told."""
        host = self.hosts[event.host]
        host.logs_seen = event.number
        effects: list[do.Effect] = []
        while host.held and host.held[0][0] <= host.logs_seen:
            effects.append(do.Emit(host.held.pop(0)[1]))
        return effects + (self._settle(self.runs.get(host.run), now) if host.run else [])

    def clear(self, now: float) -> list[do.Effect]:
        """No host is left: whatever has not ended ends."""
        effects: list[do.Effect] = []
        for run in list(self.runs.values()):
            run.open_hosts.clear()
            run.pending.clear()
            run.launcher = "none"
            effects += self._settle(run, now)
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
                continue
            if not wanted & mine and all(self._is_free(i) for i in mine):
                effects += self._begin(run, now)
            wanted |= mine
        return effects

    def _is_free(self, index: int) -> bool:
        host = self.hosts[index]
        return host.machine.state is AgentState.CONNECTED and host.run is None

    def started(self, host: Host, message: m.Started, now: float) -> list[do.Effect]:
        """A rank's process is there."""
        run = self._run_of(message.step, message.attempt)
        seat = None if run is None else run.seat(host.plan.index, message.rank)
        if run is None or seat is None:
            return []
        run.pids[message.rank] = message.pid
        run.ever_started = True
        if run.state is RunState.STARTING and len(run.pids) == run.order.world_size:
            run.machine.move("all ranks started")
        at = message.at - host.clock_offset
        started = ev.RankStarted(at, run.order.id, message.rank, seat.local_rank, host.plan.name, message.pid)
        return [do.Emit(started)]

    def answered(self, host: Host, message: m.Answered, pending: bool, now: float) -> list[do.Effect]:
        """A rank gave its answer: a failure is known before its process has ended."""
        run = self._run_of(message.step, message.attempt)
        seat = None if run is None else run.seat(host.plan.index, message.rank)
        if run is None or seat is None:
            return []
        if pending:
            run.pending.add(message.rank)
        if message.kind == "value":
            return []
        return self._failed(
            run, provisional_fate(seat, message, message.at - host.clock_offset, run.pids.get(message.rank, 0)), now
        )

    def ended(self, host: Host, message: m.Ended, now: float) -> list[do.Effect]:
        """A rank is gone."""
        run = self._run_of(message.step, message.attempt)
        if run is None or run.seat(host.plan.index, message.fate.rank) is None:
            return []
        fate = msgspec.structs.replace(message.fate, at=message.fate.at - host.clock_offset)
        if fate.ok:
            fate = run.failures.get(fate.rank, fate)  # all went well there, but its result was lost on the way
        run.fates[fate.rank] = fate
        effects = self._tell_after_logs(host, message.logs, ev.RankEnded(now, run.order.id, fate))
        if not fate.ok:
            effects += self._failed(run, fate, now)
        if run.state is RunState.FAILING and len(run.fates) == run.order.world_size:
            effects += self._decide(run, now)
        return effects

    def closed(self, host: Host, message: m.Closed, now: float) -> list[do.Effect]:
        """A host holds nothing of the run any more."""
        run = self._run_of(message.step, message.attempt)
        if run is None or host.plan.index not in run.open_hosts:
            return []
        run.open_hosts[host.plan.index] = message.logs
        run.survivors += [Survivor(host.plan.name, s.pid, s.command) for s in message.survivors]
        return self._settle(run, now)

    # --- failure ----------------------------------------------------------------------------------------------------

    def _failed(self, run: Run, fate: Fate, now: float) -> list[do.Effect]:
        if fate.stopped and fate.rank in run.failures:
            return []  # why its host ended it is known already
        run.failures[fate.rank] = fate
        if run.machine.can("a rank failed"):
            run.machine.move("a rank failed")
            run.decide_at = now + (SYMPTOM_PATIENCE if fate.symptom else COLLECT)
        elif run.state is RunState.FAILING and not fate.symptom:
            run.decide_at = min(run.decide_at or now, now + COLLECT)
        return []

    def _decide(self, run: Run, now: float) -> list[do.Effect]:
        run.decide_at = None
        if run.state is not RunState.FAILING:
            return []
        run.cause = choose_cause(run.failures.values())
        run.outcome = "lost" if run.cause.kind is FateKind.LOST else "failed"
        run.machine.move("cause known")
        return self._stop_hosts(run, run.order.grace, now)

    def cancel(self, event: on.Cancelled, now: float) -> list[do.Effect]:
        """Somebody wants a run no more."""
        run = self.runs.get(event.run)
        if run is None:
            return []
        grace = run.order.grace if event.grace is None else event.grace
        if run.state is RunState.QUEUED:
            run.outcome = "cancelled"
            return self._give_up(run, now, lost=None) + self._schedule(now)
        if run.state is RunState.STOPPING:
            run.unwanted = True
            if run.left and run.outcome == "lost":
                run.outcome, run.cause = "cancelled", None  # who ends a job tells its agents and us, in any order
            return self._stop_hosts(run, grace, now)
        run.outcome = "cancelled"
        return self._stop(run, grace, now) + self._settle(run, now)

    def _stop(self, run: Run, grace: float, now: float) -> list[do.Effect]:
        run.machine.move("stop")
        run.decide_at = None
        return self._stop_hosts(run, grace, now)

    def _stop_hosts(self, run: Run, grace: float, now: float) -> list[do.Effect]:
        run.limit_at = None
        run.answer_by = now + grace + CLOSE_PATIENCE
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
        if run.launcher in ("running", "ending"):
            told, run.launcher = run.launcher == "ending", "ending"
            return [] if told else [do.EndRanks(run.order.id)]
        effects = self._decide(run, now) if run.state is RunState.FAILING else []
        for index in run.order.seats:
            if self.hosts[index].run == run.order.id:
                self.hosts[index].run = None
        if run.outcome == "failed" and not run.unwanted and run.attempt < run.order.max_restarts and not self.closing:
            effects.append(self._restart(run, now))
        else:
            run.machine.move("hosts closed")
            effects += self._finish(run, now)
        return effects + self._schedule(now)

    def _restart(self, run: Run, now: float) -> do.Effect:
        run.machine.move("restart")
        self._doubt(run)
        cause = run.cause
        assert cause is not None  # an outcome of "failed" has one
        run.again()
        return do.Emit(ev.RunRestarting(now, run.order.id, cause, run.attempt, run.order.max_restarts))

    def _give_up(self, run: Run, now: float, lost: Host | None) -> list[do.Effect]:
        """End a run that never left the queue."""
        if lost:
            run.outcome = "lost"
            for fate in lost_fates(run.order.seats[lost.plan.index], run.fates, lost.reason, now, run.pids):
                run.fates[fate.rank] = fate
            run.cause = next(iter(run.fates.values()))
        run.machine.move("given up")
        return self._finish(run, now)

    def _finish(self, run: Run, now: float) -> list[do.Effect]:
        del self.runs[run.order.id]
        if run.outcome != "succeeded":
            self._doubt(run)
        fates = tuple(sorted(run.fates.values(), key=lambda fate: fate.at))
        cause = run.cause
        if (
            cause and cause.kind is not FateKind.LOST
        ):  # which has no better one, though its ranks may have been seen end
            cause = run.fates.get(cause.rank, cause)
        survivors, unasked = tuple(run.survivors), tuple(run.unasked)
        ended = ev.RunEnded(now, run.order.id, run.outcome, cause, fates, survivors, unasked)
        return [do.Emit(ended), do.Finish(ended, run.ever_started)]

    def leaving(self, host: Host, reason: str, now: float) -> list[do.Effect]:
        """A host ends its ranks of its own accord. That is the cause, and not the signals by which it does so."""
        effects: list[do.Effect] = []
        for run in list(self.runs.values()):
            seats = run.order.seats.get(host.plan.index, ())
            if run.state in (RunState.STARTING, RunState.RUNNING, RunState.FAILING):
                run.left = run.left or (bool(seats) and not run.failures)
                for fate in lost_fates(seats, run.fates, f"its agent goes: {reason}", now, run.pids):
                    effects += self._failed(run, run.failures.get(fate.rank, fate), now)
        return effects

    def lose_host(self, host: Host, now: float) -> list[do.Effect]:
        """A host is gone, and all of its ranks that nobody saw end."""
        effects: list[do.Effect] = [do.Emit(event) for _, event in host.held]
        host.held.clear()
        for run in list(self.runs.values()):
            index = host.plan.index
            if index not in run.order.seats:
                continue
            if run.state is RunState.QUEUED:
                effects += self._give_up(run, now, lost=host)
                continue
            if run.open_hosts.pop(index, 0) is None and not host.plan.here:
                run.unasked.append(host.plan.name)
            for seat in run.order.seats[index]:
                if seat.rank in run.pending:  # it ended well, and its result never came whole
                    run.fates.pop(seat.rank, None)
            for fate in lost_fates(run.order.seats[index], run.fates, host.reason, now, run.pids):
                run.pending.discard(fate.rank)
                known = run.failures.get(fate.rank, fate)  # it may have failed by itself before
                run.fates[fate.rank] = known
                effects.append(do.Emit(ev.RankEnded(now, run.order.id, known)))
                effects += self._failed(run, known, now)
            if run.state is RunState.RESERVING:
                run.cause = run.cause or next(iter(run.failures.values()), None)
                run.outcome = "lost"
                effects += self._stop(run, 0.0, now)
            effects += self._settle(run, now)
        return effects + self._schedule(now)

    def output(self, index: int, log: m.Log, data: bytes) -> ev.Output | ev.Redrawn | None:
        """A log message as an event; ``None`` where its run or rank is not this host's, or is over."""
        host = self.hosts[index]
        run = self.runs.get(log.step)
        seat = None if run is None else run.seat(index, log.rank)
        if run is None or seat is None:
            return None
        at = log.at - host.clock_offset
        name = host.plan.name
        if log.redraw:
            text = data.decode(errors="replace")
            return ev.Redrawn(at, log.step, log.rank, seat.local_rank, name, log.stream, text)
        return ev.Output(at, log.step, log.rank, seat.local_rank, name, log.stream, data, log.piece)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _tell_after_logs(self, host: Host, logs: int, event: ev.Event) -> list[do.Effect]:
        if host.logs_seen >= logs and not host.held:
            return [do.Emit(event)]
        host.held.append((logs, event))
        return []
