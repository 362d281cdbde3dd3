"""Level 3: what can be said of how a host is gone.

libzmq's monitor says of a connection that it ended, and never why: one that it gave up because no heartbeat came
through looks like one that broke. But only control has heartbeats. Who died, or left, has ended both connections at
once; of a host that has fallen silent the other one, bulk, is still open, and the kernel knows that.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from .peers import BROKE, Peer
from .tidings import Left

_ESTABLISHED = 1
_ALMOST = 0.9
"""Of the silence: what was read last came a moment earlier."""


def why_gone(peer: Peer, silence: float) -> Left:
    """Why a host that is leaving is gone, as far as it is known; ``silence`` is what the hub allows, in seconds."""
    if peer.said_bye:
        return Left(peer.host, "its agent left")
    quiet = peer.leaving_since - peer.control_heard_at >= _ALMOST * silence
    if peer.leaving == BROKE and quiet and not peer.bulk.broken and _established(peer.bulk.fd):
        return Left(peer.host, f"no heartbeat got through for {silence:g} s", silent=True)
    return Left(peer.host, peer.leaving)


def _established(fd: int) -> bool:
    """Whether neither end of this TCP connection has closed it, as far as the kernel knows."""
    try:
        duplicate = os.dup(fd)
    except OSError:
        return False
    try:
        connection = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return False
    with connection, suppress(OSError):
        state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)  # tcpi_state, and no more of the struct
        return state == bytes([_ESTABLISHED])
    return False
