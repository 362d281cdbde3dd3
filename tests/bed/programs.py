"""Processes of the bed: its own programs, held by a lifeline and a pidfd, and who lives in a host."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where a host's login, and we, look for programs."""
PATIENCE = 20.0
"""Seconds until something that takes milliseconds has failed; the machine may be busy."""


class BedError(RuntimeError):
    """The bed could not be made, or not be changed as was asked for."""


def until(true: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Look again and again at what the kernel tells by no event.

    Raises:
        BedError: it did not become true in time.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise BedError(f"{what}: not within {seconds:g} s")
        time.sleep(0.005)


def started(pid: int) -> int:
    """When the process began (clock ticks since the boot), 0 where there is none: pid and this name it for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[19])


class Program:
    """One of the bed's programs (``host.py``, ``wire.py``), a stranger to our process tree.

    It lives until its lifeline, a pipe that only we hold, is closed: at the latest when we end, however we end.
    """

    def __init__(self, script: str, options: dict[str, Any], log: Path, keep: tuple[int, ...]) -> None:
        self.log = log
        with log.open("wb") as errors:
            self._starter = subprocess.Popen(
                [sys.executable, "-B", "-E", "-s", "-S", str(Path(__file__).parent / script), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd="/",
                env={"PATH": PATH},
                pass_fds=keep,
                start_new_session=True,
                bufsize=0,
            )
        self.pid = 0
        self._pidfd = -1

    def wait_up(self) -> None:
        """Until it has said that it is there. Raises ``BedError`` with its last words where it is not."""
        pid = self._line()
        self._starter.wait()
        if not pid.isdigit():
            raise BedError(f"a part of the bed did not start: {self.log.read_text()[-2000:]}")
        self.pid = int(pid)
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.pid)
        if self._line() != "up" or self._pidfd < 0:
            raise BedError(f"a part of the bed did not come up: {self.log.read_text()[-2000:]}")

    def _line(self) -> str:
        assert self._starter.stdout is not None
        ready, _, _ = select.select([self._starter.stdout], [], [], PATIENCE)
        return self._starter.stdout.readline().decode().strip() if ready else ""

    @property
    def alive(self) -> bool:
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    def kill(self) -> None:
        """SIGKILL, without waiting for the end."""
        self.let_go()
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def let_go(self) -> None:
        """Close the lifeline."""
        for pipe in (self._starter.stdin, self._starter.stdout):
            if pipe is not None:
                pipe.close()

    def wait_gone(self) -> None:
        """Until it, and for a host all that lived in it, is dead. May be called again."""
        self._starter.wait()
        if self._pidfd < 0:
            return
        if not select.select([self._pidfd], [], [], PATIENCE)[0]:
            raise BedError(f"process {self.pid} of the bed does not die")
        os.close(self._pidfd)
        self._pidfd = -1


class Inhabitant(NamedTuple):
    """A process of a host: its pid there, its pid here, what it is called."""

    pid: int
    pid_here: int
    name: str
    command: str


def inhabitants(first: int) -> Iterator[Inhabitant]:
    """All processes in the pid namespace of this one, itself and zombies not among them."""
    namespace = os.stat(f"/proc/{first}/ns/pid").st_ino
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == first:
            continue
        try:
            if os.stat(f"/proc/{entry}/ns/pid").st_ino != namespace:
                continue
            lines = Path(f"/proc/{entry}/status").read_text().splitlines()
            command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        facts = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if not facts["State"].startswith(("Z", "X")):
            pid = int(facts["NSpid"].split()[-1])
            yield Inhabitant(pid, int(entry), facts["Name"], command or f"[{facts['Name']}]")
