"""Level 2: all processes below one, and their end. Agents and fork templates are subreapers, so "all" is exact.

An orphan becomes a child of the nearest subreaper above it, whatever sessions and forks it went through. So killing
is: list, SIGKILL, reap, and again until the list is empty; what is forked meanwhile is found in the next round.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress

from ..model import Survivor

PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 5.0
"""Seconds that a process may take to die of SIGKILL before it is called a survivor (one in disk wait may need more)."""


def become_subreaper() -> None:
    """Adopt every orphan among our descendants (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    import ctypes  # not at the agent's start: it has nothing below it before its first template

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> dict[int, str]:
    """All processes below ``root`` that are not dead: pid and name.

    Empty is exact. The kernel gives a process's children in one piece, and whatever is below a subreaper is below one
    of its children. A list of all the machine's processes misses the one that is forked after the list was begun, by a
    parent that has ended before it was looked at: an ordinary daemon, as its rank ends. Here such a parent is a dead
    one that was not known to be dead when the list was made, and so the list is made again.
    """
    known: set[int] = set()
    while True:
        found, dead = _look(root)
        if dead <= known:
            return found
        known = dead


def _look(root: int) -> tuple[dict[int, str], set[int]]:
    """Who is below ``root``: the living with their names, and the dead."""
    found: dict[int, str] = {}
    dead: set[int] = set()
    todo = [root]
    while todo:
        for pid in children(todo.pop()):
            if pid in found or pid in dead:
                continue
            todo.append(pid)
            name = _name_of_living(pid)
            if name:
                found[pid] = name
            else:
                dead.add(pid)
    return found, dead


def children(pid: int) -> list[int]:
    """The children of a process, dead ones that nobody has waited for among them (proc_pid_task(5))."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                    found += map(int, file.read().split())
            except FileNotFoundError:
                if os.path.exists(f"/proc/{pid}/task/{task}/stat"):
                    return _listed_children(pid)
    return found


def _listed_children(pid: int) -> list[int]:
    """As ``children``, on a kernel that was built without them (CONFIG_PROC_CHILDREN)."""
    import psutil  # 50 ms, which must not stand between an agent's start and its template's

    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children()]
    return []


def _name_of_living(pid: int) -> str:
    """A process's name; empty where it is dead. One whose first thread alone has ended looks dead at first sight."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b")")
    except OSError:
        return ""
    state, threads = (fields := tail.split())[0], int(fields[17])
    return head.partition(b"(")[2].decode(errors="replace") if state not in b"ZX" or threads > 1 else ""


def kill_all(root: int, spare: Collection[int] = (), patience: float = PATIENCE) -> tuple[Survivor, ...]:
    """SIGKILL everything below ``root`` but ``spare``, wait for it, and return what would not die.

    What has become a child of this process is reaped, but for ``spare``.
    """
    pause = 0.001
    give_up = time.monotonic() + patience
    while True:
        alive = {pid: name for pid, name in descendants(root).items() if pid not in spare}
        for pid in alive:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        reap(spare)
        if not alive:
            return ()
        if time.monotonic() > give_up:
            return tuple(Survivor("", pid, name) for pid, name in sorted(alive.items()))
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def reap(spare: Collection[int]) -> None:
    """Wait for dead children, those that were adopted among them, but not for ``spare``."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid in spare:
            return
        with suppress(ChildProcessError):
            os.waitpid(info.si_pid, os.WNOHANG)
