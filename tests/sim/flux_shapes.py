"""What a Flux job asks for, and which cores and GPUs of which nodes that becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .grammar import Parsed, Refusal
from .pool import Fit, Placement, Pool, Share


class Slot(NamedTuple):
    """Where a task goes: its host, its number among the tasks there."""

    host: str
    local: int


@dataclass(frozen=True)
class Shape:
    """Tasks (or slots, in ``batch`` and ``alloc``), on so many nodes or wherever there is room."""

    tasks: int
    nodes: int | None = None
    cores: int = 1  # per task
    gpus: int = 0  # per task
    exclusive: bool = False  # whole nodes
    gpus_per_node: int = 0
    only: Sequence[tuple[bool, Sequence[str]]] = field(default=())  # constraints: whether to be among these hosts

    def counts(self) -> list[int]:
        """How many tasks each node has, where it is said how many nodes."""
        nodes = self.nodes or 1
        return [self.tasks // nodes + (index < self.tasks % nodes) for index in range(nodes)]

    def candidates(self, pool: Pool) -> list[str]:
        return [name for name in pool.nodes if all((name in hosts) == wanted for wanted, hosts in self.only)]

    def fit(self, whole_nodes_have_gpus: bool) -> Fit:
        """How to choose from what is free."""

        def choose(pool: Pool) -> Placement | None:
            if self.exclusive and self.nodes:
                return self._whole(pool, whole_nodes_have_gpus)
            return self._shared(pool)

        return choose

    def _whole(self, pool: Pool, with_gpus: bool) -> Placement | None:
        chosen: Placement = {}
        for name in self.candidates(pool):
            count = self.counts()[min(len(chosen), (self.nodes or 1) - 1)]
            free, gpus = pool.free(name), self.gpus_per_node or self.gpus * count
            if not pool.empty(name) or len(free.cores) < self.cores * count or len(free.gpus) < gpus:
                continue
            chosen[name] = Share(free.cores, free.gpus if with_gpus else free.gpus[:gpus])
            if len(chosen) == self.nodes:
                return chosen
        return None

    def _shared(self, pool: Pool) -> Placement | None:
        chosen: Placement = {}
        left = self.tasks
        for name in self.candidates(pool):
            free = pool.free(name)
            room = min(len(free.cores) // self.cores, len(free.gpus) // self.gpus if self.gpus else left)
            wanted = self.counts()[len(chosen)] if self.nodes else min(left, room)
            if room < wanted or wanted == 0:
                continue
            chosen[name] = Share(free.cores[: wanted * self.cores], free.gpus[: wanted * self.gpus])
            left -= wanted
            if left == 0:
                return chosen
        return None

    def possible(self, pool: Pool) -> bool:
        """Whether it could be had if nobody held anything, and nothing was down."""
        return self.fit(False)(Pool(pool.nodes)) is not None

    def slots(self, placement: Placement, taskmap: str) -> list[Slot]:
        """Where each task goes, by rank."""
        hosts = list(placement)
        counts = self.counts() if self.nodes else [len(share.cores) // self.cores for share in placement.values()]
        if taskmap == "cyclic":
            turns = range(max(counts))
            return [Slot(host, turn) for turn in turns for host, n in zip(hosts, counts, strict=True) if turn < n]
        return [Slot(host, local) for host, n in zip(hosts, counts, strict=True) for local in range(n)]


def of_tasks(program: str, parsed: Parsed) -> Shape:
    """The shape that ``flux run`` and ``flux submit`` ask for. Raises ``Refusal``."""
    nodes, tasks = parsed.get("nodes"), parsed.get("ntasks")
    per_task = [name for name in ("ntasks", "cores-per-task", "gpus-per-task") if name in parsed]
    per_node = [name for name in ("tasks-per-node", "gpus-per-node") if name in parsed]
    if per_task and per_node:
        raise Refusal(f"{program}: ERROR: Per-resource options can't be used with per-task options.")
    if per_node:
        if not nodes:
            raise Refusal(f"{program}: ERROR: --{per_node[0]} requires --nodes")
        tasks = nodes * parsed.get("tasks-per-node", 1)
        return Shape(tasks, nodes, exclusive=True, gpus_per_node=parsed.get("gpus-per-node", 0), only=_only(parsed))
    exclusive = "exclusive" in parsed or bool(nodes and not tasks)
    return _shape(program, parsed, tasks or nodes or 1, ("cores-per-task", "gpus-per-task"), exclusive)


def of_slots(program: str, parsed: Parsed) -> Shape:
    """The shape that ``flux batch`` and ``flux alloc`` ask for. Raises ``Refusal``."""
    nodes, slots = parsed.get("nodes"), parsed.get("nslots")
    if not (nodes or slots):
        raise Refusal(f"{program}: ERROR: Number of slots to allocate must be specified")
    exclusive = "exclusive" in parsed or not slots
    return _shape(program, parsed, slots or nodes, ("cores-per-slot", "gpus-per-slot"), exclusive)


def _shape(program: str, parsed: Parsed, tasks: int, names: tuple[str, str], exclusive: bool) -> Shape:
    nodes = parsed.get("nodes")
    if nodes and tasks < nodes:
        raise Refusal(f"{program}: ERROR: node count must not be greater than task count")
    if exclusive and not nodes:
        raise Refusal(f"{program}: ERROR: --exclusive requires --nodes")
    cores, gpus = (parsed.get(name) for name in names)
    return Shape(tasks, nodes, cores or 1, gpus or 0, exclusive, only=_only(parsed))


def _only(parsed: Parsed) -> list[tuple[bool, list[str]]]:
    found: list[tuple[bool, list[str]]] = parsed.get("requires", [])
    return found
