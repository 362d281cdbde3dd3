"""Both cores, joined across a link that is a list. See the package."""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from ..agent import effects as agent_do
from ..agent import happenings as agent_on
from ..agent.core import AgentCore
from ..events import Event, RunEnded
from ..model import HostFacts, HostPlan, TemplateSpec
from ..plan import place_ranks
from ..protocol import messages as m
from ..supervisor import effects as do
from ..supervisor import happenings as on
from ..supervisor.core import SupervisorCore

Key = tuple[str, int]


@dataclass
class Clock:
    """Seconds that pass when told to."""

    now: float = 0.0


@dataclass
class FakeHost:
    """An agent's core over a simulated host."""

    pair: Pair
    plan: HostPlan
    clock_offset: float = 0.0
    ignores_sigterm: set[int] = field(default_factory=set)
    """Ranks that go on after SIGTERM."""
    immortal: set[int] = field(default_factory=set)
    """Ranks that SIGKILL does not end either: they hang in the kernel."""
    hangs: bool = False
    """It takes nothing in and says nothing, though its connection stands."""
    forks: bool = True
    """False: the template is slow, and forks nothing until ``fork_now``."""
    addresses: tuple[str, ...] = ("10.0.0.1",)
    """What it offers as a meeting point."""
    blind_to: set[str] = field(default_factory=set)
    """Addresses of others that it cannot reach."""
    sought: int = 0
    """How often it looked for a meeting point."""
    alive: dict[int, Key] = field(default_factory=dict)
    signals: list[tuple[int, int]] = field(default_factory=list)
    """(rank, signal) in the order in which they were sent."""
    left: int | None = None
    dismissed: int = 0
    """How often the callers of an MPI launcher's were let go."""

    def __post_init__(self) -> None:
        self.core = AgentCore(self.plan.name)
        self.queue: deque[agent_on.Happening] = deque()

    @property
    def now(self) -> float:
        """The host's own clock."""
        return self.pair.clock.now + self.clock_offset

    def feed(self, event: agent_on.Happening) -> None:
        """Let the agent's core handle an event, and all that comes of it."""
        if self.hangs:
            return
        self.queue.append(event)
        while self.queue:
            for effect in self.core.handle(self.queue.popleft(), self.now):
                self._carry_out(effect)

    def returns(self, rank: int) -> None:
        """A rank gives its result and ends with status 0."""
        self._answer(rank, "value", "", symptom=False)
        self.exits(rank, 0)

    def raises(self, rank: int, text: str, *, symptom: bool = False, ends: bool = True) -> None:
        """A rank tells of an exception; with ``ends`` it ends with status 1 as well."""
        self._answer(rank, "exception", text, symptom=symptom)
        if ends:
            self.exits(rank, 1)

    def exits(self, rank: int, code: int) -> None:
        """A rank's process ends with an exit status."""
        self._dies(rank, code << 8)

    def killed(self, rank: int, number: int = signal.SIGKILL, *, out_of_memory: bool = False) -> None:
        """A rank's process is killed by a signal."""
        self._dies(rank, int(number), out_of_memory=out_of_memory)

    def template_dies(self, text: str = "its fork template was killed by SIGKILL") -> None:
        """The template is killed, and its ranks with it."""
        key = self.core.template.key if self.core.template else ""
        ranks = list(self.alive)
        self.feed(agent_on.TemplateDown(key, text))
        for rank in ranks:
            step = self.alive.pop(rank)
            self.feed(agent_on.RankExited(step, rank, None, self.now, text=text))

    def _answer(
        self, rank: int, kind: Literal["value", "exception", "unpicklable"], text: str, *, symptom: bool
    ) -> None:
        self.feed(agent_on.RankAnswered(self.alive[rank], rank, kind, self.now, text, symptom, 0))

    def _dies(self, rank: int, status: int, *, out_of_memory: bool = False) -> None:
        key = self.alive.pop(rank)
        self.feed(agent_on.RankExited(key, rank, status, self.now, out_of_memory))

    def _carry_out(self, effect: agent_do.Effect) -> None:
        match effect:
            case agent_do.Send(message):
                self.pair.to_supervisor(self, message)
            case agent_do.RunTemplate(spec):
                self.queue.append(agent_on.TemplateUp(spec.key, 1.0, spec.start_method, ""))
            case agent_do.FetchLetter(key, _):
                self.queue.append(agent_on.LetterReady(key))
            case agent_do.Fork(key, seat):
                self.alive[seat.rank] = key
                if self.forks:
                    self.queue.append(agent_on.RankForked(key, seat.rank, 1000 + seat.rank))
            case agent_do.Signal(_, rank, number):
                self.signals.append((rank, number))
                deaf = self.immortal if number == signal.SIGKILL else self.ignores_sigterm | self.immortal
                if rank not in deaf:
                    key = self.alive.pop(rank)
                    self.queue.append(agent_on.RankExited(key, rank, number, self.now))
            case agent_do.Drain(key, rank):
                self.queue.append(agent_on.RankDrained(key, rank))
            case agent_do.Answered((step, attempt), answer):
                told = m.Answered(step, attempt, answer.rank, answer.kind, answer.at, answer.text, answer.symptom)
                self.pair.to_supervisor(self, told)
            case agent_do.Ended((step, attempt), fate):
                self.pair.to_supervisor(self, m.Ended(step, attempt, fate, 0))
            case agent_do.Sweep(key):
                self.queue.append(agent_on.Swept(key, ()))
            case agent_do.Closed((step, attempt), survivors):
                self.pair.to_supervisor(self, m.Closed(step, attempt, survivors, 0))
            case agent_do.KeepPort(key, meet):
                self.pair.ports += 1
                point = m.MeetingPoint(self.addresses, 1, b"token") if meet else None
                self.queue.append(agent_on.PortKept(key, self.pair.ports, point))
            case agent_do.Seek(key, point):
                self.sought += 1
                ways = tuple(m.Way(address, "eth0") for address in point.addresses if address not in self.blind_to)
                self.queue.append(agent_on.Sought(key, ways, "" if ways else "no answer"))
            case agent_do.Leave(status):
                self.left = status
                self.pair.gone(self, "it left")
            case agent_do.DismissCallers():
                self.dismissed += 1
            case agent_do.FreePort() | agent_do.EndTemplate() | agent_do.EndMeeting() | agent_do.AwaitCalls():
                pass


class Pair:
    """A supervisor's core, and an agent's core per host.

    Attributes:
        events: all that was emitted.
        ended: the ends of runs, in order.
        problems: agents that did not come.
        launched: runs and attempts for which an MPI launcher was started; it ends when it is told to.
    """

    def __init__(self, *workers: int, offsets: tuple[float, ...] = ()) -> None:
        self.clock = Clock(100.0)
        self.core = SupervisorCore()
        plans = [HostPlan(i, f"host{i}", n) for i, n in enumerate(workers)]
        skew = dict(enumerate(offsets))
        self.hosts = [FakeHost(self, plan, skew.get(plan.index, 0.0)) for plan in plans]
        self.events: list[Event] = []
        self.ended: list[RunEnded] = []
        self.problems: list[str] = []
        self.launched: list[Key] = []
        self.over = False
        self.ready = False
        self.ports = 20000
        self.feed(on.Begun(tuple(plans), self.clock.now + 60))

    def connect(self) -> None:
        """All agents say hello."""
        for host in self.hosts:
            facts = HostFacts(hostname=host.plan.name, pid=host.plan.index + 1, cores=8)
            self.to_supervisor(host, m.Hello(facts, host.now))

    def feed(self, event: on.Happening) -> None:
        """Let the supervisor's core handle an event, and all that comes of it."""
        for effect in self.core.handle(event, self.clock.now):
            self._carry_out(effect)

    def submit(self, run: on.RunOrder) -> None:
        """Somebody wants a run."""
        self.feed(on.Submitted(run))

    def advance(self, seconds: float) -> None:
        """Let time pass; every deadline on the way is met in its order."""
        end = self.clock.now + seconds
        while True:
            times = [t for t in (self.core.deadline(),) if t is not None]
            times += [t - h.clock_offset for h in self.hosts if (t := h.core.deadline()) is not None]
            due = min((t for t in times if t <= end), default=None)
            if due is None:
                break
            self.clock.now = max(self.clock.now, due)
            deadline = self.core.deadline()
            if deadline is not None and deadline <= self.clock.now:
                self.feed(on.Tick())
            for host in self.hosts:
                limit = host.core.deadline()
                if limit is not None and limit <= host.now + 1e-9:
                    host.feed(agent_on.Tick())
        self.clock.now = end

    def to_supervisor(self, host: FakeHost, message: m.ToSupervisor) -> None:
        """An agent says something."""
        self.feed(on.AgentSaid(host.plan.index, message))

    def calls(self, host: int, rank: int, size: int) -> None:
        """The MPI launcher calls for a rank of a world of ``size`` at a host's agent."""
        self.hosts[host].feed(agent_on.RankCalled(self.launched[-1], rank, size))

    def gone(self, host: FakeHost, reason: str) -> None:
        """An agent's process or connection ends."""
        self.feed(on.AgentGone(host.plan.index, reason))

    def _carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Tell(host, message):
                self.hosts[host].feed(agent_on.Told(message))
            case do.SendStart():
                start = m.Start(
                    effect.run,
                    effect.attempt,
                    effect.template,
                    effect.seats,
                    m.Attached(0),
                    effect.answers,
                    effect.called,
                )
                self.hosts[effect.host].feed(agent_on.Told(start))
            case do.StartRanks(run, attempt):
                self.launched.append((run, attempt))
            case do.EndRanks(run, why):
                self.feed(on.RanksOver(run, self.launched[-1][1], why or "it ended with status 0", killed=bool(why)))
            case do.Emit(event):
                self.events.append(event)
            case do.Finish(ended, _):
                self.ended.append(ended)
            case do.NotReady(missing):
                self.problems += [f"{self.hosts[host].plan.name}: {reason or 'late'}" for host, reason in missing]
            case do.AllGone():
                self.over = True
            case do.Welcome():
                pass
            case do.AllReady():
                self.ready = True
            case do.EndAgent():
                pass
            case do.GiveUp(host, reason):
                self.gone(self.hosts[host], reason)
            case do.HangUp(host):
                self.gone(self.hosts[host], "it was hung up on")


def order(run: str, pair: Pair, *hosts: int, **changes: object) -> on.RunOrder:
    """A run on some of a pair's hosts (all by default); ``changes`` are fields of RunOrder."""
    plans = [pair.hosts[i].plan for i in hosts or range(len(pair.hosts))]
    facts = {plan.index: HostFacts(hostname=plan.name, pid=1, cores=8) for plan in plans}
    template = TemplateSpec(key="t", preload=(), start_method="fork", env={}, sys_path=(), cwd="/")
    fields: dict[str, object] = {
        "id": run,
        "name": run,
        "hosts": tuple(plans),
        "seats": place_ranks(plans, facts),
        "templates": {plan.index: template for plan in plans},
        "world_size": sum(plan.workers for plan in plans),
    }
    return on.RunOrder(**{**fields, **changes})  # type: ignore[arg-type]
