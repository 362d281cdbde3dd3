"""For the tests of deaths: who is there, told by the processes themselves, and whether they are gone.

A ``Roll`` is a named pipe into which every process of a test writes its role and pid, once it stands where the test
wants it. The test holds a pidfd of each from then on: that one becomes readable with the process's end, zombie or not,
and never means another process of the same number.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = 40.0
"""Seconds until a process that does not say its name has failed the test; the machine may be busy."""


class Roll:
    """The processes of one test."""

    def __init__(self, folder: Path, name: str = "roll") -> None:
        self.path = str(folder / name)
        os.mkfifo(self.path)
        self._pipe = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        self.pids: dict[str, list[int]] = {}
        self._pidfds: dict[int, int] = {}

    def expect(self, **counts: int) -> dict[str, list[int]]:
        """Wait until so many of each role have said their pid; all pids by role."""
        deadline = time.monotonic() + PATIENCE
        while missing := {role: n for role, n in counts.items() if len(self.pids.get(role, ())) < n}:
            left = deadline - time.monotonic()
            assert left > 0, f"missing: {missing}; there are {self.pids}"
            if select.select([self._pipe], [], [], left)[0]:
                *lines, self._rest = (self._rest + os.read(self._pipe, 65536)).split(b"\n")
                for line in lines:
                    role, pid = line.decode().split()
                    self._note(role, int(pid))
        return self.pids

    def _note(self, role: str, pid: int) -> None:
        known = self.pids.setdefault(role, [])
        if pid in known:
            return
        known.append(pid)
        if pid in self._pidfds:
            return
        with contextlib.suppress(ProcessLookupError):  # else it is gone already
            self._pidfds[pid] = os.pidfd_open(pid)

    def alive(self, within: float = 0.0, but: str = "") -> list[str]:
        """Who is still there after ``within`` seconds at most, as ``role pid``; not counting the role ``but``."""
        deadline = time.monotonic() + within
        while True:
            left = {
                pid: f"{role} {pid}"
                for role, pids in self.pids.items()
                for pid in pids
                if role != but and pid in self._pidfds and not select.select([self._pidfds[pid]], [], [], 0)[0]
            }
            wait = deadline - time.monotonic()
            if not left or wait <= 0:
                return sorted(left.values())
            select.select([self._pidfds[next(iter(left))]], [], [], wait)

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> float:
        """Send a signal to the only process of a role; the time at which."""
        (pid,) = self.pids[role]
        signal.pidfd_send_signal(self._pidfds[pid], number)
        return time.monotonic()

    def close(self) -> None:
        """End what has been left, whatever the test found; but agents and templates may be those of many tests."""
        spared = {pid for role in ("agent", "template") for pid in self.pids.get(role, ())}
        for pid, fd in self._pidfds.items():
            with contextlib.suppress(ProcessLookupError):
                if pid not in spared:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        self._pidfds.clear()
        if self._pipe >= 0:
            os.close(self._pipe)
        self._pipe = -1


def sign(roll: str, role: str, pid: int | None = None) -> None:
    """Say that a process (this one) is there."""
    fd = os.open(roll, os.O_WRONLY)
    os.write(fd, f"{role} {pid or os.getpid()}\n".encode())
    os.close(fd)


def sign_rank(roll: str) -> None:
    """Say that a rank is there, and below whom it is."""
    template = os.getppid()
    sign(roll, "rank")
    sign(roll, "template", template)
    sign(roll, "agent", parent_of(template))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def sleep_for_ever() -> NoReturn:
    while True:
        time.sleep(600)


def be_deaf() -> None:
    """Ignore whatever asks to end."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def daemonise(roll: str) -> None:
    """Leave a process with a session of its own and no parent, that holds all that we have open."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            be_deaf()
            sign(roll, "daemon")
            sleep_for_ever()
        os._exit(0)
    os.waitpid(child, 0)


def fork_one(roll: str) -> None:
    """Leave a child that never execs, and holds all that we have open."""
    if os.fork() == 0:
        be_deaf()
        sign(roll, "forked")
        sleep_for_ever()


def leave_program(roll: str) -> None:
    """Leave a program of another kind behind."""
    sign(roll, "program", subprocess.Popen(["sleep", "600"]).pid)


def leave_pool(roll: str) -> None:
    """Leave children of multiprocessing. A Python that returns ends them itself; one that is killed cannot."""
    for _ in range(2):
        multiprocessing.get_context("fork").Process(target=_in_pool, args=(roll,), daemon=True).start()


def _in_pool(roll: str) -> None:
    sign(roll, "pool")
    sleep_for_ever()


LEAVE = {"daemon": daemonise, "forked": fork_one, "program": leave_program, "pool": leave_pool}


def environment(**more: str) -> dict[str, str]:
    """Of a program that uses zlaunch as it lies here."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ZLAUNCH")}
    return {**env, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **more}


def start_program(name: str, *arguments: str, folder: Path, **more: str) -> subprocess.Popen[bytes]:
    """One of the programs beside us, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / name), *arguments],
        cwd=folder,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
