"""Level 4: MPI launchers as processes: mpirun, srun or flux, one per run, which call for its ranks.

They are not our ranks' parents, and what they print is told only where they fail: a rank's end is its agent's to tell.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

from ..model import RanksCommand, signal_name
from . import happenings as on

SAID_LIMIT = 8192
PATIENCE = 2.0
"""Seconds that a launcher may take to end once all that it has started has; and again after SIGTERM."""


@dataclass
class _Launcher:
    run: str
    attempt: int
    process: subprocess.Popen[bytes]
    pidfd: int
    said: bytes = b""
    listening: bool = True
    next_at: float | None = None
    why: str = ""
    """Why we end it."""
    number: int = signal.SIGTERM

    @property
    def output(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def read(self) -> None:
        with suppress(BlockingIOError):
            while data := os.read(self.output, 65536):
                self.said = (self.said + data)[-SAID_LIMIT:]
            self.listening = False

    def words(self) -> str:
        with suppress(ProcessLookupError):  # before it is reaped: until then the group's number is no one else's
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        self.read()
        how = f"it was killed by {signal_name(-status)}" if status < 0 else f"it ended with status {status}"
        said = self.said.decode(errors="replace").strip()
        return (self.why or how) + (f"; it said:\n{said}" if said else "")

    def close(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.close(self.pidfd)


class Launchers:
    """Those that are running."""

    def __init__(self) -> None:
        self._all: dict[str, _Launcher] = {}

    def start(self, run: str, attempt: int, command: RanksCommand) -> on.RanksOver | None:
        """Start one; its end, where it could not be."""
        try:
            process = subprocess.Popen(
                (*command.argv, str(attempt)),
                env=command.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C goes to us, and we tell the agents
                bufsize=0,
            )
        except OSError as error:
            return on.RanksOver(run, attempt, f"it could not be started: {error.strerror}")
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._all[run] = _Launcher(run, attempt, process, os.pidfd_open(process.pid))
        return None

    def end(self, run: str, why: str = "") -> None:
        """All that it has started is gone: now it has to end, too; at once where there is a reason."""
        if launcher := self._all.get(run):
            launcher.next_at = time.monotonic() + (0.0 if why else PATIENCE)
            launcher.why = launcher.why or why

    def descriptors(self) -> list[int]:
        """What to wait for: their ends, and their words."""
        return [fd for one in self._all.values() for fd in (one.pidfd, *([one.output] if one.listening else []))]

    def deadline(self) -> float | None:
        """When ``over`` wants to be asked at the latest."""
        return min((one.next_at for one in self._all.values() if one.next_at is not None), default=None)

    def over(self, ready: set[int], now: float) -> list[on.RanksOver]:
        """Those that have ended; one whose time has passed is made to."""
        found = []
        for one in list(self._all.values()):
            if one.output in ready:
                one.read()
            if one.pidfd in ready:
                words = one.words()
                killed = bool(one.why) or one.process.returncode < 0
                status = None if killed else one.process.returncode
                found.append(on.RanksOver(one.run, one.attempt, words, killed=killed, status=status))
                self._all.pop(one.run).close()
            elif one.next_at is not None and now >= one.next_at:
                self._signal(one)
        return found

    def close(self) -> None:
        """End them all, at once."""
        for one in self._all.values():
            one.number = signal.SIGKILL
            self._signal(one)
            one.process.wait()
            one.close()
        self._all.clear()

    def _signal(self, one: _Launcher) -> None:
        with suppress(ProcessLookupError):
            os.killpg(one.process.pid, one.number)
        one.next_at, one.number = time.monotonic() + PATIENCE, signal.SIGKILL
