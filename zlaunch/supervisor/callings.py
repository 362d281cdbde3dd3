"""Level 4, pure: a run's MPI launcher: it calls for the ranks, and should end after them and not before."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import msgspec

from ..model import Fate, FateKind
from ..protocol import messages as m
from ..tables import RunState
from . import effects as do
from . import happenings as on
from .fates import lost_fates
from .openings import Openings
from .state import Host, Run

LAUNCHER_PATIENCE = 1.0
"""Seconds from an MPI launcher's end to that of the run, where its ranks do not tell of theirs meanwhile."""


@dataclass
class Callings(Openings):
    """What becomes of a run whose ranks are called for."""

    @abstractmethod
    def _failed(self, run: Run, fate: Fate, now: float) -> list[do.Effect]: ...

    def ranks_over(self, event: on.RanksOver, now: float) -> list[do.Effect]:
        """The launcher is gone: because all ranks are, or of its own accord, which its ranks do not survive."""
        run = self._run_of(event.run, event.attempt)
        if run is None or run.launcher not in ("running", "ending"):
            return []
        by_itself, run.launcher, run.launcher_said = run.launcher == "running", "over", event.text
        if run.order.ranks and run.order.ranks.tells_aborts and not run.uncalled:
            run.launcher_status = event.status
        if run.state in (RunState.STARTING, RunState.RUNNING):
            run.abandon_at = now + (0.0 if event.killed else LAUNCHER_PATIENCE)
        elif run.state is RunState.FAILING and event.killed and by_itself:  # ranks that lose it end at once, too
            self._blame(run)
        return self._settle(run, now)

    def _blame(self, run: Run) -> None:
        """Ranks have just ended, and nobody knows why but for this."""
        title = run.order.ranks.title if run.order.ranks else ""
        for rank, fate in run.failures.items():
            if fate.kind in (FateKind.EXITED, FateKind.SIGNALED) and not fate.stopped:
                text = f"{title}, which starts the ranks: {run.launcher_said}"
                run.failures[rank] = msgspec.structs.replace(
                    fate, kind=FateKind.LOST, text=text, launcher=title, exit_code=None, signal=None
                )

    def called(self, host: Host, message: m.Called) -> list[do.Effect]:
        """The launcher has called for all ranks of a host."""
        if run := self._run_of(message.step, message.attempt):
            run.uncalled = [index for index in run.uncalled if index != host.plan.index]
        return []

    def miscalled(self, host: Host, message: m.Miscalled, now: float) -> list[do.Effect]:
        """The launcher has not started what was planned."""
        run = self._run_of(message.step, message.attempt)
        return [] if run is None else self.forsaken(run, message.text, now)

    def forsaken(self, run: Run, text: str, now: float) -> list[do.Effect]:
        """The ranks that have not ended are without what called for them."""
        if run.state not in (RunState.STARTING, RunState.RUNNING) or run.order.ranks is None:
            return []
        seats = (seat for its in run.order.seats.values() for seat in its)
        title = run.order.ranks.title
        effects: list[do.Effect] = []
        for fate in lost_fates(seats, run.fates, f"{title}, which starts the ranks: {text}", now, run.pids):
            ours = msgspec.structs.replace(fate, launcher=title, exit_code=run.launcher_status)
            effects += self._failed(run, ours, now)
        return effects

    def late_launcher(self, run: Run, now: float) -> list[do.Effect]:
        """Time has passed: it may have been gone, or in vain, for too long."""
        effects: list[do.Effect] = []
        if run.abandon_at is not None and now >= run.abandon_at:
            run.abandon_at = None
            effects += self.forsaken(run, run.launcher_said, now)
        if run.call_by is not None and now >= run.call_by:
            run.call_by = None
            late = ", ".join(self.hosts[host].plan.name for host in run.uncalled)
            why = f"it has not started all processes on {late} in {run.order.patience:g} s"
            effects += [do.EndRanks(run.order.id, why)] if late and run.launcher == "running" else []
        return effects
