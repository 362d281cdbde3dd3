"""Level 4: the agents' processes, as far as the supervisor holds them: stdin, stderr, and the exit status.

An agent's stderr is shared with its fork template, and the template ends only after it has killed all below it. So
end-of-file there means more than an exit status: nothing of that host's is alive any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..model import AgentCommand, signal_name

SAID_LIMIT = 8192
STDIN_SIZE = 1 << 20
Explain: TypeAlias = Callable[[int | None, str], str]
OWN_END = 0.05
"""Seconds that an agent without a connection may take to end by itself."""
HANG_UP = 1.5
"""Seconds that an agent which was on its way may take to end: over ssh, for both ways and what it had begun."""
LAST_PATIENCE = 2.0
"""Seconds from an agent's death to that of all below it."""
F_SETPIPE_SZ = 1031


@dataclass
class AgentProcess:
    """One agent's command, running."""

    host: int
    process: subprocess.Popen[bytes]
    said: bytes = b""
    left: str = ""
    """Why its connection ended, if it did."""
    open: bool = True
    gone_by: float | None = None
    """When it counts as gone although something below it still holds its stderr."""
    kill_at: float | None = None
    pressed: bool = False
    """Whether we killed it because its connection was gone."""
    joined: bool = False
    """Whether its agent has ever connected."""
    explain: Explain | None = None
    """What to make of its exit status and its last words, where it is not the agent itself: ssh, for one."""

    @classmethod
    def start(cls, command: AgentCommand, line: bytes, explain: Explain | None = None) -> AgentProcess:
        """Start the command and give it its bootstrap line. Raises OSError."""
        process = subprocess.Popen(
            command.argv,
            env=command.env,
            cwd=command.cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C goes to us, and we tell the agents
            bufsize=0,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        with contextlib.suppress(OSError):
            fcntl.fcntl(process.stdin.fileno(), F_SETPIPE_SZ, STDIN_SIZE)  # a large environment must not block us
        with contextlib.suppress(BrokenPipeError):  # it is dead already: its stderr will say why
            process.stdin.write(line)
        os.set_blocking(process.stderr.fileno(), False)
        return cls(command.host, process, explain=explain)

    @property
    def stderr(self) -> int:
        """The descriptor to wait for."""
        assert self.process.stderr is not None
        return self.process.stderr.fileno()

    def read(self) -> bool:
        """Take what it has said; False at the end-of-file."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.stderr, 65536)
            if not data:
                return False
            self.said = (self.said + data)[-SAID_LIMIT:]
        return True

    def connection_left(self, reason: str) -> None:
        """Its connection is gone. Whether its process is too is seen within moments; a silent one is ended."""
        now = time.monotonic()
        self.left, self.kill_at, self.gone_by = reason, now + OWN_END, now + LAST_PATIENCE

    def hang_up(self) -> None:
        """Nobody waits for it any more. At the end of its stdin an agent ends by itself, here and behind an ssh."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        now = time.monotonic()
        self.left, self.kill_at, self.gone_by = "it was hung up on", now + HANG_UP, now + HANG_UP + LAST_PATIENCE

    def deadline(self) -> float | None:
        """When ``press`` wants to be called."""
        return (self.kill_at or self.gone_by) if self.open else None

    def press(self, now: float) -> bool:
        """End one that has lost its connection and lives on; True when its end-of-file is not waited for any more."""
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            if self.process.poll() is None:
                self.pressed = True
                self.process.kill()
        return self.gone_by is not None and now >= self.gone_by

    def reason(self) -> str:
        """How it ended, and what it said last."""
        try:
            status: int | None = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "its agent closed its stderr and lives on"
        if self.explain is not None and not self.joined:
            return self.explain(status, self.words())
        ssh = self.explain is not None
        if self.left and (self.pressed or ssh):
            how = self.left
        elif status is not None and status < 0:
            how = f"its agent (pid {self.process.pid}) was killed by {signal_name(-status)}"
        else:
            how = f"its {'ssh' if ssh else 'agent'} (pid {self.process.pid}) ended with status {status}"
        return f"{how}; {'ssh' if ssh else 'it'} said:\n{self.words()}" if self.words() else how

    def late(self) -> str:
        """What is known of one that did not connect in time."""
        if self.explain is not None:
            return self.explain(None, self.words())
        return "its agent did not connect in time" + (f"; it said:\n{self.words()}" if self.words() else "")

    def words(self) -> str:
        """What it has said on stderr."""
        return self.said.decode(errors="replace").strip()

    def end(self) -> None:
        """Make sure that it is gone, and close what we hold of it."""
        if not self.open:
            return
        self.open = False
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.explain is None and (self.gone_by is None or time.monotonic() < self.gone_by):
            self._wait_for_all()
        self.close_descriptors()

    def _wait_for_all(self) -> None:
        """Until its template, too, has ended what is below it: the end-of-file. One that hangs is not waited for."""
        poll = select.poll()
        poll.register(self.stderr)
        deadline = time.monotonic() + LAST_PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000) and not self.read():
                return

    def close_descriptors(self) -> None:
        """Close our ends; for the agent that is the supervisor's death."""
        for stream in (self.process.stdin, self.process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
