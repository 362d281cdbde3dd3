"""Level 4: an agent's front door: one line on stdin, then the loop.

The template is started before anything else is imported: it needs a second for torch, and we need a tenth of one.
"""

from __future__ import annotations

import os
import sys

import msgspec

from ..protocol.bootstrap import Bootstrap
from ..protocol.frames import VersionMismatch


def main() -> None:
    """Read the bootstrap line, and serve until told to leave. Exit status 0 when told so, 1 otherwise."""
    line = _read_line(0)
    if not line:
        sys.exit("zlaunch agent: no keys came on stdin; agents are started by zlaunch itself")
    try:
        bootstrap = Bootstrap.from_line(line)
    except VersionMismatch as error:
        sys.exit(f"zlaunch agent: {error}")
    except msgspec.MsgspecError as error:
        sys.exit(f"zlaunch agent: what came on stdin are no keys: {error}")
    os.chdir("/")
    from ..link.words import LinkError
    from .loop import AgentLoop

    try:
        status = AgentLoop(bootstrap).run()
    except LinkError as error:
        sys.stderr.write(f"zlaunch agent: {error}\n")
        status = 1
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
