"""Level 3, pure: which cores each rank of a host is bound to.

A rank's home is the NUMA domain of its first GPU; where there is none, ranks are dealt out to the domains in blocks.
With fewer ranks than domains each has several of these. What torchrun calls ``--numa-binding node`` is ``numa`` here,
and its ``exclusive`` is ``core``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..model import Bind, Domain

Cores = tuple[tuple[int, ...], ...]


def shares(domains: Sequence[Domain], near: Sequence[int], mode: Bind) -> list[tuple[int, ...]]:
    """The cores of each local rank, as the kernel numbers them; an empty share is bound to nothing.

    Args:
        domains: of the host, with the cores that are ours.
        near: for each local rank, the number of the domain of its GPU; one that is not in ``domains`` is unknown.
        mode: ``none``; ``numa``: all cores of its home; ``core``: a share of them that is no other rank's, as far as
            there are enough; ``auto``: as ``core``, on hosts of several domains.
    """
    if mode == "none" or not domains or (mode == "auto" and len(domains) < 2):
        return [()] * len(near)
    homes = [_home(domains, near, rank) for rank in range(len(near))]
    if mode == "numa":
        return [_flat(home) for home in homes]
    return [_flat(_part(home, homes[:rank].count(home), homes.count(home))) for rank, home in enumerate(homes)]


def _home(domains: Sequence[Domain], near: Sequence[int], rank: int) -> Cores:
    known = {domain.number: domain.cores for domain in domains}
    if near[rank] in known and near[rank] >= 0:
        return known[near[rank]]
    first = rank * len(domains) // len(near)
    last = max(first + 1, (rank + 1) * len(domains) // len(near))
    return tuple(core for domain in domains[first:last] for core in domain.cores)


def _part(cores: Cores, place: int, of: int) -> Cores:
    """One of ``of`` fair parts; where there are fewer cores than parts, some have the same one."""
    first, last = len(cores) * place // of, len(cores) * (place + 1) // of
    return cores[first : max(first + 1, last)]


def _flat(cores: Cores) -> tuple[int, ...]:
    return tuple(sorted(cpu for core in cores for cpu in core))
