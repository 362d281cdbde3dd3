"""Level 4: an agent's front door: one line on stdin, then the loop.

Many agents start at once, some of them on one machine, and everybody waits for the last: so no more is loaded than is
needed (tests/test_layers.py has the list), and on a host that is far away, all but what it takes to say Hello comes
after that. Here the template is started first: it needs a second for torch, and we need a twentieth of one.
"""

from __future__ import annotations

import gc
import os
import select
import sys

FIRST_LINE = 120.0
"""Seconds that the line may take: a scheduler may start us when nobody is there any more who could write it."""


def main() -> None:
    """Read the bootstrap line, and serve until told to leave. Exit status 0 when told so, 1 otherwise."""
    gc.disable()  # there is no garbage yet, and looking for it in all that is being imported takes a twentieth
    _import_msgspec()
    import msgspec

    from ..protocol.bootstrap import Bootstrap
    from ..protocol.frames import VersionMismatch

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
    from .arrival import Arrival

    try:
        arrival = Arrival(bootstrap)
        if bootstrap.template is None:
            arrival.greet()
            arrival.wait()  # whatever we loaded now would keep others on this machine from coming
        from .loop import AgentLoop

        gc.enable()
        status = AgentLoop(arrival).run()
    except (LinkError, LookupError) as error:
        sys.stderr.write(f"zlaunch agent: {error}\n")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing is left to finalise, and a zmq context need not be waited for


def _import_msgspec() -> None:
    """Import msgspec without typing_extensions, which takes as long as the rest of it.

    msgspec takes three names from there, or where it is not installed from ``typing``, which has the same since Python
    3.11. So for this moment it is not installed, in the way that the import statement's reference has for that: None in
    ``sys.modules``. In this process only, where no code of the user's ever runs.
    """
    hidden = "typing_extensions" not in sys.modules
    if hidden:
        sys.modules["typing_extensions"] = None  # type: ignore[assignment]
    try:
        import msgspec  # noqa: F401
    finally:
        if hidden:
            del sys.modules["typing_extensions"]


def _read_line(fd: int) -> bytes:
    """One line, unbuffered: what follows it on stdin is the link's end-of-file, and nobody else's to read."""
    parts: list[bytes] = []
    while True:
        if not select.select([fd], (), (), FIRST_LINE)[0]:
            return b""
        byte = os.read(fd, 65536)
        if not byte:
            return b""
        parts.append(byte)
        if byte.endswith(b"\n"):
            return b"".join(parts)
