"""Level 5: the runs of this user, as files of the state directory: one per run, from its start to its end.

Homes are shared, so an entry's process may be on another machine. Only where it lives can anybody tell that it has
ended: that host is told by its boot id, and the process by its pid (in which namespace) and the time of its start, so
that neither a pid that came again nor a container that shares the home can be mistaken. There the entry is removed;
anywhere else it stays. An entry has the key by which its run is watched and stopped: the file is its owner's alone.

What was started with ``--detach`` is remembered for a while after its end, without a key: nobody saw how it ended.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

import msgspec

from ..link.ticket import Ticket
from . import files
from .files import LATEST

KEPT_FOR = 7 * 24 * 3600.0
"""Seconds that a detached run is remembered for after its end."""
ENDED_LIMIT = 100
"""Runs that have ended and are remembered, the last ones."""
KIND = "run-"

Whereabouts = Literal["here", "gone", "elsewhere"]
"""Of an entry's process: alive on this machine, ended, or on a machine that we are not on."""


class Place(msgspec.Struct, frozen=True):
    """A process, so that nobody takes another one for it."""

    hostname: str
    boot: str
    """The kernel's boot id, and the pid namespace."""
    machine: str
    """``/etc/machine-id``; empty where there is none."""
    pid: int
    started: int
    """In clock ticks since the boot."""


class RunEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A run."""

    run: str
    name: str
    argv: tuple[str, ...]
    """The command line of the process that started it."""
    place: Place
    """Where its supervisor is."""
    started: float
    """When it was submitted, in seconds since 1970."""
    hosts: tuple[tuple[str, int], ...]
    """In the order of ranks, each with its number of ranks."""
    state: str
    """``queued``, ``running``; once it has ended ``succeeded``, ``failed``, ``cancelled``, ``timed out``, ``lost``."""
    grace: float = 30.0
    """Seconds that ranks get from SIGTERM to SIGKILL."""
    log_folder: str = ""
    """Where its log files are; empty: there are none."""
    detached: bool = False
    console: str = ""
    """Then, the file that has what a terminal would have shown; empty: there is none."""
    scheduler: str = ""
    job: str = ""
    """The scheduler's job that it is in, if it is in one."""
    ticket: Ticket | None = None
    """How it is watched; ``None``: it cannot be, or has ended."""
    ended: float = 0.0
    """When it ended; 0: it has not."""
    status: int = 0
    """Its exit status, then."""

    @property
    def size(self) -> int:
        """How many ranks it has."""
        return sum(ranks for _, ranks in self.hosts)


class Found(NamedTuple):
    """What a look into the folder gave."""

    runs: tuple[RunEntry, ...]
    """In the order in which they were started."""
    odd: tuple[str, ...]
    """Files that cannot be read as entries, or are not ours."""


def here(pid: int | None = None) -> Place:
    """This process, or another one of this machine."""
    return Place(os.uname().nodename, _boot(), _line("/etc/machine-id"), pid or os.getpid(), ticks(pid or os.getpid()))


def ticks(pid: int) -> int:
    """When a process was started, in clock ticks since the boot; 0 where there is none (proc(5): field 22 of stat)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def whereabouts(place: Place) -> Whereabouts:
    """Whether the process is there."""
    boot = _boot()
    if place.boot == boot:
        return "here" if ticks(place.pid) == place.started else "gone"
    same_kernel = boot.partition(" ")[0] == place.boot.partition(" ")[0]
    machine = _line("/etc/machine-id")
    rebooted = not same_kernel and machine != "" and (place.machine, place.hostname) == (machine, os.uname().nodename)
    return "gone" if rebooted else "elsewhere"


def path(run: str) -> str:
    """The file of a run."""
    return os.path.join(files.folder(), f"{KIND}{run}.json")


def enter(entry: RunEntry) -> None:
    """Write down a run, or what is new of it. Raises OSError."""
    files.prepared()
    files.write(path(entry.run), entry)


def remove(run: str) -> None:
    """Forget a run that has ended. Where that cannot be done somebody will find out once more."""
    with suppress(OSError):
        os.unlink(path(run))


def end(entry: RunEntry, outcome: str, status: int) -> None:
    """Its run has ended: forget it, or for a detached one remember only how."""
    if not entry.detached:
        remove(entry.run)
        return
    done = msgspec.structs.replace(entry, state=outcome, status=status, ended=time.time(), ticket=None)
    with suppress(OSError):
        files.write(path(entry.run), done)


def look() -> Found:
    """All runs that are written down; those that have ended here are removed first.

    Raises:
        OSError: the folder cannot be read, or belongs to somebody else.
    """
    runs: list[RunEntry] = []
    odd: list[str] = []
    for file in files.names(KIND):
        try:
            entry = _read(file)
        except FileNotFoundError:
            continue  # it has just ended
        except (OSError, ValueError, RecursionError):
            odd.append(file)
            continue
        if not entry.ended and whereabouts(entry.place) == "gone":
            remove(entry.run)
        else:
            runs.append(entry)
    return Found(tuple(sorted(runs, key=lambda entry: entry.started)), tuple(odd))


def forget() -> None:
    """Those that have ended here without a word, or long ago. Nothing is raised."""
    with suppress(OSError):
        place = files.folder()
        files.sweep(place, KIND)
        _superfluous(look().runs)


def _superfluous(found: Sequence[RunEntry]) -> None:
    ended = sorted((entry for entry in found if entry.ended), key=lambda entry: entry.ended)
    over = ended[: max(0, len(ended) - ENDED_LIMIT)]
    for entry in [*over, *(entry for entry in ended if entry.ended < time.time() - KEPT_FOR)]:
        remove(entry.run)


def _read(file: str) -> RunEntry:
    entry = files.read(file, RunEntry)
    if not (0 <= entry.started < LATEST and 0 <= entry.ended < LATEST and math.isfinite(entry.grace)):
        raise ValueError("no times")
    if os.path.basename(file) != os.path.basename(path(entry.run)):
        raise ValueError("another run's name")
    return entry


def _boot() -> str:
    try:
        return f"{_line('/proc/sys/kernel/random/boot_id')} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return _line("/proc/sys/kernel/random/boot_id")


def _line(file: str) -> str:
    try:
        with open(file, errors="replace") as opened:
            return opened.readline().strip()
    except OSError:
        return ""


def ticket(entry: RunEntry) -> Ticket | None:
    """How a run is reached from here; ``None`` where it cannot be. Another machine's loopback is none of ours."""
    if entry.ticket is None:
        return None
    if _boot().partition(" ")[0] == entry.place.boot.partition(" ")[0]:
        return entry.ticket
    away = tuple(end for end in entry.ticket.endpoints if not end.startswith("tcp://127."))
    return msgspec.structs.replace(entry.ticket, endpoints=away) if away else None
