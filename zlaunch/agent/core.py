"""Level 4, pure: what an agent decides. ``handle(event, now)`` takes what happened and returns what to do about it.

An agent has at most one template and, since steps that want the same host queue at the supervisor, one step at a time.
It never sees a socket, a process or a clock here: ``loop.py`` turns those into events and carries the effects out.
A rank's end is told only when its pipes have been emptied; a step's end only when nothing of it is alive.
"""

from __future__ import annotations

import signal
from typing import Literal, assert_never

from msgspec import Struct, field

from ..model import FateKind, Survivor, TemplateSpec, span_words
from ..protocol import messages as m
from ..tables import STEP_TABLE, Machine, RankState, StepState
from . import effects as do
from . import happenings as on
from .rank import Rank, fate_of, verdict
from .stopping import Stopping

ORPHAN_GRACE = 2.0
"""Seconds from SIGTERM to SIGKILL where the supervisor is gone."""

WARNED_GRACE = 30.0
"""The same where a scheduler has told us to end, and kills us after as long (Slurm's KillWait), or sooner. A supervisor
that is there shortens it to the step's own."""

Key = tuple[str, int]
"""A step and its attempt."""


class HostStep(Struct):
    """The step at hand."""

    key: Key
    template: str
    ranks: dict[int, Rank]
    answers: bool = True
    called: bool = False
    """Whether its ranks wait to be called for."""
    calls: set[int] = field(default_factory=set)
    """Ranks that have been."""
    letter_there: bool = False
    stopping: Stopping | None = None
    """Since its ranks are to end."""
    machine: Machine[StepState] = field(default_factory=lambda: Machine(STEP_TABLE, StepState.PREPARING))


class AgentCore(Struct):
    """The agent's mind."""

    hostname: str
    step: HostStep | None = None
    template: TemplateSpec | None = None
    template_state: Literal["none", "starting", "ready"] = "none"
    leaving: Literal["no", "told", "orphaned"] = "no"
    shares_memory: bool = False

    def deadline(self) -> float | None:
        """When ``handle`` wants to be called with a Tick at the latest."""
        return self.step.stopping.deadline() if self.step and self.step.stopping else None

    def handle(self, event: on.Happening, now: float) -> list[do.Effect]:
        """What to do about ``event``."""
        match event:
            case on.Told():
                return self._told(event.message, now)
            case on.TemplateUp():
                return self._template_up(event)
            case on.TemplateDown():
                return self._template_down(event, now)
            case on.LetterReady():
                return self._letter_ready(event)
            case on.LetterFailed():
                return self._drop(event.key, FateKind.UNPICKLABLE, event.text, now)
            case on.RankCalled():
                return self._rank_called(event)
            case on.RankForked():
                return self._rank_forked(event, now)
            case on.RankAnswered():
                return self._rank_answered(event)
            case on.RankExited():
                return self._rank_exited(event, now)
            case on.RankDrained():
                return self._rank_drained(event)
            case on.Swept():
                return self._swept(event)
            case on.PortKept():
                step, attempt = event.key
                return [do.Send(m.Reserved(step, attempt, event.port, event.point))]
            case on.Sought():
                return [do.Send(m.Reached(*event.key, event.ways, event.tried))]
            case on.SupervisorLost():
                return self._orphaned(event, now)
            case on.Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    # --- what the supervisor says -----------------------------------------------------------------------------------

    def _told(self, message: m.ToAgent, now: float) -> list[do.Effect]:
        match message:
            case m.Warm():
                return self._warm(message.template)
            case m.Reserve():
                return [do.KeepPort((message.step, message.attempt), message.meet)]
            case m.Reach():
                return [do.Seek((message.step, message.attempt), message.point)]
            case m.Start():
                return self._start(message)
            case m.Stop():
                return self._stop((message.step, message.attempt), message.grace, now)
            case m.Shutdown():
                self.leaving = "told"
                if self.step:
                    return self._stop(self.step.key, 0.0, now)
                return self._leave()
            case m.Ping():
                return [do.Send(m.Pong(message.sent, now, self.shares_memory))]
            case m.Welcome() | m.Credit() | m.Release():
                return []  # the loop's own: memory and flow
            case _:
                assert_never(message)

    def _warm(self, spec: TemplateSpec) -> list[do.Effect]:
        if self.template and self.template.key == spec.key and self.template_state != "none":
            return []
        if self.step:
            return [do.Send(m.Said("error", f"asked to change the template under {self.step.key}"))]
        self.template, self.template_state = spec, "starting"
        return [do.RunTemplate(spec)]

    def _start(self, message: m.Start) -> list[do.Effect]:
        key = (message.step, message.attempt)
        if self.step:
            text = f"asked to start {key} while {self.step.key} is still here"
            return [do.Send(m.Said("error", text))]
        ranks = {seat.rank: Rank(seat) for seat in message.seats}
        self.step = HostStep(key, message.template, ranks, message.answers, message.called)
        effects: list[do.Effect] = [do.EndMeeting(key), do.FetchLetter(key, message.letter)]
        if message.called:
            effects.append(do.AwaitCalls(key))
        if self.template and self.template_state == "none":
            self.template_state = "starting"
            effects.append(do.RunTemplate(self.template))
        return effects

    def _stop(self, key: Key, grace: float, now: float) -> list[do.Effect]:
        step = self._current(key)
        if step is None:
            return [do.FreePort(key)]  # it was reserved for, and never started
        stopping = step.stopping = step.stopping or Stopping()
        if step.machine.state is StepState.PREPARING:
            return self._drop(key, FateKind.LOST, "it was stopped before it started", now)
        if step.machine.state is not StepState.RUNNING:
            return []
        dropped = self._drop_waiting(step, now)
        if grace <= 0:
            stopping.kill(now)
            return [*dropped, *self._signal_all(step, signal.SIGKILL)]
        if not stopping.begin(now, grace):
            return dropped
        return [*dropped, *self._signal_all(step, signal.SIGTERM, but_finishing=True)]

    def _drop_waiting(self, step: HostStep, now: float) -> list[do.Effect]:
        """Ranks that nobody has called for yet never start."""
        effects: list[do.Effect] = []
        for rank in step.ranks.values():
            if rank.machine.state is RankState.WAITING:
                rank.machine.move("dropped")
                rank.fate = fate_of(rank, FateKind.LOST, now, text="it was stopped before it started", stopped=True)
                effects.append(do.Ended(step.key, rank.fate))
        return [*effects, *self._all_ended()]

    def _signal_all(self, step: HostStep, number: int, *, but_finishing: bool = False) -> list[do.Effect]:
        effects: list[do.Effect] = []
        for rank in step.ranks.values():
            again = rank.signalled and number == signal.SIGTERM
            if rank.is_there and not again and not (but_finishing and rank.finishes):
                rank.signalled = True
                effects.append(do.Signal(step.key, rank.seat.rank, number))
        return effects

    # --- the template -----------------------------------------------------------------------------------------------

    def _template_up(self, event: on.TemplateUp) -> list[do.Effect]:
        if not self.template or event.key != self.template.key:
            return []
        self.template_state = "ready"
        ready = m.TemplateReady(event.key, event.seconds, event.start_method, event.note)
        return [do.Send(ready), *self._fork_if_ready()]

    def _template_down(self, event: on.TemplateDown, now: float) -> list[do.Effect]:
        if not self.template or event.key != self.template.key:
            return []
        self.template_state = "none"
        effects: list[do.Effect] = [do.Send(m.TemplateFailed(event.key, event.text))]
        step = self.step
        if step is None:
            return effects
        if step.machine.state is StepState.PREPARING:
            return effects + self._drop(step.key, FateKind.LOST, event.text, now)
        for rank in step.ranks.values():
            if rank.machine.state in (RankState.FORKING, RankState.WAITING):
                rank.machine.move("dropped")
                rank.fate = fate_of(rank, FateKind.LOST, now, text=event.text)
                effects.append(do.Ended(step.key, rank.fate))
        return effects + self._all_ended()

    def _letter_ready(self, event: on.LetterReady) -> list[do.Effect]:
        step = self._current(event.key)
        if step is None:
            return []
        step.letter_there = True
        return self._fork_if_ready()

    def _fork_if_ready(self) -> list[do.Effect]:
        step = self.step
        if step is None or not step.letter_there or step.machine.state is not StepState.PREPARING:
            return []
        if self.template_state != "ready" or not self.template or self.template.key != step.template:
            return []
        step.machine.move("letter and template are there")
        return [
            self._fork(step, rank) for number, rank in step.ranks.items() if not step.called or number in step.calls
        ]

    def _fork(self, step: HostStep, rank: Rank) -> do.Effect:
        rank.machine.move("fork")
        return do.Fork(step.key, rank.seat)

    # --- the ranks --------------------------------------------------------------------------------------------------

    def _rank_called(self, event: on.RankCalled) -> list[do.Effect]:
        step = self._current(event.key)
        if step is None:
            return []
        rank = step.ranks.get(event.rank)
        world = next(iter(step.ranks.values())).seat.world_size
        if rank is None or event.size != world or event.rank in step.calls:
            twice = "once more " if event.rank in step.calls else ""
            planned = f"{'rank' if len(step.ranks) == 1 else 'ranks'} {span_words(step.ranks)} of {world}"
            are = "is" if len(step.ranks) == 1 else "are"
            text = f"it has started rank {event.rank} of {event.size} {twice}there, where {planned} {are} planned"
            text = f"{self.hostname}: {text}"
            return [do.Send(m.Miscalled(*event.key, text))]
        step.calls.add(event.rank)
        effects: list[do.Effect] = [do.Send(m.Called(*event.key))] if len(step.calls) == len(step.ranks) else []
        if step.machine.state is StepState.RUNNING and rank.machine.state is RankState.WAITING:
            effects.append(self._fork(step, rank))
        return effects

    def _rank_forked(self, event: on.RankForked, now: float) -> list[do.Effect]:
        step, rank = self._rank(event.key, event.rank)
        if step is None or rank is None or not rank.machine.can("forked"):
            return []
        rank.machine.move("forked")
        rank.pid = event.pid
        effects: list[do.Effect] = [do.Send(m.Started(*step.key, event.rank, event.pid, now))]
        if step.stopping:  # Stop overtook the fork
            rank.signalled = True
            number = signal.SIGTERM if step.stopping.kill_at is not None else signal.SIGKILL
            effects.append(do.Signal(step.key, event.rank, number))
        return effects

    def _rank_answered(self, event: on.RankAnswered) -> list[do.Effect]:
        step, rank = self._rank(event.key, event.rank)
        if step is None or rank is None or not rank.machine.can("answered"):
            return []
        rank.machine.move("answered")
        rank.answer = event
        rank.answered_late = rank.signalled
        return [do.Answered(step.key, event)]

    def _rank_exited(self, event: on.RankExited, now: float) -> list[do.Effect]:
        step, rank = self._rank(event.key, event.rank)
        if step is None or rank is None or not rank.machine.can("exited"):
            return []
        rank.machine.move("exited")
        rank.fate = verdict(rank, event, step.answers)
        return [do.Drain(step.key, event.rank)]

    def _rank_drained(self, event: on.RankDrained) -> list[do.Effect]:
        step, rank = self._rank(event.key, event.rank)
        if step is None or rank is None or rank.fate is None or not rank.machine.can("drained"):
            return []
        rank.machine.move("drained")
        return [do.Ended(step.key, rank.fate), *self._all_ended()]

    def _all_ended(self) -> list[do.Effect]:
        step = self.step
        if step is None or step.machine.state is not StepState.RUNNING:
            return []
        if any(rank.machine.state is not RankState.ENDED for rank in step.ranks.values()):
            return []
        step.machine.move("all ranks ended")
        return [do.Sweep(step.key)]

    def _drop(self, key: Key, kind: FateKind, text: str, now: float) -> list[do.Effect]:
        """The step ends before its ranks were forked."""
        step = self._current(key)
        if step is None or step.machine.state is not StepState.PREPARING:
            return []
        effects: list[do.Effect] = []
        for rank in step.ranks.values():
            rank.machine.move("dropped")
            rank.fate = fate_of(rank, kind, now, text=text, stopped=step.stopping is not None)
            effects.append(do.Ended(step.key, rank.fate))
        step.machine.move("dropped")
        return [*effects, do.Sweep(step.key)]

    def _swept(self, event: on.Swept) -> list[do.Effect]:
        step = self._current(event.key)
        if step is None:
            return []
        step.machine.move("swept")
        self.step = None
        survivors = tuple(Survivor(self.hostname, s.pid, s.command) for s in event.survivors)
        dismiss = [do.DismissCallers()] if step.called else []
        effects: list[do.Effect] = [do.FreePort(step.key), *dismiss, do.Closed(step.key, survivors)]
        return effects + (self._leave() if self.leaving != "no" else [])

    # --- the end ----------------------------------------------------------------------------------------------------

    def _orphaned(self, event: on.SupervisorLost, now: float) -> list[do.Effect]:
        if self.leaving != "no":
            again = self.leaving == "orphaned" and not event.is_there
            return self._stop(self.step.key, ORPHAN_GRACE, now) if again and self.step else []
        self.leaving = "orphaned"
        farewell: list[do.Effect] = [do.Send(m.Leaving(event.reason))]
        if self.step is None:
            return farewell + self._leave()
        return farewell + self._stop(self.step.key, WARNED_GRACE if event.is_there else ORPHAN_GRACE, now)

    def _leave(self) -> list[do.Effect]:
        if self.leaving == "told":
            return [do.EndTemplate(), do.Send(m.Bye()), do.Leave(0)]
        return [do.EndTemplate(), do.Leave(1)]

    def _tick(self, now: float) -> list[do.Effect]:
        step = self.step
        if step is None or step.stopping is None:
            return []
        match step.stopping.due(now):
            case "kill":
                return self._signal_all(step, signal.SIGKILL)
            case "terminate":
                return self._signal_all(step, signal.SIGTERM)
            case "give up":
                return self._give_up(step, now)
        return []

    def _give_up(self, step: HostStep, now: float) -> list[do.Effect]:
        """Ranks that SIGKILL does not end are not waited for; the sweep names them as survivors."""
        effects: list[do.Effect] = []
        if any(rank.machine.state is RankState.FORKING for rank in step.ranks.values()):
            effects.append(do.EndTemplate())  # it hangs
            self.template_state = "none"
        for rank in step.ranks.values():
            word = "given up" if rank.machine.can("given up") else "dropped"
            if rank.machine.can(word):
                rank.machine.move(word)
                rank.fate = fate_of(rank, FateKind.LOST, now, text="it did not die of SIGKILL", stopped=True)
                effects.append(do.Ended(step.key, rank.fate))
        return effects + self._all_ended()

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _current(self, key: Key) -> HostStep | None:
        return self.step if self.step and self.step.key == key else None

    def _rank(self, key: Key, number: int) -> tuple[HostStep | None, Rank | None]:
        step = self._current(key)
        return step, step.ranks.get(number) if step else None
