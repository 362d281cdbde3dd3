"""Level 2: how this machine's cores lie: by NUMA domain, and by core with its hardware threads. Only reads /sys.

Only those of our affinity mask count, which is where an allocation or a container says what is ours. Each function
takes the folder that stands for ``/``, as in ``limits``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from ..model import Domain
from .limits import Folder, parse_cpu_list

_NODES = "sys/devices/system/node"
_CPUS = "sys/devices/system/cpu"


def domains(root: Folder = "/", mask: frozenset[int] | None = None) -> tuple[Domain, ...]:
    """The NUMA domains that have a core of ours; one of the number -1 where the kernel knows none."""
    ours = frozenset(os.sched_getaffinity(0)) if mask is None else mask
    found = [Domain(number, _cores(root, ours & cpus)) for number, cpus in sorted(_nodes(root)) if ours & cpus]
    return tuple(found) or (Domain(-1, _cores(root, ours)),)


def domain_of(bus: str, root: Folder = "/") -> int:
    """The NUMA node that a PCI device is at; -1 where nobody knows. ``bus`` is ``0000:3b:00.0``, in any case."""
    domain, _, rest = bus.strip("\0").lower().partition(":")
    with suppress(OSError, ValueError):
        path = os.path.join(root, "sys/bus/pci/devices", f"{domain[-4:]}:{rest}", "numa_node")
        with open(path, encoding="ascii") as file:
            return int(file.read())
    return -1


def _nodes(root: Folder) -> Iterator[tuple[int, frozenset[int]]]:
    with suppress(OSError):
        for name in os.listdir(os.path.join(root, _NODES)):
            if name.startswith("node") and name[4:].isdigit():
                yield int(name[4:]), _list(root, _NODES, name, "cpulist")


def _cores(root: Folder, cpus: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    """Each core as its hardware threads that are ours, in the order of their first."""
    left, found = set(cpus), []
    while left:
        first = min(left)
        threads = _list(root, _CPUS, f"cpu{first}", "topology", "thread_siblings_list") & left | {first}
        found.append(tuple(sorted(threads)))
        left -= threads
    return tuple(found)


def _list(root: Folder, *path: str) -> frozenset[int]:
    try:
        with open(os.path.join(root, *path), encoding="ascii") as file:
            return parse_cpu_list(file.read())
    except OSError:
        return frozenset()
