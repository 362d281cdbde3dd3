"""Level 3: how an agent gets through. All addresses of the supervisor are tried at once; the first one wins.

One pair of sockets per address, each with one address only: a DEALER that is connected to two shares its messages out
between them. Nothing is sent before one pair has both its handshakes done; the other pairs are closed then.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import zmq

from . import wires
from .words import Invitation, LinkError, describe_tries

_WATCHED = (
    wires.SUCCEEDED,
    wires.FAILED,
    wires.FAILED_AUTH,
    wires.FAILED_PROTOCOL,
    wires.DISCONNECTED,
    wires.RETRIED,
)
_DIAGNOSIS = 1.0


@dataclass
class Line:
    """One DEALER and its monitor."""

    endpoint: str
    socket: zmq.Socket[bytes]
    monitor: wires.Monitor
    up: bool = False
    ended: bool = False
    """The connection is broken, or never was."""
    exhausted: bool = False
    """... and all that had arrived by it can be read."""
    reason: str = ""

    def watch(self) -> None:
        """Take what the monitor has to tell."""
        for event, value in self.monitor.drain():
            match event:
                case wires.SUCCEEDED:
                    self.up = True
                case wires.FAILED_AUTH:
                    self.reason = f"it does not accept this agent's key (status {value}): was it invited again?"
                case wires.FAILED_PROTOCOL:
                    self.reason = f"it does not speak CURVE with this run's keys ({value:#x})"
                case wires.FAILED:
                    self.reason = self.reason or "it hung up during the handshake: not this run's supervisor?"
                case wires.DISCONNECTED:
                    self.ended = True
                case wires.RETRIED:
                    self.ended = self.exhausted = True

    def close(self, linger: float = 0.0) -> None:
        """Hang up; what was sent may still leave for ``linger`` seconds, in the background."""
        self.monitor.close()
        self.socket.close(linger=int(linger * 1000))


@dataclass
class Pair:
    """The two lines to one address."""

    control: Line
    bulk: Line
    lines: tuple[Line, Line] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = (self.control, self.bulk)

    @property
    def up(self) -> bool:
        """Whether both handshakes are done."""
        return all(line.up and not line.ended for line in self.lines)

    @property
    def failed(self) -> Line | None:
        """A line that will not come up."""
        return next((line for line in self.lines if line.ended or line.reason), None)

    def close(self, linger: float = 0.0) -> None:
        """Hang up on both."""
        for line in self.lines:
            line.close(linger)


def dial(
    context: zmq.Context[zmq.Socket[bytes]],
    invitation: Invitation,
    timeout: float,
    *,
    heartbeat: float,
    silence: float,
) -> Pair:
    """Connect by whichever address gets through first, within ``timeout`` seconds.

    Raises:
        LinkError: none did; says which were tried, and why each failed.
    """
    deadline = time.monotonic() + timeout
    pairs: list[Pair] = []
    try:
        pairs.extend(
            _pair(context, invitation, number, heartbeat=heartbeat, silence=silence)
            for number in range(min(len(invitation.control), len(invitation.bulk)))
        )
        waiter = wires.Waiter([line.monitor.socket for pair in pairs for line in pair.lines])
        while True:
            for line in (line for pair in pairs for line in pair.lines):
                line.watch()
            winner = next((pair for pair in pairs if pair.up), None)
            if winner is not None:
                pairs.remove(winner)
                return winner
            left = deadline - time.monotonic()
            if left <= 0 or all(pair.failed for pair in pairs):
                raise LinkError(f"cannot reach the supervisor: {describe_tries(_tries(pairs, timeout))}")
            if not waiter.readable():
                waiter.wait(left, ())
    except zmq.ZMQError as error:
        raise LinkError(f"cannot connect to {', '.join(invitation.control)}: {error}") from error
    finally:
        for pair in pairs:
            pair.close()


def _pair(
    context: zmq.Context[zmq.Socket[bytes]],
    invitation: Invitation,
    number: int,
    *,
    heartbeat: float,
    silence: float,
) -> Pair:
    endpoints = (invitation.control[number], invitation.bulk[number])
    lines = []
    for endpoint, bulk in zip(endpoints, (False, True), strict=True):
        dealer = context.socket(zmq.DEALER)
        wires.harden(dealer, bulk=bulk, heartbeat=heartbeat, silence=silence)
        dealer.routing_id = f"{invitation.user}/{number}".encode()
        dealer.curve_serverkey = invitation.server_key.encode()
        dealer.curve_publickey = invitation.public_key.encode()
        dealer.curve_secretkey = invitation.secret_key.encode()
        dealer.reconnect_ivl = wires.NEVER
        dealer.ipv6 = "[" in endpoint
        monitor = wires.Monitor(context, dealer, f"{number}-{'bulk' if bulk else 'control'}", _WATCHED)
        line = Line(endpoint, dealer, monitor)
        lines.append(line)
        try:
            dealer.connect(endpoint)
        except zmq.ZMQError as error:
            line.ended, line.reason = True, str(error)
    return Pair(*lines)


def _tries(pairs: list[Pair], timeout: float) -> list[tuple[str, str]]:
    tries = []
    for pair in pairs:
        line = pair.failed
        if line is None:
            tries.append((pair.control.endpoint, f"no answer within {timeout:g} s"))
        else:
            tries.append((line.endpoint, line.reason or _knock(line.endpoint)))
    return tries


def _knock(endpoint: str) -> str:
    """Why a connection failed, from a plain one: libzmq keeps the errno to itself."""
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=_DIAGNOSIS).close()
    except (OSError, ValueError) as error:
        return str(error)
    return "the connection broke during the handshake"
