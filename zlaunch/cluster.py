"""Level 5: the wiring. A cluster is a launcher's supervisor, desk and agents, from start to stop."""

from __future__ import annotations

import atexit
import os
import secrets
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from .backends.local import agent_command
from .errors import LaunchError
from .events import RunEnded
from .link.hub import Hub
from .link.memory import write_memfd
from .model import AgentCommand, HostFacts, HostPlan, Step, TemplateSpec
from .plan import place_ranks
from .protocol.bootstrap import Bootstrap
from .protocol.envelope import Buffer
from .result import Run
from .supervisor.happenings import RunOrder
from .supervisor.loop import SupervisorLoop
from .supervisor.payloads import Answer
from .view.desk import Desk
from .view.settings import ViewSettings

STOP_PATIENCE = 20.0
"""Seconds after which a stop that has not come to its end is given up: whoever hangs then is named by the errors."""

_open: weakref.WeakSet[Cluster] = weakref.WeakSet()


class Cluster:
    """Agents on some hosts, one supervisor, one desk."""

    def __init__(self, hosts: Sequence[HostPlan], facts: dict[int, HostFacts], settings: ViewSettings) -> None:
        self.hosts = tuple(hosts)
        self.facts = facts
        self.runs: dict[str, Run[Any]] = {}
        self.limits: dict[str, float] = {}
        self._ready = threading.Event()
        self._problem: str | None = None
        self._closing = False
        self.desk = Desk(settings, self._handled)
        self.loop = SupervisorLoop(emit=self.desk.put, finished=self._finished, ready=self._on_ready)

    # --- from start to stop -----------------------------------------------------------------------------------------

    def start(self, template: TemplateSpec, timeout: float) -> None:
        """Start the agents and wait until all have connected. Raises LaunchError; then nothing is left."""
        started = time.monotonic()

        def launch(hub: Hub) -> list[tuple[AgentCommand, bytes]]:
            return [self._invite(hub, host, template, timeout) for host in self.hosts]

        try:
            _open.add(self)
            self.loop.start(self.hosts, launch, timeout)
            self._ready.wait()
        except BaseException:
            self.stop()
            raise
        if self._problem is not None:
            waited = time.monotonic() - started
            self.stop()
            raise LaunchError(f"{self._problem} (after {waited:.1f} s; agent_timeout is {timeout:g} s)")

    def _invite(self, hub: Hub, host: HostPlan, template: TemplateSpec, timeout: float) -> tuple[AgentCommand, bytes]:
        command = agent_command(host)
        bootstrap = Bootstrap(
            hostname=host.name,
            invitation=msgspec.Raw(msgspec.json.encode(hub.invite(host.index))),
            template=template,
            stdin_is_link=command.stdin_is_link,
            connect_timeout=timeout,
        )
        return command, bootstrap.to_line()

    def close(self) -> None:
        """Begin to end everything; returns at once."""
        self._closing = True
        self.loop.close()

    def stop(self) -> None:
        """End everything and wait for it."""
        self.close()
        self.wait_closed()

    def wait_closed(self) -> None:
        """Wait for the end of a ``close``."""
        self.loop.closed.wait(STOP_PATIENCE)
        self.desk.close()
        _open.discard(self)

    # --- runs -------------------------------------------------------------------------------------------------------

    def submit(
        self,
        step: Step,
        task: Sequence[Buffer],
        template: TemplateSpec,
        hosts: Sequence[HostPlan],
        *,
        name: str,
        grace: float,
        time_limit: float | None,
        alone: bool,
    ) -> Run[Any]:
        """Queue a step on some of the hosts; ``alone`` ends the cluster with it."""
        if self.loop.closed.is_set() or self._closing:
            raise LaunchError("the launcher has been stopped")
        master = "127.0.0.1"
        seats = place_ranks(hosts, self.facts, master)
        letter = write_memfd([msgspec.msgpack.encode(step), *task], f"letter-{step.id}")
        order = RunOrder(
            id=step.id,
            name=name,
            hosts=tuple(hosts),
            seats=seats,
            template=template,
            log_token=step.log_token,
            answers=step.kind == "function",
            grace=grace,
            time_limit=time_limit,
            max_restarts=step.max_restarts,
            world_size=sum(host.workers for host in hosts),
        )
        run: Run[Any] = Run(self, step.id, name, hosts, alone=alone)
        self.runs[step.id] = run
        if time_limit is not None:
            self.limits[step.id] = time_limit
        self.loop.submit(order, letter)
        return run

    def cancel(self, run: str, grace: float | None) -> None:
        """Stop a run; whoever wants that does not wait for a console that takes nothing."""
        self.desk.hurry()
        self.loop.cancel(run, grace)

    def pending(self) -> list[Run[Any]]:
        """The runs that have not ended."""
        return [run for run in list(self.runs.values()) if not run.done()]

    def state_of(self, run: str) -> str:
        """Where a run stands, in the words of the supervisor's table."""
        found = self.loop.core.schedule.runs.get(run)
        return found.state.value if found else "queued"

    def limit_of(self, run: str) -> float:
        """A run's time limit in seconds."""
        return self.limits.get(run, 0.0)

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

    def _handled(self, hostname: str, size: int) -> None:
        self.loop.handled(hostname, size)

    def _finished(self, ended: RunEnded, started: bool, answers: dict[int, Answer]) -> None:
        run = self.runs.pop(ended.run, None)
        if run is None:
            return
        payloads = {rank: answer.data for rank, answer in answers.items()}
        if run.alone:
            self.close()
        self.desk.call(lambda: run.resolve(ended, started, payloads))


def new_run_id() -> str:
    """Short enough to read aloud, random enough for one user's runs."""
    return secrets.token_hex(4)


def _stop_at_exit() -> None:
    for cluster in list(_open):
        with suppress(Exception):
            cluster.stop()


atexit.register(_stop_at_exit)
os.register_at_fork(after_in_child=_open.clear)
