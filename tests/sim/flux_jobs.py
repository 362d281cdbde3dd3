"""Jobs of a simulated Flux: from the submission to the end, with all that a job's eventlog would tell."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from .core import Watched
from .crew import Crew, Hooks, exit_status
from .flux_shapes import Shape
from .flux_words import f58
from .pool import Placement

if TYPE_CHECKING:
    from .flux_instance import Instance

NEVER_RAN = -128
"""What Flux has for the return code of a job that was cancelled before it started."""


class Event(NamedTuple):
    """A line of the eventlog."""

    at: float
    name: str
    note: str = ""


@dataclass(frozen=True)
class Spec:
    """What was submitted. ``child``: the command is the initial program of an instance of its own."""

    command: Sequence[str]
    shape: Shape
    environ: Mapping[str, str]
    cwd: str
    name: str
    child: bool = False
    batch: bool = False
    limit: float | None = None  # s
    queue: str = ""
    dependencies: Sequence[tuple[str, int]] = ()
    output: str = ""
    error: str = ""
    input: str = ""
    label: bool = False
    warning: tuple[int, float] | None = None  # signal, s before the limit
    options: Mapping[str, str] = field(default_factory=dict)
    taskmap: str = "block"
    umask: int = 0o022
    pty: bool = False


class Job(Watched):
    """One job of an instance. What it does is in ``live``; everybody else looks, waits, and raises exceptions."""

    def __init__(self, instance: Instance, number: int, spec: Spec) -> None:
        super().__init__()
        self.instance, self.number, self.spec = instance, number, spec
        self.state = "DEPEND"
        self.result = ""
        self.status: int | None = None  # the highest of its tasks'
        self.events: list[Event] = []
        self.placement: Placement = {}
        self.output: list[tuple[int, int, bytes]] = []  # rank, stream, data
        self.exception: Event | None = None  # the first that ended it; its name is the exception's type
        self.crew: Crew | None = None
        self.child: Instance | None = None
        self.ends: float | None = None
        self.waiting: list[tuple[bytes, list[int] | None]] = []  # input for tasks that are not there yet
        self.task: asyncio.Task[None] | None = None  # what waits while it is pending
        self._timers: list[asyncio.TimerHandle] = []
        self.log("submit")

    def __str__(self) -> str:
        return f58(self.number)

    @property
    def active(self) -> bool:
        return self.state != "INACTIVE"

    def log(self, name: str, note: str = "", state: str | None = None) -> None:
        self.events.append(Event(time.time(), name, note))
        self.state = state or self.state
        self.touch()

    def has(self, name: str) -> bool:
        return any(event.name == name for event in self.events)

    # -- its life

    async def live(self) -> None:
        """Until it is inactive."""
        pending = asyncio.ensure_future(self._be_pending())
        self.task = pending
        try:
            await asyncio.wait({pending})
            if not self.exception and not pending.cancelled():
                pending.result()
                await self._run()
        finally:
            self._end()

    async def _be_pending(self) -> None:
        await asyncio.gather(*(self._depend(scheme, number) for scheme, number in self.spec.dependencies))
        self.log("depend", state="PRIORITY")
        self.log("priority", state="SCHED")
        pool, shape = self.instance.pool, self.spec.shape
        if not shape.possible(pool):
            self.throw("alloc", "unsatisfiable request: not enough of what was asked for")
            return
        self.placement = await pool.get(shape.fit(self.instance.flux.whole_nodes_have_gpus))

    async def _depend(self, scheme: str, number: int) -> None:
        other = self.instance.jobs[number]
        if scheme == "afterstart":
            await other.until(lambda: other.has("start") or not other.active)
            met = other.has("start")
        else:
            await other.until(lambda: not other.active)
            met = scheme == "afterany" or (other.result == "COMPLETED") == (scheme == "afterok")
        if not met:
            self.throw("dependency", f"dependency {scheme}:{f58(number)} can never be satisfied")

    async def _run(self) -> None:
        self.log("alloc", state="RUN")
        tasks = self.instance.tasks(self)
        failed = {number: 127 if number == 2 else 126 for number in (1, 2, 8, 13, 20)}  # as a shell says it
        statuses: dict[int, int] = {}
        hooks = Hooks(
            self._take,
            failed=lambda rank, errno: statuses.update({rank: failed.get(errno, 126)}),
            started=lambda rank, pid: None if self.has("start") else self.log("start"),
            ended=lambda rank, status: self._ended(statuses.setdefault(rank, exit_status(status))),
            lost=self._lost,
        )
        self.crew = Crew(self.instance.flux, tasks, hooks)
        for data, ranks in self.waiting:
            self.crew.feed(data, ranks)
        self._set_timers()
        await self.crew.run()
        if self.child is not None:
            await self.child.close()
        if self.crew.lost and not self.exception:
            await self.until(lambda: self.exception)
        for host in self.crew.lost:
            statuses[-1] = 143
            self.instance.pool.lose([host] if not self.instance.flux.bed.alive(host) else [])
        self.status = max(statuses.values(), default=1)
        self.log("finish", f"status={self.status}", state="CLEANUP")

    def _end(self) -> None:
        for timer in self._timers:
            timer.cancel()
        if self.placement:
            self.log("release")
            self.log("free")
            self.instance.pool.give_back(self.placement)
        kind = self.exception.name if self.exception else ""
        if kind in ("cancel", "timeout"):
            self.result = "CANCELED" if kind == "cancel" else "TIMEOUT"
        else:
            self.result = "COMPLETED" if self.status == 0 and not kind else "FAILED"
        self.log("clean", state="INACTIVE")

    # -- while it runs

    async def _take(self, rank: int, stream: int, data: bytes) -> None:
        self.output.append((rank, stream, data))
        self.instance.save(self, rank, stream, data)
        self.touch()

    def feed(self, data: bytes, ranks: list[int] | None = None) -> None:
        """Input for all tasks; they may still have to be started."""
        if self.crew is None:
            self.waiting.append((data, ranks))
        else:
            self.crew.feed(data, ranks)

    def _ended(self, status: int) -> None:
        option = self.spec.options.get("exit-timeout", "")
        if status and "exit-on-error" in self.spec.options:
            self.throw("exec", f"task exited with {status}, and exit-on-error is set")
        elif option != "none" and not self.spec.child:
            seconds = self.instance.flux.seconds(option) if option else self.instance.flux.exit_timeout
            self._later(seconds, lambda: self.throw("exec", "exit-timeout: other tasks run on after one has ended"))

    def _lost(self, host: str) -> None:
        """A host is gone. An instance goes on where it was not the first one's."""
        self._later(
            self.instance.flux.notice, lambda: self.throw("node-failure", f"node failure on {host}", anyway=True)
        )

    def _set_timers(self) -> None:
        if self.spec.limit is None:
            return
        self.ends = time.time() + self.spec.limit
        self._later(self.spec.limit, lambda: self.throw("timeout", f"resource allocation expired ({self.spec.limit}s)"))
        if self.spec.warning:
            number, before = self.spec.warning
            self._later(max(self.spec.limit - before, 0), lambda: self.send(number))

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, do))

    def send(self, number: int) -> None:
        if self.crew:
            self.crew.signal(number)

    def throw(self, kind: str, note: str, *, anyway: bool = False) -> None:
        """A fatal exception: a pending job is over; tasks are told to end, and killed after ``kill_timeout``."""
        if self.exception or self.state in ("CLEANUP", "INACTIVE"):
            return
        self.exception = Event(time.time(), kind, note)
        self.log("exception", f'type="{kind}" severity=0 note="{note}"')
        if self.crew is None:
            if self.task is not None and self.task is not asyncio.current_task():
                self.task.cancel()
            return
        if kind == "timeout":
            for number in (signal.SIGHUP, signal.SIGALRM) if self.spec.child else (signal.SIGALRM,):
                self.send(number)
        else:
            self.send(signal.SIGTERM)
        self._later(self.instance.flux.kill_timeout, self.kill)

    def kill(self) -> None:
        """SIGKILL to whatever it has started."""
        self.send(signal.SIGKILL)
        if self.child is not None:
            for job in self.child.jobs.values():
                with suppress(ConnectionError):
                    job.send(signal.SIGKILL)
