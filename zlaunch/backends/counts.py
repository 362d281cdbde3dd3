"""Level 4, pure: so many processes on each node, in this order, as launchers of MPI processes want it said."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .scheduler import Nodes, Refused


def even(title: str, counts: Sequence[int]) -> int:
    """How many processes each node gets. Raises Refused where that differs."""
    if len(set(counts)) != 1:
        said = ", ".join(map(str, counts))
        why = f"{said} ranks on the hosts, and {title} starts as many MPI processes on each"
        raise Refused("rdv mpi", why, "say one number for all, or use --rdv tcp")
    return counts[0]


def sorted_and_even(nodes: Nodes, counts: Sequence[int]) -> bool:
    """Whether nodes stand in the order that a scheduler lists them in, n2 before n10, and each gets as many."""
    return len(set(counts)) == 1 and list(nodes.names) == sorted(nodes.names, key=_by_number)


def one_by_one(nodes: Nodes, counts: Sequence[int]) -> list[str]:
    """The node of each process, by rank."""
    return [name for name, count in zip(nodes.names, counts, strict=True) for _ in range(count)]


def mpirun(nodes: Nodes, counts: Sequence[int], flavour: str, *, hydra: str, rsh: str) -> tuple[str, ...]:
    """An mpirun that goes through a scheduler.

    Args:
        nodes: in the order of the ranks.
        counts: of each.
        flavour: whose mpirun: ``mpich``, else Open MPI's.
        hydra: what MPICH calls the way to other nodes.
        rsh: the command that an Open MPI uses which does not know the scheduler itself.
    """
    count, places = str(sum(counts)), ",".join(f"{name}:{n}" for name, n in zip(nodes.names, counts, strict=True))
    if flavour == "mpich":
        return ("mpiexec", "-n", count, "-hosts", places, "-launcher", hydra, "-bind-to", "none")
    how = ("--map-by", "slot", "--oversubscribe", "--bind-to", "none", "--mca", "plm_rsh_agent", rsh)
    return ("mpirun", "--host", places, "-n", count, *how)


def _by_number(name: str) -> list[str]:
    return [part.zfill(20) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
