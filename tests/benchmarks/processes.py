"""Benchmarks: programs started, timed, limited and cleaned up after. Knows nothing of what is measured.

The benchmark adopts every orphan (a subreaper), so what a launcher leaves behind is found, counted, and ended by pid.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

PROGRAMS = Path(__file__).resolve().parent / "programs"
_PR_SET_CHILD_SUBREAPER = 36
_SETTLING = 3.0
"""Seconds that a launcher's processes are given to go after it has said that it was done."""


class Failed(Exception):
    """A measurement did not come to its end; the text says why."""


def adopt_orphans(adopt: bool = True) -> None:
    """Become the parent of whatever our children leave behind from now on, or be it no more."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def tool(name: str) -> list[str]:
    """The command line of a program that is installed beside this Python."""
    found = Path(sys.executable).parent / name
    if found.is_file():
        return [str(found)]
    return [sys.executable, "-m", {"torchrun": "torch.distributed.run"}.get(name, name)]


def python(program: str) -> list[str]:
    """The command line of one of the programs of this folder."""
    return [sys.executable, str(PROGRAMS / program)]


@dataclass
class Running:
    """A program that was started; ``output`` has its stderr, and its stdout where no other file was given."""

    process: subprocess.Popen[bytes]
    began: float
    output: Path

    def wait(self, limit: float) -> float:
        """When it had ended, on the monotonic clock. Raises Failed where it needs more seconds, or failed."""
        ended = self._ended(limit)
        if self.process.returncode != 0:
            raise Failed(f"it ended with status {self.process.returncode}: {self.said()}")
        return ended

    def wait_failed(self, limit: float) -> float:
        """As ``wait``, for a program that is expected to fail. Raises Failed where it did not."""
        ended = self._ended(limit)
        if self.process.returncode == 0:
            raise Failed("it ended with status 0")
        return ended

    def _ended(self, limit: float) -> float:
        pidfd = os.pidfd_open(self.process.pid)  # Popen.wait(timeout) looks only every 50 ms
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            ready = poll.poll(limit * 1000)
            ended = time.monotonic()
        finally:
            os.close(pidfd)
        if not ready:
            end_tree(self.process.pid)
            self.process.wait()
            raise Failed(f"it had not ended after {limit:g} s: {self.said()}")
        self.process.wait()
        return ended

    def said(self) -> str:
        """The last of its output, for errors."""
        return self.output.read_text(errors="replace")[-1500:].strip()


@dataclass
class Workshop:
    """A scratch folder, and the processes that are at work in it."""

    folder: Path
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    drivers: dict[str, Driver] = field(default_factory=dict)
    count: int = 0
    lasted: dict[Callable[[Workshop], AbstractContextManager[Any]], Any] = field(default_factory=dict)
    ends: ExitStack = field(default_factory=ExitStack)

    def lasting(self, make: Callable[[Workshop], AbstractContextManager[T]]) -> T:
        """What is made at its first use, and lasts until ``close``."""
        if make not in self.lasted:
            self.lasted[make] = self.ends.enter_context(make(self))
        found: T = self.lasted[make]
        return found

    def new_folder(self) -> Path:
        """An empty folder of its own for a measurement."""
        self.count += 1
        made = self.folder / f"{self.count:03d}"
        made.mkdir()
        return made

    def start(
        self,
        argv: Sequence[str],
        folder: Path,
        env: dict[str, str] | None = None,
        stdout: Path | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> Running:
        """Start a program in a folder, in a session of its own and with nothing on its stdin."""
        output = folder / "output"
        with output.open("ab") as said, (stdout or output).open("ab") as printed:
            began = time.monotonic()
            process = subprocess.Popen(
                list(argv),
                cwd=folder,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=said,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.running[process.pid] = process
        return Running(process, began, output)

    def timed(self, argv: Sequence[str], limit: float, env: dict[str, str] | None = None) -> float:
        """Seconds from the start of a program to its end. Raises Failed."""
        running = self.start(argv, self.new_folder(), env)
        return running.wait(limit) - running.began

    def driver(self, product: str, env: dict[str, str] | None = None, within: tuple[str, ...] = ()) -> Driver:
        """The driver of a product, started at its first use; it goes on until ``close_drivers``.

        ``within`` is a program that becomes the one that its further arguments name.
        """
        key = product + json.dumps((env, within))
        if key not in self.drivers:
            ours, theirs = socket.socketpair()
            with theirs:
                argv = [*within, *python("driver.py"), product, str(theirs.fileno())]
                running = self.start(argv, self.new_folder(), env, pass_fds=(theirs.fileno(),))
            self.drivers[key] = Driver(running, ours)
        return self.drivers[key]

    def close_drivers(self) -> None:
        """End the drivers, with the agents that they keep."""
        for driver in self.drivers.values():
            driver.close()
        self.drivers.clear()

    def sweep(self) -> int:
        """End what was left behind, after a moment in which it may go by itself; returns how many had to be ended."""
        ours = {driver.running.process.pid for driver in self.drivers.values()}
        deadline = time.monotonic() + _SETTLING
        while (left := self._left(ours)) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in left:
            end_tree(process.pid)
        self._left(ours)
        return len(left)

    def _left(self, ours: set[int]) -> list[psutil.Process]:
        """Children of ours, born or adopted, that are alive and are no driver; the dead are reaped."""
        for pid, started in list(self.running.items()):
            if started.poll() is not None:
                del self.running[pid]
        alive = []
        for child in psutil.Process().children():
            if child.pid in ours:
                continue
            with suppress(psutil.NoSuchProcess, ChildProcessError):
                if child.status() != psutil.STATUS_ZOMBIE:
                    alive.append(child)
                elif child.pid not in self.running:
                    os.waitpid(child.pid, os.WNOHANG)
        return alive

    def close(self) -> None:
        """End everything."""
        self.close_drivers()
        self.ends.close()
        self.sweep()


@dataclass
class Driver:
    """A program that launches functions as it is asked to; see ``programs/driver.py``."""

    running: Running
    wire: socket.socket

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer. Raises Failed."""
        self.tell(**request)
        return self.answer(limit)

    def tell(self, **request: Any) -> None:
        """Ask for something. Raises Failed where the driver is dead."""
        try:
            self.wire.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise Failed(f"the driver is gone: {self.running.said()}") from error

    def answer(self, limit: float) -> dict[str, Any]:
        """Wait for the answer. Raises Failed; after a limit that was passed the driver is dead."""
        self.wire.settimeout(limit)
        line = b""
        try:
            while not line.endswith(b"\n"):
                data = self.wire.recv(65536)
                if not data:
                    raise Failed(f"the driver ended: {self.running.said()}")
                line += data
        except TimeoutError as error:
            end_tree(self.running.process.pid)
            raise Failed(f"no answer after {limit:g} s: {self.running.said()}") from error
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise Failed(f"{answer['failed']}\n{self.running.said()}")
        return answer

    def close(self) -> None:
        """Let it end, and end it where it does not."""
        self.wire.close()
        with suppress(Failed):
            self.running.wait(15)


def end_tree(pid: int) -> None:
    """SIGKILL to a process and to all below it."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


def wait_until(condition: Callable[[], bool], limit: float, what: str) -> None:
    """Look until something is so. Raises Failed where it is not in time."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"waited {limit:g} s for {what}")
        time.sleep(0.01)


def loopback_bytes() -> int:
    """What has gone over this machine's loopback interface so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    return 0
