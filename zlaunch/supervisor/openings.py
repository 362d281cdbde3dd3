"""Level 4, pure: how a run begins. Its hosts are free; rank 0's keeps a port; the others find the way to it.

Whoever does not answer meanwhile, although its connection stands, is given up: an agent hangs in the kernel (a dead
file server) while ZeroMQ's own thread answers for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import msgspec

from .. import events as ev
from ..protocol import messages as m
from ..tables import RunState
from . import effects as do
from .fates import lost_fates
from .routes import Routes
from .state import Host, Run

RESERVE_PATIENCE = 20.0
"""Seconds for a port to be kept and the ways to it to be found: 3 for an address that does not answer."""


@dataclass
class Openings(ABC):
    """The first half of a schedule."""

    hosts: dict[int, Host]
    runs: dict[str, Run] = field(default_factory=dict)
    """In the order in which they came."""
    closing: bool = False
    routes: Routes = field(default_factory=Routes)

    @abstractmethod
    def _stop(self, run: Run, grace: float, now: float) -> list[do.Effect]: ...

    @abstractmethod
    def _settle(self, run: Run | None, now: float) -> list[do.Effect]: ...

    def _begin(self, run: Run, now: float) -> list[do.Effect]:
        run.machine.move("hosts are free")
        run.port, run.answer_by = 0, now + RESERVE_PATIENCE
        effects: list[do.Effect] = []
        for index in run.order.seats:
            self.hosts[index].run = run.order.id
            effects.append(do.Tell(index, m.Warm(run.order.templates[index])))
        first, *_ = indices = run.indices()
        meet = bool(self.routes.missing(first, indices))
        effects.append(do.Tell(first, m.Reserve(run.order.id, run.attempt, meet)))
        return effects

    def reserved(self, host: Host, message: m.Reserved, now: float) -> list[do.Effect]:
        """A port is kept: the ranks may start as soon as everybody knows the way to it."""
        run = self._run_of(message.step, message.attempt)
        if run is None or run.state is not RunState.RESERVING:
            return []
        run.port = message.port
        first, *_ = indices = run.indices()
        missing = self.routes.missing(first, indices)
        if missing and message.point:
            return [do.Tell(index, m.Reach(run.order.id, run.attempt, message.point)) for index in missing]
        return self._launch(run, now)

    def reached(self, host: Host, message: m.Reached, now: float) -> list[do.Effect]:
        """A host has tried the ways to that of rank 0."""
        run = self._run_of(message.step, message.attempt)
        if run is None or run.state is not RunState.RESERVING or host.plan.index not in run.order.seats:
            return []
        first, *_ = indices = run.indices()
        self.routes.found[first, host.plan.index] = message
        if self.routes.missing(first, indices):
            return []
        unreachable = self.routes.unreachable(first, indices)
        if unreachable:
            self.routes.forget(first)
            return self._nowhere(run, unreachable, now)
        return self._launch(run, now)

    def _nowhere(self, run: Run, unreachable: dict[int, str], now: float) -> list[do.Effect]:
        """Some hosts cannot get to that of rank 0: nothing is started."""
        name = run.order.hosts[0].name
        for index, tried in unreachable.items():
            text = f"it cannot reach {name}, where rank 0 would be, by any of its addresses: {tried}\n"
            text += "Hosts of a step must reach one another: open the network between them, or name another host first."
            for fate in lost_fates(run.order.seats[index], run.fates, text, now, run.pids):
                run.fates[fate.rank] = fate
        run.cause = next(iter(run.fates.values()))
        run.outcome = "lost"
        return self._stop(run, 0.0, now) + self._settle(run, now)

    def _launch(self, run: Run, now: float) -> list[do.Effect]:
        run.machine.move("port is kept")
        run.answer_by = None
        order = run.order
        routes = self.routes.choose(run.indices()[0], run.indices())
        if order.time_limit is not None:
            run.limit_at = now + order.time_limit
        effects: list[do.Effect] = [
            do.Emit(
                ev.RunStarted(
                    now,
                    order.id,
                    order.name,
                    order.hosts,
                    run.attempt,
                    order.log_token,
                    order.log_folder,
                    now + order.epoch,
                )
            )
        ]
        for index, seats in order.seats.items():
            place = {
                "master_addr": routes[index].address,
                "interface": routes[index].interface,
                "master_port": run.port,
                "restart_count": run.attempt,
            }
            placed = tuple(msgspec.structs.replace(seat, **place) for seat in seats)
            run.open_hosts[index] = None
            key = order.templates[index].key
            called = order.ranks is not None
            effects.append(do.SendStart(index, order.id, run.attempt, key, placed, order.answers, called))
        if order.ranks is not None:
            run.launcher, run.call_by, run.uncalled = "running", now + order.patience, run.indices()
            effects.append(do.StartRanks(order.id, run.attempt, order.ranks))
        return effects

    def _doubt(self, run: Run) -> None:
        """A run over several hosts has failed: perhaps an address is none any more. The next one tries them again."""
        if len(run.order.hosts) > 1:
            self.routes.forget(run.indices()[0])

    def _run_of(self, step: str, attempt: int) -> Run | None:
        run = self.runs.get(step)
        return run if run and run.attempt == attempt else None
