"""A simulated IBM Spectrum LSF on the hosts of a bed: ``bsub``, ``bjobs``, ``bkill``, ``blaunch``; on CORAL ``jsrun``.

    with Bed(3) as bed, Lsf(bed) as lsf:
        job = lsf.submit("-n", 8, "-R", "span[ptile=4]", "blaunch hostname")
        lsf.wait(job, "DONE")

It really starts what it is told to, where LSF would, and knows the part of LSF's grammar that a launcher needs; what it
does not know it refuses. It is modelled on manuals and on what others have published of LSF 10.1, Cluster System
Management and the Job Step Manager (each module says what on which), and was never compared with them; what they leave
open is a switch in ``Ways``. There is no fairness, suspension, requeueing, array, mail, nor any limit but that of time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bed import Bed, BedError
from bed.programs import PATH, PATIENCE, until

from .core import Cluster, Handler, Watched
from .lsf_commands import bjobs, bkill, bsub, end
from .lsf_jobs import Job, Queue
from .lsf_steps import blaunch, jsrun
from .lsf_ways import Ways
from .pool import Pool, Share

QUEUES: Mapping[str, Queue] = MappingProxyType(
    {"normal": Queue(), "short": Queue(limit=1), "shared": Queue(exclusive=False)}
)
"""The first is the default."""


class Lsf(Cluster):
    """A cluster of all hosts of the bed.

    Args:
        bed: hosts, all of them up.
        cpus: of each host; a slot is one.
        gpus: of each host; there are none, but jobs are told of them.
        coral: whole nodes are asked for, the first host is the batch node of all jobs, and there is ``jsrun``.
        minute: seconds of one, for time limits.
        grace: seconds from SIGUSR2, at the time limit, to the end.
        queues: what there is.
        name: of its folder in the bed's, where there are several.
        ways: those of ``Ways``.

    Attributes:
        ways: may be changed with ``use``.
        jobs, lives: of each number what there is to know, and what it does; the loop's.
    """

    OWN = ("LSB_", "LSF_", "LS_", "BSUB_", "CSM_", "JSM_")

    def __init__(
        self,
        bed: Bed,
        *,
        cpus: int = 4,
        gpus: int = 0,
        coral: bool = False,
        minute: float = 60.0,
        grace: float = 600.0,
        queues: Mapping[str, Queue] = QUEUES,
        name: str = "lsf",
        **ways: Any,
    ) -> None:
        self.coral, self.minute, self.grace, self.queues = coral, minute, grace, dict(queues)
        self.ways = Ways(**ways)
        self.jobs: dict[int, Job] = {}
        self.forgotten: dict[int, str] = {}
        self.numbers = itertools.count(1)
        self.watched = Watched()
        self.batch_host = bed.hosts[0]
        self.lives: dict[int, asyncio.Task[None]] = {}
        compute = bed.hosts[1:] if coral else bed.hosts
        self.pool = Pool({host: Share(list(range(cpus)), list(range(gpus))) for host in compute})
        super().__init__(bed, name, cpus=cpus, gpus=gpus)
        self.login = {
            "PATH": f"{self.bin}:{PATH}",
            "HOME": "/root",
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/sh",
        }
        bed.hooks.append(self._booted)

    def commands(self) -> Mapping[str, Handler]:
        """On CORAL ``jsrun``, too."""
        known = {"bsub": bsub, "bjobs": bjobs, "bkill": bkill, "blaunch": blaunch}
        if self.coral:
            known["jsrun"] = jsrun
        return {name: functools.partial(command, self) for name, command in known.items()}

    def stage(self, number: int) -> str:
        """How far a job has come, for the conditions of others."""
        return self.forgotten[number] if number in self.forgotten else self.jobs[number].stage

    def path(self, host: str, *parts: str) -> Path:
        """A file as that host sees it, for us to read and write. Raises ``BedError`` for a dead one."""
        path = Path("/", *parts)
        return self.bed.path(host, str(path)) if host in self.bed.hosts else path

    def _booted(self, names: Any) -> None:
        def tell() -> None:
            for job in self.jobs.values():
                if job.hosts and job.hosts[0][0] in names:
                    job.host_is_up()
            self.watched.touch()

        self.loop.call_soon_threadsafe(tell)

    # -- what tests ask for

    def use(self, **ways: Any) -> None:
        """From now on these of ``Ways``."""
        self.ways = dataclasses.replace(self.ways, **ways)

    def submit(self, *words: str | Path | int, **more: Any) -> int:
        """Submit a job with these words of bsub (``more`` are ``run``'s); its id."""
        answer = self.ask("bsub", *words, **more)
        match = re.search(r"^Job <([0-9]+)> is submitted to ", answer, re.MULTILINE)
        if match is None:
            raise BedError(f"bsub: {answer}")
        return int(match[1])

    def state(self, job: int) -> str:
        """``PEND``, ``RUN``, ``DONE``, ``EXIT`` ... A job that is unknown, or is so by now, has ``""``."""
        return self.run(["bjobs", "-noheader", "-o", "stat delimiter='^'", job]).stdout.strip()

    def wait(self, job: int, *states: str, seconds: float = PATIENCE) -> str:
        """Until the job has one of these states, which is returned.

        Raises:
            BedError: it has not within these seconds.
        """

        async def look() -> str:
            found = self.jobs[job]
            with suppress(TimeoutError):
                await asyncio.wait_for(found.until(lambda: found.state in states), seconds)
            return found.state

        state: str = asyncio.run_coroutine_threadsafe(look(), self.loop).result(seconds + PATIENCE)
        if state not in states:
            raise BedError(f"job {job}: not {' or '.join(states)} but {state} within {seconds:g} s")
        return state

    def forget(self, job: int) -> None:
        """An ended job is as unknown as if it had ended long ago."""

        async def drop() -> None:
            self.forgotten[job] = self.jobs.pop(job).stage

        self.call(drop())

    def restore(self) -> None:
        """No job, and all hosts up and healed. Raises ``AssertionError`` for processes that a job left there."""

        async def kill() -> None:
            for job in self.jobs.values():
                end(job, self.lives[job.number])
                job.signal(signal.SIGKILL)

        self.call(kill())
        self.bed.mend()
        until(lambda: all(life.done() for life in self.lives.values()), "the end of all jobs")
        self.bed.restore()

    def down(self) -> None:
        """End all jobs, and remove the commands. Nothing happens where it is down."""
        if self._booted in self.bed.hooks:
            self.bed.hooks.remove(self._booted)
            self.call(self._end())
        super().down()

    async def _end(self) -> None:
        for life in self.lives.values():
            life.cancel()
        await asyncio.gather(*self.lives.values(), return_exceptions=True)
