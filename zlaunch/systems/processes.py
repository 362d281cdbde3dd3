"""Level 2: all processes below one, and their end. Agents and fork templates are subreapers, so "all" is exact.

An orphan becomes a child of the nearest subreaper above it, whatever sessions and forks it went through. So killing
is: list, SIGKILL, reap, and again until the list is empty; what is forked meanwhile is found in the next round.
"""

from __future__ import annotations

import ctypes
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
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> dict[int, str]:
    """All processes below ``root`` that are not zombies: pid and name."""
    import psutil  # 50 ms, which must not stand between an agent's start and its template's

    found: dict[int, str] = {}
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(root).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    found[process.pid] = process.name()
    return found


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
