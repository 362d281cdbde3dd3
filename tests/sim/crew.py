"""Tasks on hosts of the bed: started, fed, signalled, waited for; a ``shepherd.py`` in each host looks after them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bed import BedError
from bed.programs import PATH

if TYPE_CHECKING:
    from .core import Cluster

_PROGRAM = Path(__file__).parent / "shepherd.py"
_tokens = itertools.count(1)


@dataclass(frozen=True)
class Task:
    """One process to be started.

    ``cpus`` binds it to these cores; ``pty`` gives it a terminal, ``pmi`` a ``PMI_FD``; ``folder`` is made for it, and
    removed when all of its crew in that host have ended.
    """

    rank: int
    host: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    cwd: str
    cpus: Sequence[int] = ()
    pty: bool = False
    pmi: bool = False
    folder: str = ""
    umask: int = 0o022


@dataclass(frozen=True)
class Hooks:
    """What a crew tells: output (waited for before more is read), a program that is not there, an end, a lost host."""

    output: Callable[[int, int, bytes], Awaitable[None]]  # rank, stream (1 or 2), data
    failed: Callable[[int, int], None] = lambda rank, errno: None
    started: Callable[[int, int], None] = lambda rank, pid: None
    ended: Callable[[int, int], None] = lambda rank, status: None
    lost: Callable[[str], None] = lambda host: None


@dataclass(eq=False)
class _Link:
    """The way to one shepherd; what is said before it is there waits."""

    host: str
    ranks: list[int]
    frames: list[dict[str, Any]]
    process: subprocess.Popen[Any] | None = None
    writer: asyncio.StreamWriter | None = None
    token: str = field(default_factory=lambda: str(next(_tokens)))

    def tell(self, **frame: Any) -> None:
        self.frames.append(frame)
        if self.writer is not None:
            for waiting in self.frames:
                self.writer.write(json.dumps(waiting).encode() + b"\n")
            self.frames.clear()


async def _end_of(process: subprocess.Popen[Any]) -> None:
    """Until the process is dead, and buried. Only for one that nobody else waits for."""
    if process.returncode is not None:
        return
    loop, dead = asyncio.get_running_loop(), asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, dead.set)
    try:
        await dead.wait()
        process.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


class Crew:
    """The tasks of one job step. ``status`` has what each has ended with, as ``Popen.returncode`` says it.

    Args:
        linger: a task has ended when nobody has its output (or ``PMI_FD``) open any more, not already when it exits.
        leave: what descends from the tasks and has left their process group lives on after the end.
    """

    def __init__(
        self, cluster: Cluster, tasks: Sequence[Task], hooks: Hooks, *, linger: bool = True, leave: bool = True
    ) -> None:
        self.cluster, self.hooks, self.leave = cluster, hooks, leave
        self.status: dict[int, int] = {}
        self.lost: set[str] = set()
        self._links: list[_Link] = []
        for host in dict.fromkeys(task.host for task in tasks):
            mine = [task for task in tasks if task.host == host]
            spec = {"tasks": [vars(task) for task in mine], "linger": linger}
            self._links.append(_Link(host, [task.rank for task in mine], [spec]))

    async def run(self) -> None:
        """Start all tasks; returns when each has ended, or its host is lost. Kills them all where it is cancelled."""
        await asyncio.gather(*(self._attend(link) for link in self._links))

    async def _attend(self, link: _Link) -> None:
        try:
            reader = await self._connect(link)
            while line := await reader.readline():
                await self._hear(json.loads(line))
                if all(rank in self.status for rank in link.ranks):
                    if self.leave:
                        link.tell(leave=True)
                        await reader.read()
                    break
        except (ConnectionError, BedError):
            pass
        finally:
            await self._close(link)
        if any(rank not in self.status for rank in link.ranks):
            self.lost.add(link.host)
            self.hooks.lost(link.host)

    async def _connect(self, link: _Link) -> asyncio.StreamReader:
        arrival = asyncio.get_running_loop().create_future()
        self.cluster.shepherds[link.token] = arrival
        argv = [sys.executable, "-IS", str(_PROGRAM), str(self.cluster.socket), link.token]
        log = self.cluster.folder / "shepherds.log"
        with log.open("a") as errors:
            link.process = self.cluster.bed.popen(
                link.host, argv, env={"PATH": PATH}, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        ended = asyncio.ensure_future(_end_of(link.process))
        await asyncio.wait({arrival, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not arrival.done():
            raise BedError(f"{link.host} is lost")
        reader: asyncio.StreamReader
        reader, link.writer = arrival.result()
        link.tell(hello=True)
        return reader

    async def _close(self, link: _Link) -> None:
        """The shepherd goes, and by itself with it whatever is left of its flock."""
        self.cluster.shepherds.pop(link.token, None)
        if link.writer is not None:
            link.writer.close()
        elif link.process is not None:
            link.process.kill()
        if link.process is not None:
            await asyncio.shield(_end_of(link.process))

    async def _hear(self, frame: dict[str, Any]) -> None:
        match frame:
            case {"out": stream, "rank": rank, "data": data}:
                await self.hooks.output(rank, stream, data.encode("latin-1"))
            case {"started": rank, "pid": pid}:
                self.hooks.started(rank, pid)
            case {"failed": rank, "errno": errno}:
                self.hooks.failed(rank, errno)
            case {"ended": rank, "status": status}:
                self.status[rank] = status
                self.hooks.ended(rank, status)

    def feed(self, data: bytes, ranks: Sequence[int] | None = None) -> None:
        """Input for these tasks, or all; ``b""`` is the end of it."""
        for link in self._links:
            mine = link.ranks if ranks is None else [rank for rank in ranks if rank in link.ranks]
            if mine:
                link.tell(**{"in": data.decode("latin-1"), "ranks": mine})

    def signal(self, number: int, ranks: Sequence[int] | None = None, *, whole: bool = False) -> None:
        """A signal to the process groups of these tasks, or all; ``whole``: to everything that descends from any."""
        for link in self._links:
            mine = link.ranks if ranks is None else [rank for rank in ranks if rank in link.ranks]
            living = [rank for rank in mine if rank not in self.status]
            if living:
                with suppress(ConnectionError):
                    link.tell(signal=int(number), ranks=living, whole=whole)


def exit_status(status: int) -> int:
    """As a shell says it: 128+n for signal n."""
    return 128 - status if status < 0 else status
