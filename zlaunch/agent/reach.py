"""Level 4: the hands of a meeting point, by which the hosts of a step find an address of rank 0's host for all.

A name may stand for 127.0.1.1, a machine may have five interfaces of which others see one, and two machines may have
the same address (docker0's). So nobody guesses: rank 0's agent listens on everything it has, the others try it all at
once, and what counts is who has heard the token. Neither side ever blocks: both live in the agent's loop, which waits
for descriptors to become readable, and is woken by errors and hang-ups too.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from typing import NamedTuple

from ..protocol.messages import MeetingPoint, Way
from ..systems.interfaces import interface_of, own_addresses, plain_address

PATIENCE = 3.0
"""Seconds for an address that does not answer: a SYN that is lost is sent again after 1 s, and after 3 s."""
AFTERTHOUGHT = 0.5
"""Seconds for the other addresses once one has answered."""
_TOKEN = 16
_BACKLOG = 4096


class MeetingHost:
    """Rank 0's agent: it says its token to everybody who connects."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._token = b""

    def open(self, prefer: str = "") -> MeetingPoint:
        """Listen, at one port, on all addresses of this host, and tell which these are.

        Args:
            prefer: the address that is named first, if it is one that others may use: somebody has come by it.

        Raises:
            OSError: there is no port to be had.
        """
        self.close()
        self._listener = _listen()
        self._token = os.urandom(_TOKEN)
        prefer = plain_address(prefer)
        addresses = [interface.address for interface in own_addresses()]
        addresses.sort(key=lambda address: plain_address(address) != prefer)
        return MeetingPoint(tuple(dict.fromkeys(addresses)), self._listener.getsockname()[1], self._token)

    @property
    def fds(self) -> tuple[int, ...]:
        """What to wait for; none when closed."""
        return () if self._listener is None else (self._listener.fileno(),)

    def ready(self, fd: int) -> None:
        """Serve all who have connected."""
        assert self._listener is not None
        assert fd == self._listener.fileno()
        with suppress(OSError):  # nobody is left; or no descriptor, and then who knocked tries other ways, or in vain
            while True:
                guest, _ = self._listener.accept()
                with guest, suppress(OSError):
                    guest.setblocking(False)
                    guest.send(self._token)  # a new connection's buffer has room for 16 bytes

    def close(self) -> None:
        """Stop listening; may be called twice."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


class Found(NamedTuple):
    """What a seeker knows in the end: the fields of ``Reached``."""

    ways: tuple[Way, ...]
    """In the point's own order."""
    tried: str
    """What came of the addresses that are no way; empty where all are."""


class Seeker:
    """Another host's agent: it tries all addresses of a meeting point at once.

    Ask ``done`` whenever one of ``fds`` was ready and when ``deadline`` has passed.
    """

    def __init__(self, point: MeetingPoint, deadline: float | None = None) -> None:
        """Begin. ``deadline`` is on the monotonic clock; by default, 3 s from now."""
        self.deadline = time.monotonic() + PATIENCE if deadline is None else deadline
        """When to look again, on the monotonic clock: earlier once one address has answered."""
        self._point = point
        self._began = time.monotonic()
        self._open: dict[int, tuple[str, socket.socket]] = {}
        self._heard: dict[int, bytes] = {}
        self._interfaces: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        for address in point.addresses:
            self._knock(address)

    @property
    def fds(self) -> tuple[int, ...]:
        """What to wait for; none when it is over."""
        return tuple(self._open)

    def ready(self, fd: int) -> None:
        """Take what an address has answered, or how it failed."""
        if fd not in self._open:
            return
        address, sock = self._open[fd]
        try:
            data = sock.recv(_TOKEN - len(self._heard[fd]))
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(fd, os.strerror(error.errno or 0))
            return
        heard = self._heard[fd] = self._heard[fd] + data
        if heard == self._point.token:
            self._interfaces[address] = interface_of(sock.getsockname()[0])
            self._drop(fd)
            self.deadline = min(self.deadline, time.monotonic() + AFTERTHOUGHT)
        elif not self._point.token.startswith(heard):
            self._fail(fd, "another machine, or program, answers there")
        elif not data:
            self._fail(fd, "it was closed without a word")

    @property
    def done(self) -> Found | None:
        """What was found, as soon as all have answered or the deadline has passed; ``None`` before."""
        now = time.monotonic()
        if self._open and now < self.deadline:
            return None
        for fd in list(self._open):
            self._fail(fd, f"no answer within {now - self._began:.1f} s")
        order = self._point.addresses
        ways = tuple(Way(address, self._interfaces[address]) for address in order if address in self._interfaces)
        failures = [f"{_shown(a, self._point.port)}: {self._failures[a]}" for a in order if a in self._failures]
        return Found(ways, "; ".join(failures) or ("" if ways else "it has no address"))

    def close(self) -> None:
        """Give up; may be called twice."""
        for fd in list(self._open):
            self._drop(fd)

    def _knock(self, address: str) -> None:
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            self._failures[address] = os.strerror(error.errno or 0)
            return
        sock.setblocking(False)
        fd = sock.fileno()
        self._open[fd], self._heard[fd] = (address, sock), b""
        try:
            failed = sock.connect_ex((address, self._point.port))
        except OSError as error:  # what is no address
            self._fail(fd, str(error))
            return
        if failed not in (0, errno.EINPROGRESS):
            self._fail(fd, os.strerror(failed))

    def _fail(self, fd: int, why: str) -> None:
        self._failures[self._open[fd][0]] = why
        self._drop(fd)

    def _drop(self, fd: int) -> None:
        _, sock = self._open.pop(fd)
        del self._heard[fd]
        sock.close()


def _listen() -> socket.socket:
    """A listening socket for IPv4 and IPv6 at one port; for IPv4 only, where this kernel has no IPv6."""
    try:
        return _listening(socket.AF_INET6)
    except OSError:
        return _listening(socket.AF_INET)


def _listening(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("", 0))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
