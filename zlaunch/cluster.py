"""Level 5: the wiring. A cluster is a launcher's supervisor, desk and agents, from start to stop."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from .access import Access
from .errors import LaunchError
from .events import Event, Notice, RankStarted, RunEnded
from .link.hub import Hub
from .link.memory import write_memfd
from .model import Bind, HostFacts, HostPlan, RanksCommand, Step, TemplateSpec
from .plan import Errand, place_ranks
from .protocol.envelope import Buffer
from .registry.watching import Watching
from .result import Run
from .supervisor.agents import Start
from .supervisor.happenings import RunOrder
from .supervisor.loop import SupervisorLoop
from .supervisor.payloads import Answer
from .view.desk import Desk
from .view.settings import ViewSettings

STOP_PATIENCE = 20.0
"""Seconds after which a stop that has not come to its end is given up: whoever hangs then is named by the errors."""

NAMED = 3
"""Hosts that a warning names."""

_open: weakref.WeakSet[Cluster] = weakref.WeakSet()


class Cluster:
    """Agents on some hosts, one supervisor, one desk."""

    def __init__(
        self,
        hosts: Sequence[HostPlan],
        access: Access,
        settings: ViewSettings,
        release: Callable[[], None] | None = None,
    ) -> None:
        """``release`` is called when all has ended: a scheduler's nodes are given back."""
        access.check(hosts)
        self._release = release
        self.hosts = tuple(hosts)
        self.access = access
        self.facts: dict[int, HostFacts] = {}
        self.folders: set[str] = set()
        self.runs: dict[str, Run[Any]] = {}
        self.limits: dict[str, str] = {}
        self._ready = threading.Event()
        self._problem: str | None = None
        self._closing = False
        self._starting: dict[str, int] = {}
        self.desk = Desk(settings, self._handled)
        self.watching = Watching(self.cancel, self._emit)
        self.loop = SupervisorLoop(
            emit=self._emit,
            finished=self._finished,
            ready=self._on_ready,
            addresses=access.addresses(self.hosts),
            silence=access.silence,
        )

    # --- from start to stop -----------------------------------------------------------------------------------------

    def start(self, templates: Mapping[bool, TemplateSpec], timeout: float, folder: str) -> None:
        """Start the agents and wait until all have connected; ``templates`` for hosts here, and for others.

        Where the ranks of other hosts cannot start in ``folder``, that is said once. Raises LaunchError; then nothing
        is left.
        """
        started = time.monotonic()
        self.folders = {*templates[False].sys_path, folder} if False in templates else set()

        def launch(hub: Hub) -> list[Start]:
            return self.access.invite(hub, self.hosts, templates.get(True), timeout, tuple(self.folders))

        try:
            _open.add(self)
            later = {host.index: templates[False] for host in self.hosts if not host.here}
            self.loop.start(self.hosts, launch, timeout, later)
            self._ready.wait()
            known = {index: host.facts for index, host in self.loop.core.hosts.items()}
            self.facts = {index: facts for index, facts in known.items() if facts is not None}
            problem = self._problem or self._same_machine()
        except BaseException:
            self.stop()
            raise
        if problem is not None:
            waited = time.monotonic() - started
            self.stop()
            spent = f"\n(after {waited:.1f} s; agent_timeout is {timeout:g} s)" if waited >= timeout / 2 else ""
            raise LaunchError(problem + spent)
        self._tell_of_folder(folder)

    def wait_started(self) -> None:
        """Wait until somebody else's ``start`` has come to its end. Raises LaunchError as that does."""
        self._ready.wait()
        if self._problem is not None:
            raise LaunchError(self._problem)

    def _same_machine(self) -> str | None:
        """Two names of one machine are a mistake: its ranks would share what each takes for its own."""
        names: dict[tuple[str, str], str] = {}
        for host in self.hosts:
            facts = self.facts[host.index]
            other = names.setdefault((facts.boot_id, facts.hostname), host.name)
            if facts.boot_id and other != host.name:
                return f"{other} and {host.name} are the same machine: name it once, with more ranks"
        return None

    def absent(self, host: HostPlan, folders: Iterable[str]) -> set[str]:
        """Which of these folders another host has not, as far as is known: it was asked only for those of the start."""
        there = self.folders - set(self.facts[host.index].absent)
        return set() if host.here else set(folders) - there

    def _tell_of_folder(self, folder: str) -> None:
        without = [host.name for host in self.hosts if folder in self.absent(host, [folder])]
        if without:
            more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
            text = (
                f"there is no folder {folder} on {', '.join(without[:NAMED])}{more}: ranks start in the home directory"
            )
            self.desk.put(Notice(time.monotonic(), "warning", text))

    def close(self) -> None:
        """Begin to end everything; returns at once. A ``start`` that waits gives up."""
        self._closing = True
        self.loop.close()
        self._on_ready("it was stopped before all agents had come")

    def stop(self) -> None:
        """End everything and wait for it."""
        self.close()
        self.wait_closed()

    def wait_closed(self) -> None:
        """Wait for the end of a ``close``."""
        self._give_back()
        self.desk.close()
        self.watching.close()
        _open.discard(self)

    def _give_back(self) -> None:
        self.loop.closed.wait(STOP_PATIENCE)
        if self._release:
            self._release()

    # --- runs -------------------------------------------------------------------------------------------------------

    def submit(
        self,
        errands: Mapping[bool, Errand],
        tasks: Mapping[bool, Sequence[Buffer]],
        hosts: Sequence[HostPlan],
        *,
        name: str,
        grace: float,
        time_limit: float | None,
        alone: bool,
        ranks: RanksCommand | None = None,
        bind: Bind = "none",
        patience: float = 60.0,
    ) -> Run[Any]:
        """Queue a step on some of the hosts; ``alone`` ends the cluster with it.

        ``errands`` and ``tasks`` are for hosts here, and for others; ``ranks`` calls for the ranks over MPI; ``bind``
        is how they are bound to cores.
        """
        if self.loop.closed.is_set() or self._closing:
            raise LaunchError("the launcher has been stopped")
        step = next(iter(errands.values())).step
        time_limit, limit = self._limit(time_limit, grace)
        order = RunOrder(
            id=step.id,
            name=name,
            hosts=tuple(hosts),
            seats=place_ranks(hosts, self.facts, bind=bind, gpus_per_worker=step.gpus_per_worker),
            templates={host.index: errands[host.here].template for host in hosts},
            log_token=step.log_token,
            log_folder=self.desk.log_folder(step.id, time.time()),
            epoch=time.time() - time.monotonic(),
            answers=step.kind == "function",
            grace=grace,
            time_limit=time_limit,
            max_restarts=step.max_restarts,
            world_size=sum(host.workers for host in hosts),
            ranks=ranks,
            patience=patience,
        )
        letters = {here: _write_letter(errands[here].step, tasks[here]) for here in {host.here for host in hosts}}
        run: Run[Any] = Run(self, step.id, name, hosts, alone=alone)
        run.log_folder = order.log_folder
        self.runs[step.id] = run
        self.limits[step.id] = limit
        self.watching.begin(order, self._job())
        self.loop.submit(order, {host.index: letters[host.here] for host in hosts})
        return run

    def _limit(self, seconds: float | None, grace: float) -> tuple[float | None, str]:
        """A step's time limit, and what it is: its own, or that of the scheduler's job that it is in."""
        nodes = self.access.allocation
        left = nodes.time_for(grace) if nodes else None
        if nodes and left is not None and (seconds is None or left < seconds):
            job = f"{nodes.scheduler.title}'s job {nodes.nodes.job}"
            return left, f"{job} has: it is ended before that is, so that its ranks can still do so by themselves"
        return seconds, f"its time limit of {seconds:g} s" if seconds is not None else ""

    def cancel(self, run: str, grace: float | None) -> None:
        """Stop a run; whoever wants that does not wait for a console that takes nothing."""
        self.desk.hurry()
        self.loop.cancel(run, grace)

    def leave(self, run: str, console: str) -> None:
        """Nobody waits for a run here: how it ended is remembered."""
        self.watching.leave(run, console)

    def publish(self, run: str) -> str:
        """Have a run in the registry by now; returns why it could not be, or nothing."""
        return self.watching.publish(run)

    def pending(self) -> list[Run[Any]]:
        """The runs that have not ended."""
        return [run for run in list(self.runs.values()) if not run.done()]

    def state_of(self, run: str) -> str:
        """Where a run stands, in the words of the supervisor's table."""
        found = self.loop.core.schedule.runs.get(run)
        return found.state.value if found else "queued"

    def limit_of(self, run: str) -> str:
        """A run's time limit, in words."""
        return self.limits.get(run, "its time limit")

    def job(self) -> str:
        """Of the scheduler's job whose nodes the hosts are: how it is asked about."""
        return self.access.allocation.about() if self.access.allocation else ""

    def _job(self) -> tuple[str, str]:
        nodes = self.access.allocation
        return (nodes.scheduler.name, nodes.nodes.job) if nodes else ("", "")

    def last_output(self, run: str, rank: int) -> list[str]:
        """A rank's last lines."""
        return self.desk.last_output(run, rank)

    def log_file(self, run: str, rank: int) -> str | None:
        """The path of a rank's log file."""
        return self.desk.log_file(run, rank)

    # --- called by supervisor and desk, in their threads ------------------------------------------------------------

    def _on_ready(self, problem: str | None) -> None:
        if not self._ready.is_set():
            self._problem = problem
            self._ready.set()

    def _emit(self, event: Event) -> None:
        self.desk.put(event)
        self.watching.put(event)
        if isinstance(event, RankStarted) and (run := self.runs.get(event.run)) is not None:
            self._starting[run.id] = self._starting.get(run.id, 0) + 1
            if self._starting[run.id] == sum(host.workers for host in run.hosts):
                run.all_started.set()

    def _handled(self, hostname: str, size: int) -> None:
        self.loop.handled(hostname, size)

    def _finished(self, ended: RunEnded, started: bool, answers: dict[int, Answer]) -> None:
        run = self.runs.pop(ended.run, None)
        if run is None:
            return
        payloads = {rank: answer.data for rank, answer in answers.items()}
        self._starting.pop(run.id, None)
        self.watching.put(ended)  # of a run that never came nobody has told
        if run.alone:
            self.close()
            self.watching.finish()
            if self._release:  # nobody need ask for the result for the nodes to be given back
                threading.Thread(target=self._give_back, name="zlaunch-release", daemon=True).start()
        self.desk.call(lambda: run.resolve(ended, started, payloads))


def _write_letter(step: Step, task: Sequence[Buffer]) -> int:
    return write_memfd([msgspec.msgpack.encode(step), *task], f"letter-{step.id}")


def _stop_at_exit() -> None:
    for cluster in list(_open):
        with suppress(Exception):
            cluster.stop()


atexit.register(_stop_at_exit)
os.register_at_fork(after_in_child=_open.clear)
