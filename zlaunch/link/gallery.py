"""Level 3: where observers of runs come to: one ROUTER, behind the same walls as the hub's. Used from one thread.

Each run has a key pair of its own, and ZAP says of every connection by which it came: so an observer is one of that
run, whatever it says. It is told what happens, by ``tell``; what it may say is a closed union of three words. Whoever
takes nothing for a while waits in an outbox of its own: of lines it loses those that do not fit, and is told how many,
and of everything else nothing, until that alone is too much: then it is sent away. Nobody else notices.
"""

from __future__ import annotations

import getpass
import ipaddress
import os
import time
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import zmq
from msgspec import Struct

from ..events import Output, Record, Redrawn, Usage
from ..protocol import gallery as words
from ..protocol.frames import Malformed
from . import wires
from .doors import LOOPBACK
from .ticket import Ticket
from .words import LinkError
from .zap import DOMAIN, Doorman

OUTBOX = 4 << 20
"""Bytes that may wait for one observer before it loses lines."""
OVERFULL = 64 << 20
"""Bytes of all else that may wait; one that takes no more is sent away."""
PIPE = 16
"""Messages of an observer that ZeroMQ takes at a time."""
_RETRY = 0.01
_TURN = 256
"""Messages of observers that are read before what they are to hear has its turn."""
_LINGER = 0.3
_HEARTBEAT, _SILENCE = 2.0, 10.0


class Came(Struct, frozen=True):
    """An observer wants to hear of a run."""

    visitor: bytes
    run: str


class Asked(Struct, frozen=True):
    """An observer wants a run to end."""

    run: str
    stop: words.Stop


@dataclass
class _Visitor:
    run: str
    outbox: deque[bytes] = field(default_factory=deque)
    size: int = 0
    missed: int = 0
    """Lines, since the last that it got."""


class Gallery:
    """The observers of a cluster's runs.

    Args:
        addresses: numeric addresses of this machine to listen on, besides 127.0.0.1.

    Raises:
        LinkError: not even 127.0.0.1 can be listened on.
    """

    def __init__(self, addresses: Sequence[str] = ()) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
        self._doorman = Doorman(self._context)
        public, secret = zmq.curve_keypair()
        self._server_key = public.decode()
        self._tickets: dict[str, Ticket] = {}
        self._visitors: dict[bytes, _Visitor] = {}
        self._events: list[Came | Asked] = []
        self.refused: deque[str] = deque(maxlen=16)
        """Who was turned away lately, and why."""
        try:
            self._router = _router(self._context, secret)
            self._endpoints = tuple(_bound(self._router, addresses))
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._waiter = wires.Waiter([self._router, self._doorman.socket])

    # --- runs -------------------------------------------------------------------------------------------------------

    def admit(self, run: str) -> Ticket:
        """A run that can be watched from now on."""
        ticket = self._tickets.get(run)
        if ticket is None:
            public, secret = (key.decode() for key in zmq.curve_keypair())
            ticket = self._tickets[run] = Ticket(self._endpoints, self._server_key, public, secret)
            self._doorman.allow(public, run)
        return ticket

    def dismiss(self, run: str) -> None:
        """A run that is over: who watches it has heard so, and nobody else is let in."""
        ticket = self._tickets.pop(run, None)
        if ticket is not None:
            self._doorman.revoke(ticket.public_key)

    # --- speaking ---------------------------------------------------------------------------------------------------

    def watched(self, run: str) -> bool:
        """Whether anybody watches this run."""
        return any(visitor.run == run for visitor in self._visitors.values())

    def say(self, visitor: bytes, message: words.ToVisitor) -> None:
        """Tell one observer. Nothing happens where it has gone."""
        found = self._visitors.get(visitor)
        if found is not None:
            self._put(visitor, found, words.encode(message))

    def tell(self, run: str, message: words.Told, but: bytes = b"") -> None:
        """Tell all observers of a run, or all ``but`` one."""
        there = [(name, one) for name, one in self._visitors.items() if one.run == run and name != but]
        if there:
            data, lines = words.encode(message), lines_of(message.event)
            for name, visitor in there:
                self._put(name, visitor, data, lines)

    def missed(self, run: str, lines: int) -> None:
        """So many lines never came here, since too many came at once."""
        for visitor in self._visitors.values():
            if visitor.run == run:
                visitor.missed += lines

    def _put(self, name: bytes, visitor: _Visitor, data: bytes, lines: int | None = None) -> None:
        if lines is not None and visitor.size + len(data) > OUTBOX:
            visitor.missed += lines
            return
        if visitor.missed:
            self._queue(visitor, words.encode(words.Missed(visitor.missed)))
            visitor.missed = 0
        self._queue(visitor, data)
        self._send(name, visitor)
        if visitor.size > OVERFULL:
            visitor.outbox.clear()
            visitor.size, visitor.run = 0, ""  # it hears of nothing any more
            self._queue(visitor, words.encode("this observer was too slow for the run"))

    def _queue(self, visitor: _Visitor, data: bytes) -> None:
        visitor.outbox.append(data)
        visitor.size += len(data)

    def _send(self, name: bytes, visitor: _Visitor) -> None:
        while visitor.outbox:
            try:
                self._router.send(name, wires.NOBLOCK | wires.SNDMORE)
            except zmq.Again:
                return
            except zmq.ZMQError:  # it has gone
                self._visitors.pop(name, None)
                return
            data = visitor.outbox.popleft()
            visitor.size -= len(data)
            self._router.send(data, wires.NOBLOCK, copy=len(data) < 1 << 16)

    # --- listening --------------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None, extra: Collection[int]) -> tuple[list[Came | Asked], set[int]]:
        """Wait until an observer wants something, a descriptor of ``extra`` is readable, or ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            busy = self._turn()
            events, self._events = self._events, []
            limits = [] if deadline is None else [deadline - time.monotonic()]
            limits += [_RETRY] if any(visitor.outbox for visitor in self._visitors.values()) else []
            patience = 0.0 if events or busy or self._waiter.readable() else min(limits, default=None)
            ready = self._waiter.wait(patience, extra)
            if events or ready or (deadline is not None and time.monotonic() >= deadline):
                return events, ready

    def _turn(self) -> bool:
        """Let in, listen, and send what waits; True where there is more to read."""
        self._doorman.read()
        self.refused.extend(self._doorman.answer())
        busy = True
        for _ in range(_TURN):
            parts = wires.receive(self._router)
            if parts is None:
                busy = False
                break
            self._take(parts)
        for name, visitor in list(self._visitors.items()):
            if visitor.missed and visitor.size < OUTBOX // 2:
                self._queue(visitor, words.encode(words.Missed(visitor.missed)))
                visitor.missed = 0
            self._send(name, visitor)
        return busy

    def _take(self, parts: list[zmq.Frame]) -> None:
        name = parts[0].bytes
        run = _user(parts[-1])
        try:
            if run not in self._tickets:
                raise Malformed("this run has ended")
            if len(parts) != 2:
                raise Malformed("more than is said at a time")
            message = words.asked(parts[1].buffer)
        except Malformed as error:
            self.refused.append(f"an observer of run {run} said what nobody says: {error.reason}")
            with suppress(zmq.ZMQError):
                self._router.send_multipart([name, words.encode(error.reason)], wires.NOBLOCK)
            return
        match message:
            case words.Hello():
                self._visitors[name] = _Visitor(run)
                self._events.append(Came(name, run))
            case words.Stop():
                self._events.append(Asked(run, message))
            case words.Bye():
                self._visitors.pop(name, None)

    def close(self) -> None:
        """Send away all. What was said last still gets out, for a moment at most."""
        deadline = time.monotonic() + _LINGER
        while any(visitor.outbox for visitor in self._visitors.values()) and time.monotonic() < deadline:
            self._turn()
            self._waiter.wait(_RETRY, ())
        self._doorman.socket.close(linger=0)
        self._router.close(linger=int(_LINGER * 1000))
        self._context.destroy(linger=0)  # the socket that is closed already keeps its linger


def _router(context: zmq.Context[zmq.Socket[bytes]], secret_key: bytes) -> zmq.Socket[bytes]:
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.sndhwm, router.rcvhwm = PIPE, PIPE
    router.maxmsgsize = 2 * words.ASKED_MAX
    router.handshake_ivl = 10_000
    router.heartbeat_ivl, router.heartbeat_timeout = int(_HEARTBEAT * 1000), int(_SILENCE * 1000)
    router.router_mandatory = 1
    router.curve_server = 1
    router.curve_secretkey = secret_key
    router.zap_domain = DOMAIN
    router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return router


def _bound(router: zmq.Socket[bytes], addresses: Sequence[str]) -> list[str]:
    """The endpoints; an address that cannot be listened on, as of an interface that vanished, is left out."""
    endpoints = []
    for address in dict.fromkeys((LOOPBACK, *addresses)):
        ip = ipaddress.ip_address(address)
        try:
            router.ipv6 = ip.version == 6
            router.bind(f"tcp://[{ip}]:*" if ip.version == 6 else f"tcp://{ip}:*")
            endpoints.append(str(router.getsockopt_string(zmq.LAST_ENDPOINT)))
        except zmq.ZMQError as error:
            if address == LOOPBACK:
                raise LinkError(f"cannot listen on {LOOPBACK}: {error}") from error
    return endpoints


def lines_of(event: object) -> int | None:
    """How many lines an event has, for those who may miss it; ``None`` for one that nobody may miss."""
    match event:
        case Output(data=data):
            return data.count(b"\n") or 1
        case Record():
            return 1
        case Redrawn() | Usage():  # the next one says the same
            return 0
        case _:
            return None


def _user(part: zmq.Frame) -> str:
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        return ""


def myself() -> str:
    """``me@login1``, for those who see what was asked for."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"
