"""Launchers on the bed's hosts, ears for what their ranks say, and the wait until nothing of them is alive."""

from __future__ import annotations

import logging
import os
import queue
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import far_steps
from bed import Bed

import zlaunch
from zlaunch.result import Run

PATIENCE = 60.0


def far(bed: Bed, *hosts: str, **fields: Any) -> zlaunch.Launcher:
    """A launcher on some of the bed's hosts (all by default): one rank each, nothing preloaded, no process group."""
    chosen = {"workers_per_host": 1, "backend": None, "preload": (), "view": "none", "grace_period": 2, **fields}
    return zlaunch.Launcher(hostnames=list(hosts or bed.hosts), ssh_config_file=bed.ssh_config, **chosen)


class Ears(logging.Handler):
    """What ranks have printed, as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: queue.Queue[logging.LogRecord] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.put(record)

    def pids(self, count: int) -> dict[str, list[int]]:
        """Wait until ``count`` ranks of ``far_steps.stay`` have said who they are; their pids there, by host."""
        said: dict[int, tuple[str, int]] = {}
        while len(said) < count:
            record = self.heard.get(timeout=PATIENCE)
            words = record.getMessage().split()
            if words and words[0] == "here":
                said[int(words[1])] = record.hostname, int(words[2])  # type: ignore[attr-defined]
        found: dict[str, list[int]] = {}
        for _, (host, pid) in sorted(said.items()):
            found.setdefault(host, []).append(pid)
        return found


@contextmanager
def staying(bed: Bed, *hosts: str, deaf: bool = False, **fields: Any) -> Iterator[Stay]:
    """Ranks that stay on some hosts until something happens to them."""
    ears = Ears()
    launcher = far(bed, *hosts, **fields).set_logging_handlers(lambda: [ears])
    with suppress(zlaunch.ZlaunchError), launcher:
        run = launcher.submit(far_steps.stay, deaf)
        count = launcher.workers_per_host
        assert isinstance(count, int)
        yield Stay(bed, launcher, run, ears.pids(count * len(launcher.hostnames)))
        run.cancel(0)


class Stay:
    """Ranks that stay, and what becomes of them. Times are in seconds since ``begin``."""

    def __init__(self, bed: Bed, launcher: zlaunch.Launcher, run: Run[None], pids: dict[str, list[int]]) -> None:
        self.bed, self.launcher, self.run, self.pids = bed, launcher, run, pids
        self._pidfds = {host: _watch(bed, host) for host in pids}
        self._begun = time.monotonic()

    def rank(self, host: str, index: int = 0) -> int:
        """A rank's pid, as this machine has it."""
        return self.bed.pid_in_root(host, self.pids[host][index])

    def agent(self, host: str) -> int:
        """The agent's."""
        (pid,) = [pid for pid, command in self.bed.processes(host) if command.split()[-1:] == [f"zlaunch-agent:{host}"]]
        return self.bed.pid_in_root(host, pid)

    def begin(self) -> None:
        """Now it happens."""
        self._begun = time.monotonic()

    def error(self) -> tuple[BaseException | None, float]:
        """What is raised, and when."""
        error = self.run.exception(PATIENCE)
        return error, time.monotonic() - self._begun

    def gone(self, host: str) -> float:
        """Wait until nothing is alive on a host; when that was."""
        open_fds = dict.fromkeys(self._pidfds.pop(host))
        poll = select.poll()
        for fd in open_fds:
            poll.register(fd, select.POLLIN)
        while open_fds:
            left = self._begun + PATIENCE - time.monotonic()
            ready = poll.poll(left * 1000)
            assert ready, f"alive on {host}: {self.bed.processes(host)}"
            for fd, _ in ready:
                poll.unregister(fd)
                os.close(fd)
                del open_fds[fd]
        return time.monotonic() - self._begun


def _watch(bed: Bed, host: str) -> list[int]:
    fds = []
    for pid, _ in bed.processes(host):
        with suppress(ProcessLookupError):
            fds.append(os.pidfd_open(bed.pid_in_root(host, pid)))
    return fds
