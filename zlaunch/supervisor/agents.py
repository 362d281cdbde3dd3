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
from dataclasses import dataclass

from ..model import AgentCommand, signal_name

SAID_LIMIT = 8192
STDIN_SIZE = 1 << 20
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

    @classmethod
    def start(cls, command: AgentCommand, line: bytes) -> AgentProcess:
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
        return cls(command.host, process)

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
        self.left = reason
        self.gone_by = time.monotonic() + LAST_PATIENCE
        try:
            self.process.wait(0.05)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return
        self.left = ""

    def overdue(self) -> bool:
        """Whether its connection has been gone for so long that its end-of-file is not waited for."""
        return self.gone_by is not None and time.monotonic() >= self.gone_by

    def reason(self) -> str:
        """How it ended, and what it said last."""
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "its agent closed its stderr and lives on"
        if self.left:
            how = self.left
        elif status < 0:
            how = f"its agent (pid {self.process.pid}) was killed by {signal_name(-status)}"
        else:
            how = f"its agent (pid {self.process.pid}) ended with status {status}"
        said = self.said.decode(errors="replace").strip()
        return f"{how}; it said:\n{said}" if said else how

    def end(self) -> None:
        """Make sure that it is gone, and close what we hold of it."""
        if not self.open:
            return
        self.open = False
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if not self.overdue():
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
