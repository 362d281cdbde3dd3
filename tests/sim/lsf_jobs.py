"""A job of the simulated LSF: how it waits, runs, is signalled, comes to its time limit, and ends.

After IBM Spectrum LSF's pages on ``bsub``, ``bkill`` and the life of jobs. A job is its script on the first of its
hosts; what it starts on others belongs to it and ends with it. Not simulated: suspended and rerun jobs, memory and CPU
time, mail.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bed import BedError

from .core import Call, Watched
from .crew import Crew, Hooks, Task, exit_status
from .lsf_answers import Hosts, job_environment, report
from .lsf_words import Output, Request
from .pool import Placement, Pool, Share

if TYPE_CHECKING:
    from .lsf import Lsf

ENDED = ("DONE", "EXIT")
_LOST = 143
"""The exit code of a job whose host died, as LSF's manual has it in an example."""


@dataclass(frozen=True)
class Queue:
    """``limit``: minutes that a job may take; ``exclusive``: whether it takes jobs with ``-x``."""

    limit: int | None = None
    exclusive: bool = True


class Job(Watched):
    """``hosts`` are those that it got, with the slots on each; ``state`` is LSF's word."""

    def __init__(self, site: Lsf, number: int, request: Request, queue: str, call: Call, environ: Mapping[str, str]):
        super().__init__()
        self.site, self.number, self.request, self.queue, self.environ = site, number, request, queue, dict(environ)
        self.name = request.options.get("-J", " ".join(request.script.split()))
        self.host, self.umask, self.submitted_in = call.host, call.umask, call.cwd
        self.cwd = os.path.join(call.cwd, request.options.get("-cwd", ""))
        self.call = call if request.mode in ("plain", "terminal") else None
        self.direct = site.ways.stdout_direct or call.environ.get("LSB_STDOUT_DIRECT", "").upper() == "Y"
        self.state, self.reason, self.waits_for = "PEND", "", "New job is waiting for scheduling"
        self.exit_code: int | None = None
        self.hosts: Hosts = ()
        self.gpus: list[int] = []
        self.submitted, self.began, self.ended = time.time(), 0.0, 0.0
        self.steps: set[asyncio.Future[None]] = set()
        self.crew: Crew | None = None
        self.pool: Pool | None = None
        self._said: dict[int, list[bytes]] = {1: [], 2: []}
        self._up, self._back = asyncio.Event(), asyncio.Event()

    @property
    def stage(self) -> str:
        """As conditions of other jobs see it."""
        return self.state if self.state in ("PEND", *ENDED) else "RUN"

    @property
    def limit(self) -> float | None:
        """Seconds."""
        limits = [limit for limit in (self.request.minutes, self.site.queues[self.queue].limit) if limit]
        return min(limits) * self.site.minute if limits else None

    # -- life

    async def live(self) -> None:
        """From the submission to the end; cancelled while it waits, it ends there."""
        try:
            await self._conditions()
            self.waits_for = "Job's resource requirements not satisfied"
            placement = await self._placement()
        except asyncio.CancelledError:
            self._end("EXIT")
            return
        try:
            self._settle(placement)
            await self._run()
        finally:
            self.site.pool.give_back(placement)
            self.site.watched.touch()

    async def _conditions(self) -> None:
        depends = self.request.depends
        if depends is None:
            return
        self.waits_for = "Job dependency condition not satisfied"
        await self.site.watched.until(lambda: depends.verdict(self.site.stage) is not None)
        if not depends.verdict(self.site.stage):
            self.waits_for = "Dependency condition invalid or never satisfied"
            if "-ti" in self.request.options:
                self.reason = "TERM_ORPHAN_SYSTEM"
                raise asyncio.CancelledError
            await asyncio.Event().wait()

    async def _placement(self) -> Placement:
        """What it runs on, once that is free. A job that cannot have it keeps no later one from its own."""
        found: list[Placement] = []

        def fits() -> bool:
            found.extend(filter(None, [self._fit(self.site.pool)]))
            return bool(found)

        await self.site.watched.until(fits)
        self.site.pool.hold(found[0])
        return found[0]

    def _fit(self, pool: Pool) -> Placement | None:
        """The first hosts that have room; whole ones where nodes are asked for, or with ``-x``."""
        nodes, left, found = self.request.nodes, self.request.slots, Placement()
        for name in pool.up():
            free = pool.free(name)
            whole = nodes is not None or "-x" in self.request.options
            if not self.site.bed.alive(name) or (whole and not pool.empty(name)):
                continue
            if len(free.gpus) < self.request.gpus or not free.cores:
                continue
            count = min(left, self.request.per_host or len(free.cores))
            if count > len(free.cores):
                continue
            gpus = free.gpus if nodes is not None else free.gpus[: self.request.gpus]
            found[name] = Share(free.cores if whole else free.cores[:count], gpus)
            left -= count
            if len(found) == nodes or (nodes is None and not left):
                return found
        return None

    def _settle(self, placement: Placement) -> None:
        first = next(iter(placement.values()))
        self.gpus = first.gpus[: self.request.gpus]
        self.pool = Pool(placement)
        left, hosts = self.request.slots, []
        for name, share in placement.items():
            count = len(share.cores) if self.request.nodes else min(left, self.request.per_host or len(share.cores))
            hosts.append((name, count))
            left -= count
        if self.site.coral:
            hosts.insert(0, (self.site.batch_host, 1))
        self.hosts = hosts
        self.state, self.began = "RUN", time.time()
        self.changed()

    async def _run(self) -> None:
        self.crew = crew = Crew(
            self.site,
            [self._task()],
            Hooks(self._hear, started=lambda _rank, _pid: self._up.set()),
            linger=False,
            leave=not self.site.ways.process_tracking,
        )
        self._open()
        if self.call is None:
            crew.feed(b"")
        else:
            self.call.read(crew.feed)
        running = asyncio.ensure_future(crew.run())
        try:
            await self._watch_the_clock(running)
        finally:
            begun = [running, *self.steps]
            for step in begun:
                step.cancel()
            await asyncio.wait(begun)
        if crew.lost:
            await self._without_host()
        else:
            self.exit_code = exit_status(crew.status[0])
        self._end("EXIT" if self.exit_code else "DONE")

    def _task(self) -> Task:
        folder, first = self.site.folder, self.hosts[0][0]
        script, hostfile = folder / f"{self.number}.sh", folder / f"{self.number}.hostfile"
        script.write_text(self.request.script.rstrip("\n") + "\n")
        script.chmod(0o700)
        hostfile.write_text("".join(f"{name}\n" for name, count in self.hosts for _ in range(count)))
        argv = [str(script)] if self.request.script.startswith("#!") else ["/bin/sh", str(script)]
        environ = self.site.login | self.environ | job_environment(self, str(hostfile))
        if self.site.coral:
            environ["CSM_ALLOCATION_ID"] = str(self.number + 1000)
        return Task(0, first, argv, environ, self.cwd, pty=self.request.mode == "terminal", umask=self.umask)

    async def _watch_the_clock(self, running: asyncio.Future[None]) -> None:
        up = asyncio.ensure_future(self._up.wait())
        either: list[asyncio.Future[Any]] = [running, up]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        await asyncio.wait([running], timeout=self.limit)
        if running.done():
            return
        self.reason = "TERM_RUNLIMIT"
        self.signal(signal.SIGUSR2)
        await asyncio.wait([running], timeout=self.site.grace)
        if not running.done():
            self.kill()
            await asyncio.wait([running])

    async def _without_host(self) -> None:
        """Nobody knows what became of a job whose first host does not answer, until it is up again."""
        self.state = "UNKWN"
        self.changed()
        await self._back.wait()
        self.exit_code, self.reason = _LOST, "TERM_ZOMBIE"

    def host_is_up(self) -> None:
        """Its first host has come back, without it."""
        self._back.set()

    def _end(self, state: str) -> None:
        self.ended = time.time()
        if state == "DONE" and self.reason == "TERM_OWNER":
            self.reason = ""  # it was faster
        if self.hosts:
            self._write()
        self.state = state  # its files are whole by then
        self.changed()

    def changed(self) -> None:
        self.touch()
        self.site.watched.touch()

    # -- signals

    def signal(self, number: int) -> None:
        """To all of its processes on the first host; the commands among them that have tasks elsewhere pass it on."""
        if self.crew:
            self.crew.signal(number, whole=True)

    def kill(self) -> None:
        """As ``bkill`` does without ``-s``."""
        if self.state == "UNKWN":
            self.state = "ZOMBI"
            self.changed()
        elif self.site.ways.sequential_signals or sum(count for _, count in self.hosts) == 1:
            self.site.spawn(self._kill_by_steps())
        else:
            self.signal(signal.SIGKILL)

    async def _kill_by_steps(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            self.signal(number)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.until(lambda: self.state in ENDED), self.site.ways.terminate_interval)
                return

    # -- output

    async def _hear(self, _rank: int, stream: int, data: bytes) -> None:
        if self.call is not None:
            self.call.say(data, stream)
            await self.call.drain()
        else:
            stream = stream if self.request.err else 1
            self._said[stream].append(data)
            if self.direct:
                self._append(stream, b"".join(self._said[stream]))
                self._said[stream].clear()

    def _open(self) -> None:
        """Where the output goes to its files as it comes, they are there from the start."""
        for stream, output in ((1, self.request.out), (2, self.request.err)):
            if self.direct and output:
                self._append(stream, b"", fresh=output.overwrite)

    def _write(self) -> None:
        """What the files get at the end."""
        out, err = self.request.out, self.request.err
        if out:
            text = report(self, above=self.direct).encode(errors="surrogateescape")
            note = f"\n\nPS:\n\nRead file <{self.file(err)}> for stderr output of this job.\n" if err else "\n"
            said = b"".join(self._said[1])
            self._append(1, text + said + note.encode(), fresh=out.overwrite and not self.direct)
        if err and not self.direct:
            self._append(2, b"".join(self._said[2]), fresh=err.overwrite)

    def file(self, output: Output) -> str:
        return os.path.join(self.cwd, output.path.replace("%J", str(self.number)))

    def _append(self, stream: int, data: bytes, *, fresh: bool = False) -> None:
        output = self.request.out if stream == 1 else self.request.err
        if output is None:
            return
        with suppress(OSError, BedError):  # the host may be dead; LSF would send mail
            path = self.site.path(self.hosts[0][0], self.cwd, self.file(output))
            with path.open("wb" if fresh else "ab") as file:
                file.write(data)
