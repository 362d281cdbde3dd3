"""Level 3: the doorman. ZAP (RFC 27) asks it whether a CURVE key may come in; it knows a list, and nothing else.

ZAP fails open: where no handler is bound, CURVE lets everybody in. So the hub binds this before its own sockets, and
sets ZAP_ENFORCE_DOMAIN on them. It has no thread: requests are read and answered within the hub's turn, and what was
read is answered only after the monitors have been read (see ``hub``).
"""

from __future__ import annotations

import zmq
from zmq.utils import z85

from .wires import readable

DOMAIN = b"zlaunch"
_MOST = 1024
"""Requests of one turn."""


class Doorman:
    """The allow-list of one context: public keys, and the user id that each stands for."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.sndhwm = self.socket.rcvhwm = 0
        self.socket.bind("inproc://zeromq.zap.01")
        self._users: dict[bytes, str] = {}
        self._waiting: list[list[bytes]] = []

    def allow(self, public_key: str, user: str) -> None:
        """Let this key in as ``user``."""
        self._users[public_key.encode()] = user

    def revoke(self, public_key: str) -> None:
        """Let this key in no more."""
        self._users.pop(public_key.encode(), None)

    def read(self) -> bool:
        """Take the requests that have come; they wait for ``answer``. True when there may be more."""
        if not readable(self.socket):
            return False
        try:
            while len(self._waiting) < _MOST:
                self._waiting.append(self.socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return False
        return True

    def answer(self) -> list[str]:
        """Answer what was read; returns where each came from that was turned away, and why."""
        refused: list[str] = []
        for request in self._waiting:
            self._answer(request, refused)
        self._waiting.clear()
        return refused

    def _answer(self, request: list[bytes], refused: list[str]) -> None:
        # peer, empty, version, request id, domain, address, routing id, mechanism, credentials…
        if len(request) < 8:
            return  # not from libzmq; inproc, so from no one else
        peer, _, version, number, domain, address, _, mechanism, *credentials = request
        where = address.decode(errors="replace")
        user = None
        if version != b"1.0" or domain != DOMAIN or mechanism != b"CURVE" or len(credentials) != 1:
            refused.append(f"{where} came without CURVE ({mechanism[:20].decode(errors='replace')})")
        else:
            user = self._users.get(z85.encode(credentials[0])) if len(credentials[0]) == 32 else None
            if user is None:
                refused.append(f"{where} has a key that nobody was given, or one that was revoked")
        status, text, name = (b"200", b"OK", user.encode()) if user else (b"400", b"not invited", b"")
        self.socket.send_multipart([peer, b"", b"1.0", number, status, text, name, b""])
