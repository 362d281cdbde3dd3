"""Level 2: how much of this machine is ours - cores, memory, NUMA domains. Only reads /proc and /sys.

A container's or a batch job's share is smaller than its machine: the affinity mask says which cores we may
run on, the control groups how much of their time and how much memory we get. Each function takes the folder
that stands for ``/``, so that a test can lay a machine out as files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeAlias

Folder: TypeAlias = str | os.PathLike[str]


def usable_cores(root: Folder = "/") -> int:
    """The cores of our affinity mask, or fewer where a control group grants less time than they have."""
    mask = len(os.sched_getaffinity(0))
    quotas = [quota for quota in map(_cpu_quota, _group_folders("cpu", root)) if quota]
    return max(1, min([mask, *quotas]))


def usable_memory(root: Folder = "/") -> int:
    """Bytes: the machine's memory, or the least that a control group allows. 0 where nobody says."""
    total = 0
    for line in _read(root, "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
            break
    limits = [limit for limit in map(_memory_limit, _group_folders("memory", root)) if limit]
    return min([total, *limits]) if total else min(limits, default=0)


def numa_domains(root: Folder = "/", mask: frozenset[int] | None = None) -> int:
    """NUMA nodes that have a core of ours; at least 1. Nodes of memory alone (CXL, HBM) do not count."""
    ours = frozenset(os.sched_getaffinity(0)) if mask is None else mask
    folder, nodes = os.path.join(root, "sys/devices/system/node"), []
    with suppress(OSError):
        nodes = [name for name in os.listdir(folder) if name.startswith("node") and name[4:].isdigit()]
    lists = [_read(folder, node, "cpulist") for node in nodes]
    return max(1, sum(1 for text in lists if ours & parse_cpu_list(text)))


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's way to write a set of cores: ``0-3,8`` is ``{0, 1, 2, 3, 8}``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return frozenset(found)


def boot_id(root: Folder = "/") -> str:
    """The same for all processes of one boot of one kernel; empty where /proc does not tell."""
    return _read(root, "proc/sys/kernel/random/boot_id").strip()


# --- control groups -----------------------------------------------------------------------------------------


def _group_folders(controller: str, root: Folder) -> Iterator[str]:
    """Our control group's folder and all above it, in version 2 and in version 1's tree of ``controller``."""
    ours = dict(_memberships(_read(root, "proc/self/cgroup")))
    for line in _read(root, "proc/self/mountinfo").splitlines():
        mount, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        if kind == "cgroup2":
            path = ours.get("")
        elif kind == "cgroup" and controller in options.split()[-1].split(","):
            path = ours.get(controller)
        else:
            continue
        if path is None:
            continue
        # In a container the mount shows a part of the tree only, whose top is field 4; our path starts at the
        # tree's own top, or at the mount's where the container has a namespace of its own.
        top, point = mount.split()[3:5]
        parts, above = _parts(path), _parts(top)
        below = [part for part in parts[len(above) :] if part != ".."] if parts[: len(above)] == above else []
        for depth in range(len(below), -1, -1):
            yield os.path.join(root, point.lstrip("/"), *below[:depth])


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    """``(controller, path)`` of each line ``number:controllers:path``; version 2's controller is empty."""
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            yield controller, path


def _cpu_quota(folder: str) -> int | None:
    """Cores whose whole time the group may use, rounded up; ``None`` where it has no limit."""
    words = _read(folder, "cpu.max").split()
    if len(words) != 2:
        words = [_read(folder, "cpu.cfs_quota_us").strip(), _read(folder, "cpu.cfs_period_us").strip()]
    if not all(word.isdigit() for word in words) or not int(words[1]):
        return None  # "max", -1 or no such file
    return -(-int(words[0]) // int(words[1])) or None


def _memory_limit(folder: str) -> int | None:
    """Bytes; ``None`` where the group has no limit (version 1 writes a number of 2**63 or so for that)."""
    word = _read(folder, "memory.max").strip() or _read(folder, "memory.limit_in_bytes").strip()
    return int(word) if word.isdigit() and 0 < int(word) < 1 << 60 else None


def _read(folder: Folder, *path: str) -> str:
    try:
        with open(os.path.join(folder, *path), "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""
