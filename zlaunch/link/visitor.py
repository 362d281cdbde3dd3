"""Level 3: an observer's end of the wire. Calls at all of a run's doors at once, and watches by the first that opens.

One DEALER per address, as in ``dialing``, and the losers closed before anything is said. A broken connection is the
end: what was missed meanwhile could not be told apart from what never happened.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection

import zmq

from ..protocol import gallery as words
from ..protocol.frames import Malformed
from . import wires
from .ticket import Ticket
from .words import LinkError, describe_tries

_WATCHED = (
    wires.SUCCEEDED,
    wires.FAILED,
    wires.FAILED_AUTH,
    wires.FAILED_PROTOCOL,
    wires.DISCONNECTED,
    wires.RETRIED,
)
_LARGEST = 256 << 20
"""Bytes of a message; the end of a run of 8,000 ranks, with a traceback each, is one."""
_HEARTBEAT, _SILENCE = 2.0, 10.0
_TURN = 512
_LAST_WORDS = 0.2
"""Seconds from the end of a connection until all that came by it can be read; as a rule the monitor says so before."""
_SOON = 0.01


class Turned(LinkError):
    """Somebody answered, and will not have us: the key is wrong, or the run is over."""


class _Line:
    """One DEALER and its monitor."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], ticket: Ticket, endpoint: str, number: int, silence: float
    ) -> None:
        self.endpoint = endpoint
        self.up = self.ended = self.turned = False
        self.ended_at = 0.0
        self.reason = ""
        self.socket = _dealer(context, ticket, ipv6="[" in endpoint, silence=silence)
        self.monitor = wires.Monitor(context, self.socket, f"visitor-{number}", _WATCHED)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.ended, self.reason = True, str(error)

    def watch(self) -> None:
        """Take what the monitor has to tell."""
        for event, _ in self.monitor.drain():
            match event:
                case wires.SUCCEEDED:
                    self.up = True
                case wires.FAILED_AUTH:
                    self.turned, self.reason = True, "this key is not, or not any more, one that it lets in"
                case wires.FAILED_PROTOCOL | wires.FAILED:
                    self.turned, self.reason = True, self.reason or "whoever listens there now is not this run"
                case wires.DISCONNECTED:
                    self.ended, self.ended_at = True, time.monotonic() + _LAST_WORDS
                case wires.RETRIED:
                    self.ended, self.ended_at = True, time.monotonic()

    def close(self, linger: float = 0.0) -> None:
        """Hang up."""
        self.monitor.close()
        self.socket.close(linger=int(linger * 1000))


class Visitor:
    """One observer of one run.

    Args:
        ticket: from the run's entry in the registry.
        silence: seconds after which a run that answers no heartbeat is taken for gone.
    """

    def __init__(self, ticket: Ticket, *, silence: float = _SILENCE) -> None:
        self._ticket = ticket
        self._silence = silence
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
        self._line: _Line | None = None
        self._waiter = wires.Waiter(())
        self._heard: deque[words.ToVisitor] = deque()
        self.gone = ""
        """Why nothing more comes, once nothing does."""

    def connect(self, timeout: float, *, listen: bool = True) -> None:
        """Get through within ``timeout`` seconds, and ``listen``; else who only wants to know is told nothing.

        Raises:
            Turned: somebody is there, and does not let us in.
            LinkError: nobody can be reached; says what was tried.
        """
        lines: list[_Line] = []
        try:
            for number, endpoint in enumerate(self._ticket.endpoints):
                lines.append(_Line(self._context, self._ticket, endpoint, number, self._silence))
            self._line = _first(lines, time.monotonic() + timeout)
        except (zmq.ZMQError, ValueError) as error:  # no key is written so
            raise LinkError(f"what is written down of the way to it cannot be read: {error}") from None
        finally:
            for line in lines:
                if line is not self._line:
                    line.close()
        self._waiter = wires.Waiter([self._line.socket, self._line.monitor.socket])
        if listen:
            self.say(words.Hello())

    def say(self, message: words.ToGallery) -> None:
        """Say something. Whoever is gone does not hear it."""
        if self._line is not None and not self.gone:
            wires.send(self._line.socket, [words.encode(message)])

    def poll(self, timeout: float | None, extra: Collection[int] = ()) -> tuple[list[words.ToVisitor], set[int]]:
        """Wait until there is something to hear, ``timeout`` seconds have passed, or ``gone`` says that it is over.

        Returns what was told, in order, and which descriptors of ``extra`` are readable.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            heard = self._turn()
            left = None if deadline is None else deadline - time.monotonic()
            if heard or self.gone or self._waiter.readable():
                left = 0.0
            elif self._line is not None and self._line.ended:
                left = _SOON if left is None else min(left, _SOON)
            ready = self._waiter.wait(left, extra)
            if heard or ready or self.gone or (deadline is not None and time.monotonic() >= deadline):
                return heard, ready

    def _turn(self) -> list[words.ToVisitor]:
        heard: list[words.ToVisitor] = []
        line = self._line
        if line is None or self.gone:
            return heard
        line.watch()
        ended = line.ended and time.monotonic() >= line.ended_at
        for _ in range(_TURN):
            parts = wires.receive(line.socket)
            if parts is None:
                break
            try:
                message = words.told(parts[-1].buffer)
            except Malformed as error:
                self.gone = error.reason
                return heard
            if isinstance(message, str):
                self.gone = message
                return heard
            heard.append(message)
        else:
            ended = False
        if ended:
            self.gone = line.reason or "the connection to the run broke"
        return heard

    def close(self) -> None:
        """Leave; the run goes on."""
        if self._line is not None:
            self.say(words.Bye())
            self._line.close(0.0 if self.gone else 0.3)
            self._line = None
        self._context.destroy(linger=0)


def _dealer(
    context: zmq.Context[zmq.Socket[bytes]], ticket: Ticket, *, ipv6: bool, silence: float
) -> zmq.Socket[bytes]:
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.rcvhwm = dealer.sndhwm = 16
    dealer.maxmsgsize = _LARGEST
    dealer.handshake_ivl = 10_000
    dealer.heartbeat_ivl, dealer.heartbeat_timeout = int(min(_HEARTBEAT, silence / 3) * 1000), int(silence * 1000)
    dealer.curve_serverkey = ticket.server_key.encode()
    dealer.curve_publickey = ticket.public_key.encode()
    dealer.curve_secretkey = ticket.secret_key.encode()
    dealer.reconnect_ivl = wires.NEVER
    dealer.ipv6 = ipv6
    return dealer


def _first(lines: list[_Line], deadline: float) -> _Line:
    """The first that is up. Raises LinkError."""
    waiter = wires.Waiter([line.monitor.socket for line in lines])
    while True:
        for line in lines:
            line.watch()
        for line in lines:
            if line.up and not line.ended:
                return line
        left = deadline - time.monotonic()
        if left <= 0 or all(line.ended or line.turned for line in lines):
            tries = describe_tries([(line.endpoint, line.reason or _silent(line)) for line in lines])
            turned = next((line for line in lines if line.turned), None)
            if turned is not None:
                raise Turned(f"{turned.endpoint}: {turned.reason}")
            raise LinkError(f"no answer from the run: {tries}")
        if not waiter.readable():
            waiter.wait(left, ())


def _silent(line: _Line) -> str:
    return "nobody listens there" if line.ended else "no answer in time"
