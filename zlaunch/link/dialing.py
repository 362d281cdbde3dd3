"""Level 3: how an agent gets through. The supervisor's addresses are tried, and the first that answers wins.

The address that is known to be good (by which ssh came) goes first, the others a moment later, all at once; where none
gets through in a second, or all have failed, the tunnel through ssh is the last resort: it works wherever ssh does, but
carries everything through two more processes and ssh's own encryption.

One pair of sockets per address, each with one address only: a DEALER that is connected to two shares its messages out
between them. Nothing is sent before one pair has both its handshakes done; the other pairs are closed then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress

import zmq
from msgspec import Struct

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
HEAD_START = 1.0
"""Seconds that the most promising address is ahead of the others."""
TUNNEL_START = 1.0
"""Seconds after which the tunnel is tried too."""
_UNIX = "ipc://"


class Line(Struct):
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


class Pair:
    """The two lines to one address."""

    def __init__(self, control: Line, bulk: Line) -> None:
        self.control, self.bulk = self.lines = (control, bulk)
        self.begun = time.monotonic()

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


class Wave(Struct, frozen=True):
    """Addresses that are tried at the same time."""

    start: float
    """Seconds after the beginning; earlier when all that were tried before have failed."""
    routes: tuple[tuple[str, str], ...]
    """For each the endpoints of control and bulk."""


def plan(invitation: Invitation, first: str) -> list[Wave]:
    """In which order the ways of an invitation are tried; ``first`` is a numeric address, or empty."""
    routes = tuple(zip(invitation.control, invitation.bulk, strict=False))
    wanted = _address(first)
    ahead = tuple(route for route in routes if wanted and _address(_host(route[0])) == wanted)
    rest = tuple(route for route in routes if route not in ahead)
    waves = [Wave(0.0, ahead), Wave(HEAD_START if ahead else 0.0, rest)]
    if invitation.tunnel is not None:
        waves.append(Wave(TUNNEL_START, (invitation.tunnel,)))
    return [wave for wave in waves if wave.routes]


def dial(
    context: zmq.Context[zmq.Socket[bytes]],
    invitation: Invitation,
    timeout: float,
    first: str = "",
    *,
    heartbeat: float,
    silence: float,
    give_up: Collection[int] = (),
) -> Pair:
    """Connect by whichever way gets through first, within ``timeout`` seconds, or until one of ``give_up`` is readable.

    The tunnel's sockets are removed from the file system in any case: a connection does without its name.

    Raises:
        LinkError: none did; says which were tried, and why each failed.
    """
    call = _Call(context, invitation, heartbeat, silence)
    try:
        return call.run(plan(invitation, first), timeout, give_up)
    except zmq.ZMQError as error:
        raise LinkError(f"cannot connect to {', '.join(invitation.control)}: {error}") from error
    finally:
        call.hang_up()
        remove_tunnel(invitation)


def remove_tunnel(invitation: Invitation) -> None:
    """Remove the two sockets that ssh made for this agent; those that are not there do not matter."""
    for endpoint in invitation.tunnel or ():
        if endpoint.startswith(_UNIX):
            with suppress(OSError):
                os.unlink(endpoint.removeprefix(_UNIX))


class _Call:
    """One attempt to get through: the pairs that are being tried."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], invitation: Invitation, heartbeat: float, silence: float
    ) -> None:
        self._context = context
        self._invitation = invitation
        self._times = (heartbeat, silence)
        self._pairs: list[Pair] = []

    def run(self, waves: list[Wave], timeout: float, give_up: Collection[int]) -> Pair:
        begun = time.monotonic()
        waiter = wires.Waiter(())
        while True:
            for line in (line for pair in self._pairs for line in pair.lines):
                line.watch()
            winner = next((pair for pair in self._pairs if pair.up), None)
            if winner is not None:
                self._pairs.remove(winner)
                return winner
            passed = time.monotonic() - begun
            stuck = all(pair.failed for pair in self._pairs)
            if passed >= timeout or (stuck and not waves):
                raise LinkError(f"cannot reach the supervisor: {describe_tries(self._tries(waves))}")
            if waves and (stuck or passed >= waves[0].start):
                self._pairs += map(self._pair, waves.pop(0).routes)
                waiter = wires.Waiter([line.monitor.socket for pair in self._pairs for line in pair.lines])
                continue
            if not waiter.readable():
                enough = waiter.wait(min([timeout, *(wave.start for wave in waves[:1])]) - passed, give_up)
                if enough:
                    raise LinkError("told to give up before the supervisor was reached")

    def hang_up(self) -> None:
        """Close what has not won."""
        for pair in self._pairs:
            pair.close()

    def _pair(self, endpoints: tuple[str, str]) -> Pair:
        invitation, number = self._invitation, len(self._pairs)
        lines = []
        for endpoint, bulk in zip(endpoints, (False, True), strict=True):
            dealer = self._context.socket(zmq.DEALER)
            wires.harden(dealer, bulk=bulk, heartbeat=self._times[0], silence=self._times[1])
            dealer.routing_id = f"{invitation.user}/{number}".encode()
            dealer.curve_serverkey = invitation.server_key.encode()
            dealer.curve_publickey = invitation.public_key.encode()
            dealer.curve_secretkey = invitation.secret_key.encode()
            dealer.reconnect_ivl = wires.NEVER
            dealer.ipv6 = "[" in endpoint
            monitor = wires.Monitor(self._context, dealer, f"{number}-{'bulk' if bulk else 'control'}", _WATCHED)
            line = Line(endpoint, dealer, monitor)
            lines.append(line)
            try:
                dealer.connect(endpoint)
            except zmq.ZMQError as error:
                line.ended, line.reason = True, str(error)
        return Pair(lines[0], lines[1])

    def _tries(self, waves: list[Wave]) -> list[tuple[str, str]]:
        from .knocking import knock  # only now: an agent that gets through need not load it

        failed = [pair.failed for pair in self._pairs]
        answers = iter(knock([line.endpoint for line in failed if line is not None and not line.reason]))
        tries = []
        for pair, line in zip(self._pairs, failed, strict=True):
            if line is None:
                tries.append((_name(pair.control.endpoint), f"no answer within {time.monotonic() - pair.begun:.1f} s"))
            else:
                tries.append((_name(line.endpoint), line.reason or next(answers)))
        return tries + [(_name(control), "there was no time to try it") for wave in waves for control, _ in wave.routes]


def _name(endpoint: str) -> str:
    return "through ssh" if endpoint.startswith(_UNIX) else endpoint


def _host(endpoint: str) -> str:
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def _address(text: str) -> str:
    """A numeric address as it is compared: without a scope, and IPv4 as itself.

    ``sshd`` and the hub spell them alike, the kernel's way; ``ipaddress`` would cost an agent's start 2 ms.
    """
    return text.partition("%")[0].lower().removeprefix("::ffff:")
