"""An instance of a simulated Flux: nodes, a queue, jobs; the system's, and one in each ``batch`` or ``alloc`` job."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .crew import Task
from .flux_jobs import Job, Spec
from .flux_words import ascii_only, core_of_machine, f58, fill
from .grammar import Refusal
from .pool import Placement, Pool

if TYPE_CHECKING:
    from .flux import Flux

_YOUTH = 60_000  # ms: so old is an instance when it is made, or its ids would be shorter than any that people see


class Instance:
    """A Flux instance. ``parent`` is the job that it is the inside of, None for the system's."""

    def __init__(self, flux: Flux, name: str, pool: Pool, parent: Job | None = None) -> None:
        self.flux, self.name, self.pool, self.parent = flux, name, pool, parent
        self.uri = f"local:///run/flux-{name}/local"
        self.level: int = parent.instance.level + 1 if parent else 0
        self.jobs: dict[int, Job] = {}
        self._numbers, self._born = itertools.count(), time.monotonic()

    @property
    def hosts(self) -> list[str]:
        return list(self.pool.nodes)

    def look(self) -> None:
        """Take note of hosts that are dead; of those that are back only the system's instance makes use."""
        alive = [name for name in self.hosts if self.flux.bed.alive(name)]
        self.pool.lose(set(self.hosts) - set(alive))
        if self.parent is None and set(alive) & self.pool.down:
            self.pool.regain(alive)

    def submit(self, spec: Spec) -> Job:
        """Raises ``Refusal`` for what is refused at once."""
        self.look()
        limits = self.flux.queues if self.parent is None else {}
        queue = spec.queue or next(iter(limits), "")
        if spec.queue and spec.queue not in limits:
            raise Refusal(f"flux: ERROR: Invalid queue '{spec.queue}' specified")
        most = limits.get(queue)
        if most is not None and spec.limit is not None and spec.limit > most:
            raise Refusal(f"flux: ERROR: requested duration exceeds policy limit of {most:g}s")
        for scheme, number in spec.dependencies:
            if number not in self.jobs:
                raise Refusal(f"flux: ERROR: dependency {scheme}: job {f58(number)} not found")
        if most is not None and spec.limit is None:
            spec = replace(spec, limit=most)
        now = int((time.monotonic() - self._born) * 1000) + _YOUTH
        job = Job(self, (now << 24) + next(self._numbers), spec)
        self.jobs[job.number] = job
        self.flux.spawn(job.live())
        return job

    def job(self, number: int) -> Job:
        if number not in self.jobs:
            raise Refusal(f"flux: ERROR: JobID {f58(number)} unknown")
        return self.jobs[number]

    async def close(self) -> None:
        """All its jobs are cancelled, and over."""
        active = [job for job in self.jobs.values() if job.active]
        for job in active:
            job.throw("cancel", "the instance ends")
        await asyncio.gather(*(job.until(lambda job=job: not job.active) for job in active))  # type: ignore[misc]

    # -- what a job's shell does

    def tags(self, job: Job) -> dict[str, object]:
        """What ``{{tags}}`` stand for."""
        plain = f58(job.number, plain=True)
        shape = job.spec.shape
        return {
            "id": f58(job.number, ascii_only(job.spec.environ)),
            "jobid": f58(job.number, ascii_only(job.spec.environ)),
            "id.f58": f58(job.number),
            "id.f58plain": plain,
            "id.dec": job.number,
            "name": job.spec.name,
            "size": 1 if job.spec.child else shape.tasks,
            "nnodes": len(job.placement),
            "tmpdir": self._folder(job),
        }

    def _folder(self, job: Job) -> str:
        return f"/tmp/flux-{self.name}-{f58(job.number, plain=True)}"

    def tasks(self, job: Job) -> list[Task]:
        """The processes of a job that has its resources; of a batch job the one that is its script."""
        spec, tags = job.spec, self.tags(job)
        folder = self._folder(job)
        argv, cwd = [fill(word, tags) for word in spec.command], fill(spec.cwd, tags)
        common = {**spec.environ, "FLUX_URI": self.uri, "FLUX_JOB_TMPDIR": folder}
        if spec.child:
            first, environ = self._inside(job, common)
            return [Task(0, first, argv, environ, cwd, pty=spec.pty, folder=folder, umask=spec.umask)]
        slots = spec.shape.slots(job.placement, spec.taskmap)
        pmi = spec.options.get("pmi") != "off"
        affinity = spec.options.get("cpu-affinity", "on")
        tasks = []
        for rank, (host, local) in enumerate(slots):
            here = sum(slot.host == host for slot in slots)
            environ = common | self._of_task(job, rank, local, len(slots), here, host)
            environ |= {"PMI_RANK": str(rank), "PMI_SIZE": str(len(slots))} if pmi else {}
            cpus = _bind(affinity, job.placement[host].cores, local, here)
            tasks.append(Task(rank, host, argv, environ, cwd, cpus, pmi=pmi, folder=folder, umask=spec.umask))
        return tasks

    def _inside(self, job: Job, common: dict[str, str]) -> tuple[str, dict[str, str]]:
        """The instance within a job is made: its first host, and the environment of its initial program."""
        first = next(iter(job.placement))
        job.child = self.flux.add_instance(job, Pool(job.placement))
        environ = {key: value for key, value in common.items() if key not in _OF_TASKS}
        return first, environ | {"FLUX_URI": job.child.uri, "CUDA_VISIBLE_DEVICES": _gpus(job.placement[first].gpus)}

    def _of_task(self, job: Job, rank: int, local: int, size: int, here: int, host: str) -> dict[str, str]:
        """What only this task finds, the ``local``-th of ``here`` in its host; no node's number, no list of hosts."""
        environ = {
            "FLUX_TASK_RANK": str(rank),
            "FLUX_TASK_LOCAL_ID": str(local),
            "FLUX_JOB_SIZE": str(size),
            "FLUX_JOB_NNODES": str(len(job.placement)),
            "FLUX_JOB_ID": f58(job.number, ascii_only(job.spec.environ)),
        }
        gpus, affinity = job.placement[host].gpus, job.spec.options.get("gpu-affinity", "on")
        if affinity == "off":
            return environ
        return environ | {"CUDA_VISIBLE_DEVICES": _gpus(_part(gpus, local, here) if affinity == "per-task" else gpus)}

    def save(self, job: Job, rank: int, stream: int, data: bytes) -> None:
        """Append output to the job's file, if it has one, as its first host sees that."""
        spec = job.spec
        name = (spec.error or spec.output) if stream == 2 else spec.output
        if name in ("", "none", "kvs"):
            return
        path = Path(fill(spec.cwd, self.tags(job)), fill(name, self.tags(job)))
        if spec.label:
            data = b"".join(b"%d: %s" % (rank, line) for line in data.splitlines(keepends=True))
        with suppress(OSError), self.flux.bed.path(next(iter(job.placement)), str(path)).open("ab") as file:
            file.write(data)


_OF_TASKS = {
    *("FLUX_JOB_ID", "FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_SIZE", "FLUX_JOB_NNODES"),
    *("PMI_RANK", "PMI_SIZE", "PMI_FD"),
}


def _gpus(gpus: list[int]) -> str:
    return ",".join(map(str, gpus)) or "-1"


def _part(things: list[int], index: int, count: int) -> list[int]:
    each = len(things) // count
    return things[index * each : (index + 1) * each]


def _bind(affinity: str, cores: list[int], index: int, count: int) -> list[int]:
    if affinity == "off":
        return []
    chosen = (_part(cores, index, count) or cores) if affinity == "per-task" else cores
    return sorted({core_of_machine(core) for core in chosen})


def free_and_held(pool: Pool) -> dict[str, Placement]:
    """The nodes by state, as ``flux resource list`` has them: a node may be in two."""
    return {
        "free": {name: pool.free(name) for name in pool.up() if pool.free(name).cores},
        "allocated": {name: pool.held[name] for name in pool.up() if pool.held[name].cores},
        "down": {name: pool.nodes[name] for name in pool.nodes if name in pool.down},
    }
