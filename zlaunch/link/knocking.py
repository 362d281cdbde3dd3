"""Level 3: why a connection failed, from plain ones: libzmq keeps the errno to itself.

All are tried at once, so that an error message with many addresses in it does not take longer than one of them.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from errno import EINPROGRESS
from urllib.parse import urlsplit

_PATIENCE = 1.0
_ANSWERED = "the connection broke during the handshake"
_MUTE = "timed out"


def knock(endpoints: Sequence[str]) -> list[str]:
    """For each endpoint of ZeroMQ, of TCP or of a unix socket, in a few words what becomes of a connection to it."""
    said = [_MUTE] * len(endpoints)
    with ExitStack() as doors:
        waiting: dict[int, tuple[int, socket.socket]] = {}
        poll = select.poll()
        for place, endpoint in enumerate(endpoints):
            try:
                door, where = _door(endpoint)
                doors.enter_context(door)
                error = door.connect_ex(where)
            except (OSError, ValueError) as problem:
                said[place] = str(problem)
                continue
            if error == EINPROGRESS:
                waiting[door.fileno()] = (place, door)
                poll.register(door, select.POLLOUT)
            else:
                said[place] = _words(error)
        deadline = time.monotonic() + _PATIENCE
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                place, door = waiting.pop(fd)
                poll.unregister(fd)
                said[place] = _words(door.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    return said


def _door(endpoint: str) -> tuple[socket.socket, str | tuple[str, int]]:
    parts = urlsplit(endpoint)
    where: str | tuple[str, int]
    if parts.scheme == "ipc":
        family, where = socket.AF_UNIX, endpoint.removeprefix("ipc://")
    else:
        host = parts.hostname or ""
        family, where = socket.AF_INET6 if ":" in host else socket.AF_INET, (host, parts.port or 0)
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setblocking(False)
    return door, where


def _words(error: int) -> str:
    return os.strerror(error) if error else _ANSWERED
