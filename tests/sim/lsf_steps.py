"""``blaunch`` and ``jsrun``: tasks on the hosts of a job of the simulated LSF, started from within it.

After IBM Spectrum LSF's page on ``blaunch``, and what the Job Step Manager's manual and the user guides of CORAL
machines say of ``jsrun``; its resource sets bind tasks to cores, but hide nothing of a host, and there is no MPI. Tasks
have the caller's environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .core import Call
from .crew import Crew, Hooks, Task, exit_status
from .grammar import Refusal
from .lsf_jsrun import Layout, layout
from .lsf_words import BLAUNCH, STATUS, read
from .pool import Placement

if TYPE_CHECKING:
    from .lsf import Lsf
    from .lsf_jobs import Job

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
_LOST = 255
"""The status of a task whose host is lost."""


def within(site: Lsf, call: Call) -> Job:
    """The job that a command was called in. Raises ``Refusal`` where it is in none."""
    number = call.environ.get("LSB_JOBID", "")
    job = site.jobs.get(int(number)) if number.isdigit() else None
    if job is None or job.stage != "RUN" or call.host not in dict(job.hosts):
        raise Refusal(f"{call.name}: not in a running job", STATUS)
    return job


class Step:
    """Tasks of a command, until they have all ended or the command has.

    ``stdin`` has the ranks that get the input; ``streams`` takes the place of the caller's.
    """

    def __init__(self, call: Call, job: Job, tasks: Sequence[Task], stdin: Sequence[int], labels: bool = False) -> None:
        self.call, self.job, self.labels = call, job, labels
        self.streams: dict[int, IO[bytes]] = {}
        self.first_failure = 0
        self.exit_on_error = False
        hooks = Hooks(self._hear, failed=self._not_there, ended=self._ended, lost=self._lost)
        self.crew = Crew(job.site, tasks, hooks, linger=False, leave=not job.site.ways.process_tracking)
        self.argv = {task.rank: task.argv for task in tasks}
        others = [task.rank for task in tasks if task.rank not in stdin]
        if others:
            self.crew.feed(b"", others)
        self.stdin = list(stdin)

    async def run(self, source: bytes | None = None) -> dict[int, int]:
        """The exit status of each task, in the order of their ends; those of lost hosts come last."""
        if source is not None:
            self.crew.feed(source, self.stdin)
            self.crew.feed(b"", self.stdin)
        elif self.stdin:
            self.call.read(lambda data: self.crew.feed(data, self.stdin))
        self.call.trap({number: lambda number=number: self.crew.signal(number) for number in _PASSED_ON})  # type: ignore[misc]
        running = asyncio.ensure_future(self.crew.run())
        self.job.steps.add(running)
        try:
            await asyncio.wait([running])
        finally:
            running.cancel()
            await asyncio.wait([running])
            self.job.steps.discard(running)
        status = {rank: exit_status(number) for rank, number in self.crew.status.items()}
        return status | {rank: _LOST for rank in self.argv if rank not in status}

    async def _hear(self, rank: int, stream: int, data: bytes) -> None:
        if self.labels:
            data = b"".join(b"%d: %s" % (rank, line) for line in data.splitlines(keepends=True))
        if stream in self.streams:
            self.streams[stream].write(data)
        else:
            self.call.say(data, stream)
            await self.call.drain()

    def _not_there(self, rank: int, _errno: int) -> None:
        self.call.complain(f"{self.call.name}: {self.argv[rank][0]}: cannot be started")

    def _ended(self, _rank: int, status: int) -> None:
        if status and not self.first_failure:
            self.first_failure = exit_status(status)
            if self.exit_on_error:
                self.crew.signal(signal.SIGKILL, whole=True)

    def _lost(self, host: str) -> None:
        self.call.complain(f"{self.call.name}: {host}: lost")
        self.first_failure = self.first_failure or _LOST
        if self.exit_on_error:
            self.crew.signal(signal.SIGKILL, whole=True)


def _readers(way: str, ranks: Sequence[int]) -> Sequence[int]:
    return {"none": (), "first": ranks[:1], "all": ranks}[way]


# -- blaunch


async def blaunch(site: Lsf, call: Call) -> int:
    job = within(site, call)
    options, words = read("blaunch", BLAUNCH, call.argv)
    hosts = _hosts(job, options, words, call)
    if not words:
        raise Refusal("blaunch: no command", STATUS)
    argv = ["/bin/sh", "-c", " ".join(words)] if site.ways.shell_words else words
    tasks = [Task(rank, host, argv, call.environ, call.cwd, umask=call.umask) for rank, host in enumerate(hosts)]
    stdin = () if "-n" in options else _readers(site.ways.blaunch_stdin, range(len(tasks)))
    status = await Step(call, job, tasks, stdin).run()
    return max(status.values()) if site.ways.blaunch_status == "highest" else 0


def _hosts(job: Job, options: Mapping[str, str], words: list[str], call: Call) -> list[str]:
    """Where there is to be a task; a host that is the first of the words is taken from these."""
    if "-z" in options:
        hosts = options["-z"].split()
    elif "-u" in options:
        try:
            hosts = job.site.path(call.host, call.cwd, options["-u"]).read_text().split()
        except OSError as error:
            raise Refusal(f"blaunch: {options['-u']}: {error.strerror}", STATUS) from None
    elif words and words[0] in job.site.bed.hosts:
        hosts = [words.pop(0)]
    else:
        hosts = [name for name, count in job.hosts for _ in range(count)]
    strange = [name for name in hosts if name not in dict(job.hosts)]
    if strange or not hosts:
        raise Refusal(f"blaunch: {' '.join(strange) or 'no host'}: not a host of this job", STATUS)
    return hosts


# -- jsrun


async def jsrun(site: Lsf, call: Call) -> int:
    job = within(site, call)
    plan = layout(call.argv, call.environ, site.cpus, site.gpus, len(job.hosts) - 1, site.ways.tmpdir_breaks)
    assert job.pool is not None
    placement = await job.pool.get(plan.fit)
    try:
        return await _launch(site, call, job, plan, placement)
    finally:
        job.pool.give_back(placement)


async def _launch(site: Lsf, call: Call, job: Job, plan: Layout, placement: Placement) -> int:
    options = plan.options
    cwd = str(Path(call.cwd, options.get("chdir", "")))
    tasks = [
        Task(rank, host, plan.command, call.environ | told, cwd, cpus, umask=call.umask)
        for rank, (host, cpus, told) in enumerate(plan.tasks(placement))
    ]
    ranks = range(len(tasks))
    chosen = options.get("stdin_rank")
    if chosen is not None and chosen not in ranks:
        raise Refusal(f"jsrun: --stdin_rank {chosen}: no such rank")
    stdin = _readers(site.ways.jsrun_stdin, ranks) if chosen is None else [chosen]
    step = Step(call, job, tasks, stdin, options.get("stdio_mode") == "prepended")
    step.exit_on_error = options.get("exit_on_error", 0) == 1
    try:
        with contextlib.ExitStack() as files:
            for stream, name in ((1, "stdio_stdout"), (2, "stdio_stderr")):
                if name in options:
                    step.streams[stream] = files.enter_context(site.path(call.host, call.cwd, options[name]).open("wb"))
            source = (
                site.path(call.host, call.cwd, options["stdio_input"]).read_bytes()
                if "stdio_input" in options
                else None
            )
            status = await step.run(source)
    except OSError as error:
        raise Refusal(f"jsrun: {error.filename}: {error.strerror}") from None
    return step.first_failure if site.ways.jsrun_status == "first" else max(status.values())
