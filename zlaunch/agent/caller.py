"""Level 4: what a site's MPI launcher starts in the place of a rank: it calls for the rank at its host's agent.

An MPI process is what its environment says (``PMIX_RANK``, ``OMPI_*``, ``PMI_FD``), whoever forked it. So ranks are
forked by our template under ``--rdv mpi`` too, with torch imported and our agent as their witness; mpirun, srun or flux
start this program instead, once per rank, which hands its environment over and stays until the step has ended. A rank's
death is nothing to the launcher then, and cannot have it kill the others before we know why.

A process in its own right, and the only one of ours that is not below an agent; it loads neither zmq nor msgspec.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import struct
import sys
import time

from ..torchenv.calls import CALLING, address, number_of

PATIENCE = 120.0
"""Seconds that the agent may take to hear of the step; it knows as a rule before we are started."""
_LOOK_EVERY = 0.01


def main() -> None:
    """Call for a rank of the step and attempt in our arguments, and wait for the end. 0: as it should be."""
    step, attempt = sys.argv[-2:]
    wire = _connect(address(step, int(attempt)))
    if wire is None:
        sys.exit(f"zlaunch: no agent waits for the ranks of {step} on {os.uname().nodename}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # our end is the step's, and the launcher has SIGKILL for haste
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rank, size = number_of(os.environ)
    env = {name: value for name, value in os.environ.items() if CALLING.match(name)}
    fds = array.array("i", [int(env["PMI_FD"])] if env.get("PMI_FD", "").isdecimal() else [])
    message = json.dumps({"rank": rank, "size": size, "env": env}).encode("utf-8", "surrogateescape")
    wire.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
    sys.exit(0 if wire.recv(1) else 1)


def _connect(name: str) -> socket.socket | None:
    """The agent's socket, as soon as it is there; an agent of another user's is none."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not _is_orphaned():
        wire = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            wire.connect(name)
        except ConnectionRefusedError:
            wire.close()
            time.sleep(_LOOK_EVERY)
            continue
        _, user, _ = struct.unpack("3i", wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return wire if user == os.getuid() else None
    return None


def _is_orphaned() -> bool:
    """Whether the launcher is gone that reads our stdout; a killed one ends nobody, and its step may have ended."""
    poll = select.poll()
    poll.register(1, 0)
    return any(seen & (select.POLLERR | select.POLLHUP) for _, seen in poll.poll(0))
