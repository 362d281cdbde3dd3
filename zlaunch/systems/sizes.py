"""Level 2, pure: how many nodes, and how many ranks on each, from what was asked for and what a node has.

Ranks per node are by default a node's GPUs over the GPUs of a rank; without GPUs, its NUMA domains. ``-g`` and
``--gpumem-at-least`` are lower bounds: they become a number of GPUs, and that a number of whole nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .description import System
from .params import DescriptionError

Word: TypeAlias = Literal["auto", "gpu", "cpu"]

_HOW_TO_DESCRIBE = "say it with -p, or describe the system in systems.toml; zlaunch info shows what is known"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of a command line that are about size; ``None`` for those that are not there."""

    nodes: int | None = None
    procs_per_node: int | Word | None = None
    gpus_at_least: int | None = None
    gpumem_at_least: float | None = None
    """GB."""
    gpus_per_proc: int = 1

    @property
    def ranks(self) -> int | Word | None:
        """``procs_per_node`` where it says more than the default does."""
        return None if self.procs_per_node == "auto" else self.procs_per_node


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is needed."""

    nodes: int | None
    """``None``: the whole allocation, or one node outside of one."""
    ranks_per_node: int
    """As far as is known before a node was seen: what a scheduler is asked for."""
    workers: int | Word
    """The same for the launcher; a word where the hosts themselves know better, and count when they are there."""
    gpus_per_proc: int
    gpus_per_node: int
    """Those that the ranks of a node use; 0 where no GPU is known of."""
    notes: tuple[str, ...] = ()
    """What the user should hear."""


def size(asked: Asked, system: System) -> Size:
    """The size of a job.

    Raises:
        DescriptionError: words that exclude one another, a number that is too small, or one that cannot be told or met
            from what is known of the system.
    """
    _check(asked)
    ranks, workers = _ranks(asked, system)
    nodes = asked.nodes
    notes: list[str] = []
    if asked.gpus_at_least is not None or asked.gpumem_at_least is not None:
        needed = max(asked.gpus_at_least or 0, _gpus_for_memory(asked, system, notes))
        per_node = _gpus_in_use(ranks, asked, system) or ranks
        nodes = _nodes(asked, system, needed, per_node)
        if asked.gpumem_at_least is not None and nodes == 1 and asked.ranks is None and asked.nodes is None:
            ranks = min(ranks, -(-needed // asked.gpus_per_proc))
        if asked.ranks is None:
            workers = ranks
        if not system.gpus_per_node and asked.gpus_at_least is not None:
            notes.append(f"-g {asked.gpus_at_least}: no GPU is known of here, so this is a number of ranks")
    wanted = ranks * asked.gpus_per_proc
    if 0 < system.gpus_per_node < wanted and system.described("gpus_per_node"):
        has = system.gpus_per_node
        notes.append(f"the ranks of a node want {wanted} GPUs, {ranks} times {asked.gpus_per_proc}; it has {has}")
    return Size(
        nodes=nodes,
        ranks_per_node=ranks,
        workers=workers,
        gpus_per_proc=asked.gpus_per_proc,
        gpus_per_node=_gpus_in_use(ranks, asked, system),
        notes=tuple(notes),
    )


def _check(asked: Asked) -> None:
    if asked.gpus_at_least is not None:
        for option, value in (("-N", asked.nodes), ("-n", asked.procs_per_node)):
            if value is not None:
                raise DescriptionError(f"-g and {option} exclude each other", "-g alone finds both from the system")
    numbers = {
        "-N": asked.nodes,
        "-n": asked.procs_per_node,
        "-g": asked.gpus_at_least,
        "--gpus-per-proc": asked.gpus_per_proc,
    }
    for option, number in numbers.items():
        if isinstance(number, int) and number < 1:
            raise DescriptionError(f"{option} {number}: at least 1 is needed")
    memory = asked.gpumem_at_least
    if memory is not None and not (math.isfinite(memory) and memory > 0):
        raise DescriptionError(f"--gpumem-at-least {memory:g}: expected a number of GB above 0")


def _ranks(asked: Asked, system: System) -> tuple[int, int | Word]:
    """Ranks per node, and what of that the hosts had better count themselves."""
    by_gpu = max(1, system.gpus_per_node // asked.gpus_per_proc)
    match asked.ranks:
        case int(number):
            return number, number
        case "cpu":
            return max(1, system.usable_cores), "cpu"
        case "gpu":
            if not system.gpus_per_node and system.described("gpus_per_node"):
                where = f"a node of {system.name}" if system.name else "a node"
                raise DescriptionError(f"-n gpu: {where} has no GPU", "-n cpu and -n NUMBER need none")
            return by_gpu, "gpu"
    ranks = by_gpu if system.gpus_per_node else max(1, system.numa_domains)
    return ranks, ranks if system.described("gpus_per_node") else "auto"


def _gpus_for_memory(asked: Asked, system: System, notes: list[str]) -> int:
    """The GPUs that together have the memory asked for; 1 where only ``-n`` says how large a node's part is."""
    memory = asked.gpumem_at_least
    if memory is None:
        return 0
    if system.mem_per_gpu > 0:
        return math.ceil(memory / system.mem_per_gpu)
    unknown = f"--gpumem-at-least {memory:g}: the memory of a GPU is not known here"
    if asked.ranks is None:
        raise DescriptionError(unknown, f"mem_per_gpu=GB: {_HOW_TO_DESCRIBE}")
    notes.append(f"{unknown}; {'the nodes of -N are' if asked.nodes else 'one node is'} taken to have it")
    return 1


def _gpus_in_use(ranks: int, asked: Asked, system: System) -> int:
    return min(ranks * asked.gpus_per_proc, system.gpus_per_node)


def _nodes(asked: Asked, system: System, needed: int, per_node: int) -> int:
    nodes = max(1, -(-needed // per_node))
    if asked.nodes is None:
        return nodes
    if asked.nodes < nodes:
        has = asked.nodes * per_node * system.mem_per_gpu
        raise DescriptionError(
            f"--gpumem-at-least {asked.gpumem_at_least:g}: the GPUs of -N {asked.nodes} have {has:g} GB",
            f"-N {nodes} is enough, and without -N it is found",
        )
    return asked.nodes
