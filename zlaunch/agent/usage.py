"""Level 4: what the ranks of this host use, told every few seconds while they run.

A rank is its process and all below it. Their times and memory are in /proc/PID/stat, 20 µs a process; who they are is
in the lists of children, one for each thread, of which the first is read often and the others are read seldom. All of
it adapts: whatever the host, a sample costs a thousandth of the time until the next one at most. Memory is RSS: PSS,
which counts what is shared once, is summed up page by page under a lock that the rank needs for its own allocations.

Nothing is asked while no rank runs, and none that ends within a second is seen at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress

from msgspec import Struct

from ..model import RankUsage, Seat
from ..protocol import messages as m
from ..systems.gpu_usage import Device
from ..systems.processes import children
from .gpus import GpuWatch, gpu_share
from .processes import RankProcess

Key = tuple[str, int]

FIRST = 1.0
"""Seconds from the first rank's start to the first sample."""
PERIOD = 2.0
"""Seconds between samples."""
HOSTS_PER_SECOND = 100
"""Samples that the supervisor is sent a second, of some 50 µs each: of more than 200 hosts each speaks less often."""
LOOK = 5.0
"""Seconds between looks for processes that are new."""
THRIFT = 1000
"""So many times as long as a sample took it is waited for the next one."""
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Process(Struct, frozen=True):
    """A process, at one moment."""

    started: float
    """Seconds since the machine's start."""
    spent: float
    """Seconds of all cores, with those of children that it has waited for."""
    memory: int


def parse(stat: bytes) -> Process:
    """What /proc/PID/stat says (proc_pid_stat(5)). Raises ValueError or IndexError for what is none."""
    fields = stat[stat.rindex(b")") + 2 :].split()
    spent = sum(map(int, fields[11:15])) / TICKS
    return Process(int(fields[19]) / TICKS, spent, int(fields[21]) * PAGE)


class Account:
    """The processes of one rank, from sample to sample. Pure.

    A process that has ended has left its time with its parent, if that has waited for it. One that was there before it
    was first seen counts from then on only.
    """

    def __init__(self) -> None:
        self._before: dict[int, Process] = {}
        self._at: float | None = None

    def used(self, processes: Mapping[int, Process], root: int, now: float, cores: int) -> tuple[float, int]:
        """Percent of a core since the last time (at first: since ``root``'s start), and bytes."""
        since = self._at if self._at is not None else processes[root].started
        gone = dict(self._before)
        spent = 0.0
        for pid, process in processes.items():
            before = gone.pop(pid, None)
            if before is not None and before.started == process.started:
                spent += process.spent - before.spent
            elif process.started >= since - 1 / TICKS:
                spent += process.spent
        spent -= sum(process.spent for process in gone.values())
        self._before, self._at = dict(processes), now
        percent = 100.0 * spent / max(now - since, 1 / TICKS)
        return min(max(percent, 0.0), 100.0 * cores), sum(process.memory for process in processes.values())


class _Watched(Struct):
    """A rank that is looked at."""

    account: Account
    pids: tuple[int, ...]
    """Its processes, as far as their parents' first threads have them as children."""
    others: tuple[int, ...] = ()
    """Those that other threads have started."""
    searched: float = 0.0


class UsageSampler:
    """Looks at the ranks from time to time, and sends what they use."""

    def __init__(
        self,
        ranks: Mapping[tuple[Key, int], RankProcess],
        send: Callable[[m.Usage], None],
        gpus: GpuWatch | None = None,
    ) -> None:
        self._ranks = ranks
        self._send = send
        self._gpus = gpus or GpuWatch()
        self._places: dict[int, int] = {}
        self._watched: dict[int, _Watched] = {}
        self._period = PERIOD
        self._lag = 0.0
        self._next: float | None = None
        self._look_at = self._search_at = 0.0
        self._cores = len(os.sched_getaffinity(0))

    def sits(self, seat: Seat) -> None:
        """A rank is about to start. Of many hosts each speaks less often, and not all at once."""
        self._period = max(PERIOD, seat.nodes / HOSTS_PER_SECOND)
        self._lag = seat.node_rank * self._period / max(1, seat.nodes)
        self._places[seat.rank] = seat.local_rank

    def deadline(self) -> float | None:
        """When ``tick`` wants to be called."""
        if not self._ranks:
            self._next = None
            return None
        if self._next is None:
            self._next = time.monotonic() + FIRST + self._lag
        return self._next

    def tick(self, now: float) -> None:
        """Take a sample, if it is time for one."""
        if self._next is None or now < self._next or not self._ranks:
            return
        began = time.thread_time()
        alive = {rank.pid: rank for rank in self._ranks.values() if rank.pid and rank.died_at is None}
        self._look(alive.keys(), now)
        devices = self._gpus.seen(now)
        for key in {rank.key for rank in alive.values()}:
            ours = [rank for rank in alive.values() if rank.key == key]
            used = tuple(use for rank in ours if (use := self._use(rank, devices)) is not None)
            if used:
                self._send(m.Usage(*key, now, used))
        if alive:
            self._gpus.ask(now)
        self._next = now + max(self._period, (time.thread_time() - began) * THRIFT)
        self._search(now)

    def _look(self, alive: Set[int], now: float) -> None:
        """Who is below each rank; quickly, and so not quite all."""
        for pid in self._watched.keys() - alive:
            del self._watched[pid]
        due = now >= self._look_at
        self._look_at = now + LOOK if due else self._look_at
        for pid in alive:
            watched = self._watched.get(pid)
            if watched is None:
                self._watched[pid] = _Watched(Account(), tree(pid, first_children))
            elif due:
                watched.pids = tree(pid, first_children)

    def _search(self, now: float) -> None:
        """All who are below one of the ranks, in turns: a thread's list takes 15 µs, and there may be hundreds."""
        if now < self._search_at or not self._watched:
            return
        began = time.thread_time()
        pid, watched = min(self._watched.items(), key=lambda item: item[1].searched)
        watched.searched = now
        watched.others = tuple(found for found in tree(pid, children) if found not in watched.pids)
        self._search_at = now + (time.thread_time() - began) * 2 * THRIFT

    def _use(self, rank: RankProcess, devices: Sequence[Device]) -> RankUsage | None:
        watched = self._watched[rank.pid]
        processes = read({*watched.pids, *watched.others})
        if rank.pid not in processes or not processes[rank.pid].memory:
            return None  # it is about to end, and its memory is no more
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
        cpu, memory = watched.account.used(processes, rank.pid, uptime, self._cores)
        share = gpu_share(devices, processes.keys(), self._places.get(rank.rank, 0))
        return RankUsage(rank.rank, round(cpu, 1), memory, share.busy, share.memory, share.gpus)


def tree(root: int, children_of: Callable[[int], Iterable[int]]) -> tuple[int, ...]:
    """A process and all below it."""
    found = [root]
    for pid in found:
        found += children_of(pid)
    return tuple(found)


def first_children(pid: int) -> list[int]:
    """What the first thread of a process has started, in one read (proc_pid_task(5)); empty where nobody tells."""
    with suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as file:
        return [int(child) for child in file.read().split()]
    return []


def read(pids: Iterable[int]) -> dict[int, Process]:
    """Those of the processes that are still there."""
    found = {}
    for pid in pids:
        with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            found[pid] = parse(file.read())
    return found
