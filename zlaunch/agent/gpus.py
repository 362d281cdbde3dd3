"""Level 4: the agent's eye on the GPUs: a thread that asks the driver, and what of its answer is a rank's.

A thread, since a driver whose GPU is in trouble may not answer for minutes, and the agent has more to do. It lives from
the first sample on a machine with GPUs, and lets go of the driver when it has not been asked for a while.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from msgspec import Struct

from ..systems.gpu_usage import Device, Meter, may_have_gpus, open_meter

FRESH = 10.0
"""Seconds for which an answer counts."""
IDLE = 30.0
"""Seconds without a question after which the driver is let go of."""
THRIFT = 500
"""So many times as long as an answer took of a core it is waited for the next question."""
CONTEXT = 1 << 30
"""Bytes in use on a GPU that lists no process which tell of one all the same: the driver's own are fewer."""


class Share(Struct, frozen=True):
    """What a rank has of the GPUs."""

    busy: float | None = None
    memory: int | None = None
    gpus: tuple[int, ...] = ()


def gpu_share(devices: Sequence[Device], pids: Collection[int], local_rank: int) -> Share:
    """The GPUs that have one of these processes.

    In a container the driver may list no process at all, or those of the machine, by numbers that nobody here has. A
    GPU that is in use by nobody is then taken for that of the rank whose place is its own.
    """
    found = [(i, device) for i, device in enumerate(devices) if not device.processes.keys().isdisjoint(pids)]
    if found:
        told = [size for _, device in found for pid, size in device.processes.items() if pid in pids]
        memory = None if None in told else sum(size or 0 for size in told)
    elif local_rank < len(devices) and _in_use_by_nobody(devices[local_rank]):
        found = [(local_rank, devices[local_rank])]
        memory = devices[local_rank].used
    else:
        return Share()
    busy = [device.busy for _, device in found if device.busy is not None]
    return Share(sum(busy) / len(busy) if busy else None, memory, tuple(i for i, _ in found))


def _in_use_by_nobody(device: Device) -> bool:
    return (bool(device.busy) or device.used > CONTEXT) and not any(map(_may_be_here, device.processes))


def _may_be_here(pid: int) -> bool:
    """Whether there is such a process, as far as we may know: others' are hidden from us where even the first is."""
    return os.path.exists(f"/proc/{pid}") or not os.path.exists("/proc/1")


class GpuWatch:
    """Asks in its own thread. ``seen`` tells the last answer; it is empty where there is none, or an old one."""

    def __init__(self, opened: Callable[[], Meter | None] = open_meter, there: Callable[[], bool] = may_have_gpus):
        self._open = opened
        self._there = there
        self._asked = threading.Event()
        self._thread: threading.Thread | None = None
        self._answer: tuple[float, tuple[Device, ...]] = (0.0, ())
        self._question = 0.0
        self._pause = 0.0
        self._useless = False

    def ask(self, now: float) -> None:
        """Have an answer ready for the next time."""
        if self._thread is None:
            if self._useless or not self._there():
                self._useless = True
                return
            self._thread = threading.Thread(target=self._work, name="zlaunch-gpus", daemon=True)
            self._thread.start()
        if now >= self._question + self._pause:
            self._question = now
            self._asked.set()

    def seen(self, now: float) -> tuple[Device, ...]:
        """The GPUs, as the driver told of them last."""
        at, devices = self._answer
        return devices if now - at <= FRESH + 2 * self._pause else ()

    def _work(self) -> None:
        meter: Meter | None = None
        while True:
            if not self._asked.wait(None if meter is None else self._pause + IDLE):
                _close(meter)
                meter = None
                continue
            self._asked.clear()
            at = self._question
            try:
                meter = meter or self._open()  # at times hundreds of milliseconds, but once
                if meter is None:
                    self._useless = True
                    return
                began = time.thread_time()
                self._answer = (at, meter.read())
                self._pause = (time.thread_time() - began) * THRIFT
            except Exception:  # a GPU that has fallen off its bus: there is nothing to tell of it
                _close(meter)
                meter = None
                self._pause = IDLE


def _close(meter: Meter | None) -> None:
    with suppress(Exception):
        if meter is not None:
            meter.close()
