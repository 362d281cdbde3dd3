"""Level 4: an agent's front door: one line on stdin, then the loop.

The template is started before anything else is imported: it needs a second for torch, and we need a tenth of one.
"""

from __future__ import annotations

import os
import sys

from ..protocol.bootstrap import Bootstrap


def main() -> None:
    """Read the bootstrap line, and serve until told to leave. Exit status 0 when told so, 1 otherwise."""
    line = _read_line(0)
    if not line:
        sys.exit("zlaunch agent: no keys came on stdin; agents are started by zlaunch itself")
    bootstrap = Bootstrap.from_line(line)
    os.chdir("/")
    from .loop import AgentLoop

    status = AgentLoop(bootstrap).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing is left to finalise, and a zmq context need not be waited for


def _read_line(fd: int) -> bytes:
    """One line, unbuffered: what follows it on stdin is the link's end-of-file, and nobody else's to read."""
    parts: list[bytes] = []
    while True:
        byte = os.read(fd, 65536)
        if not byte:
            return b""
        parts.append(byte)
        if byte.endswith(b"\n"):
            return b"".join(parts)
