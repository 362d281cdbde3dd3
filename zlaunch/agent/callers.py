"""Level 4: an agent's end of the calls for its ranks, where an MPI launcher starts them. See ``caller``.

A call comes over an abstract unix socket, from a process of our own user on this host: others are turned away by the
kernel's word on who they are.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import time
from array import array
from collections.abc import Mapping
from contextlib import suppress

from msgspec import Struct

from ..torchenv.calls import CALLING, address
from . import happenings as on

Key = tuple[str, int]

_LARGEST = 1 << 18
"""Bytes of a call: an environment's part that is about MPI."""
_PATIENCE = 1.0
"""Seconds that callers may take to go."""
_FAREWELL = b"."
"""What a caller gets when its step has ended; end-of-file alone says that the agent is gone."""


class Call(Struct):
    """A rank's process that waits at the launcher's place."""

    wire: socket.socket
    env: dict[str, str]
    fd: int = -1
    """The launcher's own line to its process (``PMI_FD``), where it has one."""
    pidfd: int = -1
    """Of the caller."""


class Callers:
    """Those of the step at hand."""

    def __init__(self) -> None:
        self._key: Key | None = None
        self._door: socket.socket | None = None
        self._coming: dict[int, socket.socket] = {}
        self._calls: dict[tuple[Key, int], Call] = {}
        self._others: list[Call] = []

    def open(self, key: Key) -> None:
        """Wait for the callers of a step. Raises OSError where somebody else does."""
        self._key = key
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door.bind(address(*key))
        self._door.listen(4096)
        self._door.setblocking(False)

    def fds(self) -> list[int]:
        """What to wait for."""
        return [] if self._door is None else [self._door.fileno(), *self._coming]

    def ready(self, fd: int) -> on.RankCalled | None:
        """One of ``fds`` is readable; a call, where it was one."""
        if self._door is not None and fd == self._door.fileno():
            with suppress(BlockingIOError):
                wire, _ = self._door.accept()
                if _who(wire)[1] == os.getuid():
                    self._coming[wire.fileno()] = wire
                else:
                    wire.close()
            return None
        wire = self._coming.pop(fd)
        try:
            return self._hear(wire)
        except (OSError, ValueError):
            wire.close()
            return None

    def _hear(self, wire: socket.socket) -> on.RankCalled:
        assert self._key is not None
        size = socket.CMSG_LEN(array("i").itemsize)
        data, rights, _, _ = wire.recvmsg(_LARGEST, size, socket.MSG_CMSG_CLOEXEC)
        fds = array("i")
        for _, _, raw in rights:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        try:
            rank, size, env = _understood(data)
        except ValueError:
            for fd in fds:
                os.close(fd)
            raise
        event = on.RankCalled(self._key, rank, size)
        call = Call(wire, env, fds[0] if fds else -1)
        with suppress(OSError):
            call.pidfd = os.pidfd_open(_who(wire)[0])
        if (self._key, event.rank) in self._calls:
            self._others.append(call)
        else:
            self._calls[self._key, event.rank] = call
        return event

    def of(self, key: Key, rank: int) -> tuple[Mapping[str, str], list[int]]:
        """What a rank's caller has brought: variables, and a descriptor or none. They stay open here."""
        call = self._calls.get((key, rank))
        return (call.env, [call.fd] if call.fd >= 0 else []) if call else ({}, [])

    def dismiss(self) -> None:
        """The step has ended here: let the callers go, and see them gone."""
        calls = [*self._calls.values(), *self._others]
        for call in calls:
            with suppress(OSError):
                call.wire.send(_FAREWELL, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            if call.fd >= 0:
                os.close(call.fd)
        _see_gone([call.pidfd for call in calls if call.pidfd >= 0])
        for call in calls:
            call.wire.close()
        for wire in self._coming.values():
            wire.close()
        if self._door is not None:
            self._door.close()
        self._key = self._door = None
        self._coming, self._calls, self._others = {}, {}, []


def _understood(data: bytes) -> tuple[int, int, dict[str, str]]:
    """A caller's rank, its world's size, and the variables that make it that. Raises ValueError."""
    try:
        said = json.loads(data.decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError("brackets within brackets") from None
    match said:
        case {"rank": int(rank), "size": int(size), "env": dict(env)}:
            return rank, size, {name: str(value) for name, value in env.items() if CALLING.match(name)}
        case _:
            raise ValueError(f"no call: {said!r:.100}")


def _who(wire: socket.socket) -> tuple[int, int]:
    """The pid and the user at the other end."""
    pid, user, _ = struct.unpack("3i", wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, user


def _see_gone(pidfds: list[int]) -> None:
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    deadline, left = time.monotonic() + _PATIENCE, set(pidfds)
    while left and (wait := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(wait * 1000):
            poll.unregister(fd)
            left.remove(fd)
    for fd in pidfds:
        if fd in left:
            with suppress(OSError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
