"""Level 3: what hub and spoke have in common with ZeroMQ: contexts, options, monitors, and waiting.

Waiting is ``poll`` on the sockets' own descriptors (ZMQ_FD), not ``zmq.Poller``: a descriptor wakes us for *every*
change of a socket, also for a full pipe that can be written to again, which no poller tells a ROUTER of. It is
edge-triggered: whoever waits must first have asked each socket for its EVENTS, and found nothing to read.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import zmq

from ..protocol.frames import BULK_MAX, CONTROL_MAX, Buffer

CONTROL_THREAD, BULK_THREAD = 1, 2
"""ZMQ_AFFINITY: a bit per I/O thread. Control has its own, so that it never waits while a piece is being sealed."""
BULK_PIPE = 32
"""High-water mark of the bulk sockets, in messages of up to 1 MiB per peer. Small messages pass the faster the more of
them are taken at a time (8: 37,000/s, 32: 50,000/s on two cores); large ones take memory."""
CONTROL_PIPE = 4096
NEVER = 2**31 - 1
"""Milliseconds until a broken connection is tried again: 24 days. ZMQ_RECONNECT_IVL of -1 would throw away what has
arrived and is unread; so it stays readable, and the monitor's CONNECT_RETRIED says that all of it has arrived."""

NOBLOCK, SNDMORE, EVENTS, POLLIN = 1, 2, 15, 1
"""ZeroMQ's numbers as plain ints: pyzmq's enums cost more than the call that they are passed to."""

DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
ACCEPTED = int(zmq.EVENT_ACCEPTED)
ACCEPT_FAILED = int(zmq.EVENT_ACCEPT_FAILED)
SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
FAILED_PROTOCOL = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
FAILED_AUTH = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
RETRIED = int(zmq.EVENT_CONNECT_RETRIED)

_LONGEST_TTL = 6_553_599
"""Milliseconds: ZMTP has 16 bits for tenths of a second."""
_EVENT = struct.Struct("=Hi")
_MONITOR_ROOM = 20_000


class Happening(NamedTuple):
    """One event of a monitor; ``value`` is a descriptor, an errno or a status, as the event has it."""

    event: int
    value: int


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context of our own: nobody else's ZAP handler, settings or forks."""
    context = zmq.Context(2)
    context.set(zmq.MAX_SOCKETS, 4096)
    return context


def harden(socket: zmq.Socket[bytes], *, bulk: bool, heartbeat: float, silence: float) -> None:
    """The options that every socket of the wire has, on both sides.

    Only control has ZMTP heartbeats. A bulk socket whose reader is busy for longer than ``silence`` stops reading, does
    not see its peer's answers any more, and would take a living peer for dead; a dead host's bulk connection is ended
    by TCP's own keep-alive.
    """
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = BULK_PIPE if bulk else CONTROL_PIPE
    socket.maxmsgsize = 2 * (BULK_MAX if bulk else CONTROL_MAX)
    socket.affinity = BULK_THREAD if bulk else CONTROL_THREAD
    socket.handshake_ivl = 60_000
    if bulk:
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle, socket.tcp_keepalive_intvl, socket.tcp_keepalive_cnt = 30, 10, 3
    else:
        socket.heartbeat_ivl = int(heartbeat * 1000)
        socket.heartbeat_timeout = int(silence * 1000)
        socket.heartbeat_ttl = min(int(silence * 1000), _LONGEST_TTL)


class Monitor:
    """What happens to one socket's connections, in order."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], name: str, events: Iterable[int]
    ) -> None:
        self._watched = socket
        mask = 0
        for event in events:
            mask |= event
        socket.monitor(f"inproc://monitor-{name}", mask)
        self.socket = context.socket(zmq.PAIR)
        self.socket.linger = 0
        self.socket.rcvhwm = _MONITOR_ROOM  # zmq's I/O thread waits when it is full
        self.socket.connect(f"inproc://monitor-{name}")

    def drain(self) -> list[Happening]:
        """All that has happened and was not told yet."""
        happened: list[Happening] = []
        if not readable(self.socket):
            return happened
        try:
            while len(happened) < 2 * _MONITOR_ROOM:
                event, _endpoint = self.socket.recv_multipart(NOBLOCK)
                happened.append(Happening(*_EVENT.unpack(event)))
        except zmq.Again:
            pass
        return happened

    def close(self) -> None:
        """Before its socket is closed."""
        self._watched.disable_monitor()
        self.socket.close(linger=0)


class Waiter:
    """Waits for the sockets of the wire and for descriptors of others.

    ``select.poll`` and not ``epoll``: others close their descriptors when they like, and the number comes again.
    """

    def __init__(self, sockets: Iterable[zmq.Socket[bytes]]) -> None:
        self._poll = select.poll()
        self._sockets = list(sockets)
        self._ours = {int(socket.FD) for socket in self._sockets}
        self._extra: set[int] = set()
        for fd in self._ours:
            self._poll.register(fd, select.POLLIN)

    def readable(self) -> bool:
        """Whether a socket has a message now. Asking re-arms the descriptors."""
        found = False
        for socket in self._sockets:
            found |= readable(socket)
        return found

    def wait(self, timeout: float | None, extra: Collection[int]) -> set[int]:
        """Until something happens, or ``timeout`` seconds have passed; returns which of ``extra`` are readable."""
        wanted = set(extra)
        if wanted != self._extra:
            for fd in self._extra - wanted:
                self._poll.unregister(fd)
            for fd in wanted - self._extra:
                self._poll.register(fd, select.POLLIN)
            self._extra = wanted
        ready = self._poll.poll(None if timeout is None else max(0.0, timeout * 1000))
        return {fd for fd, _ in ready if fd not in self._ours}


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether the socket has a message now; cheaper than being told by an exception that it has none."""
    return bool(int(socket.getsockopt(EVENTS)) & POLLIN)


def receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame] | None:
    """The next message's frames, or ``None``. Their bytes are not copied."""
    try:
        part = socket.recv(NOBLOCK, copy=False)
    except zmq.Again:
        return None
    parts = [part]
    while part.more:
        part = socket.recv(NOBLOCK, copy=False)
        parts.append(part)
    return parts


def send(socket: zmq.Socket[bytes], parts: Sequence[Buffer]) -> bool:
    """Send a message's frames, the large ones without a copy; False where the socket's pipe is full.

    The first frame finds the pipe full, or none does: ZeroMQ counts whole messages.
    """
    try:
        for part in parts[:-1]:
            socket.send(part, NOBLOCK | SNDMORE, copy=False)
        socket.send(parts[-1], NOBLOCK, copy=False)
    except zmq.Again:
        return False
    return True
