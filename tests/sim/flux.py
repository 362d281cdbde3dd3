"""A strict simulator of Flux on the hosts of a bed; it starts real processes there.

    with Bed(3) as bed, Flux(bed) as flux:
        job = flux.submit("-N2", script)
        flux.wait(job, "COMPLETED")

Modelled on flux-core 0.88 as it was observed on three hosts (sched-simple and Fluxion), and on its manual pages where
``flux_words`` and the comments here say so. What the observation does not tell is refused: commands, options, fields.

Not simulated: brokers as processes (so nothing listens in the hosts), KVS, broker modules and attributes but for a few,
users, urgency and priorities, backfill, reservations, output that comes half a second late without ``-u``, latencies,
a network that is cut: a host is lost when it is dead.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bed import Bed

from . import flux_ask, flux_job_commands, flux_submit
from .core import Call, Cluster
from .flux_instance import Instance
from .flux_jobs import Job
from .flux_words import GRAMMARS, duration
from .grammar import Refusal
from .pool import Pool, Share

QUEUES = MappingProxyType({"batch": None, "short": 60.0})

_COMMANDS = {**flux_submit.COMMANDS, **flux_ask.COMMANDS, **flux_job_commands.COMMANDS}


class Flux(Cluster):
    """The system's instance, on all hosts of the bed, and those within its jobs.

    Args:
        bed, cpus, gpus: see ``Cluster``.
        queues: of the system's instance, each with its time limit (s); the first is the default.
        system: whether commands outside of any job find the system's instance.
        whole_nodes_have_gpus: a job with whole nodes has their GPUs although it asked for none. Both were seen: with
            Fluxion, and not with sched-simple.
        kill_timeout: s from SIGTERM (or SIGALRM) to SIGKILL.
        exit_timeout: s from the first exit of a task until the others are killed, where the job says nothing else.
        notice: s from the death of a host until its jobs know; a real one takes 1 to 2, or 22 where it is silent.
    """

    OWN = ("FLUX_", "PMI_")

    def __init__(
        self,
        bed: Bed,
        *,
        cpus: int = 4,
        gpus: int = 0,
        queues: Mapping[str, float | None] = QUEUES,
        system: bool = True,
        whole_nodes_have_gpus: bool = False,
        kill_timeout: float = 5.0,
        exit_timeout: float = 30.0,
        notice: float = 1.5,
    ) -> None:
        self.queues, self.system, self.whole_nodes_have_gpus = dict(queues), system, whole_nodes_have_gpus
        self.kill_timeout, self.exit_timeout, self.notice = kill_timeout, exit_timeout, notice
        self.instances: dict[str, Instance] = {}
        self._names = itertools.count(1)
        super().__init__(bed, "flux", cpus=cpus, gpus=gpus)
        bed.hooks.append(self._booted)

    def start(self) -> None:
        nodes = {name: Share(list(range(self.cpus)), list(range(self.gpus))) for name in self.bed.hosts}
        self.root = Instance(self, "system", Pool(nodes))
        self.instances[self.root.uri] = self.root

    def add_instance(self, job: Job, pool: Pool) -> Instance:
        instance = Instance(self, str(next(self._names)), pool, job)
        self.instances[instance.uri] = instance
        return instance

    def _booted(self, names: Sequence[str]) -> None:
        """Hosts were booted: instances of jobs have lost them for good, the system's has them back."""

        async def take_note() -> None:
            for instance in self.instances.values():
                if instance.parent:
                    instance.pool.lose(set(names) & set(instance.hosts))
                else:
                    instance.look()

        self.call(take_note())

    @staticmethod
    def seconds(text: str) -> float:
        """A duration in a shell option; what is none counts as none given."""
        try:
            return duration(text)
        except ValueError:
            return 30.0

    # -- commands

    def commands(self) -> Mapping[str, Any]:
        return {"flux": self._flux}

    async def _flux(self, call: Call) -> int:
        words, name = list(call.argv), ""
        for length in (2, 1):
            name = " ".join(words[:length])
            if name in _COMMANDS:
                parsed = GRAMMARS[name].parse(words[length:])
                return await _COMMANDS[name](self, call, parsed)
        raise Refusal(f"flux: `{' '.join(words[:2])}' is not a flux command. See 'flux --help'")

    def instance(self, call: Call) -> Instance:
        """The one that a command talks to."""
        uri = call.environ.get("FLUX_URI", "")
        if uri:
            found = self.instances.get(uri)
            over = found is None or (found.parent is not None and not found.parent.active)
        else:
            found, over = self.root, not self.system
        if found is None or over:
            raise Refusal("flux: ERROR: Unable to connect to Flux: broker socket not found")
        found.look()
        return found

    # -- as tests use it

    def submit(self, *options: str | Path | int, **more: Any) -> str:
        """Submit a batch job with these words for ``flux batch`` (``more`` are ``run``'s); its id."""
        return self.ask("flux", "batch", *options, **more)

    def state(self, job: str) -> str:
        """``SCHED``, ``RUN`` ..., and at the end its result: ``COMPLETED``, ``FAILED``, ``CANCELED``, ``TIMEOUT``.

        A job that is unknown has ``""``.
        """
        return self.run(["flux", "jobs", "-no", "{status}", job]).stdout.strip()

    def restore(self) -> None:
        """No job, and all hosts up and healed. Raises ``AssertionError`` for processes that a job left there."""

        async def end_all() -> None:
            jobs = [job for instance in self.instances.values() for job in instance.jobs.values() if job.active]
            for job in jobs:
                job.throw("cancel", "restore")
            over = asyncio.gather(*(job.until(lambda job=job: not job.active) for job in jobs))  # type: ignore[misc]
            await asyncio.wait({over}, timeout=1)
            for job in jobs:
                job.kill()
            await over

        self.call(end_all())
        self.bed.restore()

    def down(self) -> None:
        super().down()
        if self._booted in self.bed.hooks:
            self.bed.hooks.remove(self._booted)
