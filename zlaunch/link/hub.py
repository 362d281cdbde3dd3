"""Level 3: the supervisor's end of the wire. Owns two ROUTERs, the doorman and the monitors; used from one thread.

How an ended connection becomes ``Left``, once and in its place. The monitor tells the descriptor of a connection that
ended, perhaps a moment before its last messages can be read. So the host is *leaving*: an empty message is offered to
it until ZMQ_ROUTER_MANDATORY says that there is nobody (from then on all that had arrived lies in our pipe), the
pipe is read to its end, and only then the host has left.

Descriptors come again. So a turn goes: read the doorman's requests, read the monitors to their end, answer the
requests, read messages. Who could have got the descriptor of an ended connection is not let in before its end was seen.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

import zmq

from ..protocol.frames import Buffer
from ..protocol.messages import ToAgent
from . import wires
from .doors import Doors
from .parting import why_gone
from .peers import Peer
from .post import Post
from .reception import Reception
from .tidings import Heard, HubEvent, Joined, Left, LogCame, PieceCame
from .words import Gone, Invitation, LinkError, Refused
from .zap import Doorman

__all__ = [
    "Gone",
    "Heard",
    "Hub",
    "HubEvent",
    "Invitation",
    "Joined",
    "Left",
    "LinkError",
    "LogCame",
    "PieceCame",
    "Refused",
]

TURN_BYTES, TURN_MESSAGES = 4 << 20, 1024
"""What one turn reads of a channel before the other has its turn."""
_RETRY, _PROBE = 0.005, 0.001
_LATEST = 5.0
_LINGER = 0.5
_WATCHED = (
    wires.ACCEPTED,
    wires.ACCEPT_FAILED,
    wires.DISCONNECTED,
    wires.FAILED,
    wires.FAILED_AUTH,
    wires.FAILED_PROTOCOL,
)


class Hub:
    """Where the agents of a run come home.

    Args:
        addresses: numeric addresses of this machine to listen on, IPv4 or IPv6, besides 127.0.0.1.
        heartbeat: seconds between heartbeats on control; a third of ``silence`` at most.
        silence: seconds after which a host that answers none is lost.

    Raises:
        LinkError: none of the addresses, or not even 127.0.0.1, can be listened on. Where only some cannot, see
            ``skipped``.
    """

    def __init__(
        self, addresses: Sequence[str] = ("127.0.0.1",), *, heartbeat: float = 1.0, silence: float = 4.5
    ) -> None:
        _raise_file_limit()
        self._times = (min(heartbeat, silence / 3), silence)
        self._context = wires.new_context()
        self._doorman = Doorman(self._context)
        self._reception = Reception(os.urandom(16))
        self._server_key, secret_key = zmq.curve_keypair()
        self._incarnations: dict[int, int] = {}
        self._busy = False
        self._explained = 0
        try:
            self._doors = Doors(self._context, secret_key, addresses, heartbeat=self._times[0], silence=self._times[1])
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._control, self._bulk = self._doors
        self._post = Post(self._reception, self._control, self._bulk)
        self._monitors = [
            wires.Monitor(self._context, self._control, "control", _WATCHED),
            wires.Monitor(self._context, self._bulk, "bulk", _WATCHED),
        ]
        watched = [self._control, self._bulk, self._doorman.socket, *(m.socket for m in self._monitors)]
        self._waiter = wires.Waiter(watched)

    @property
    def skipped(self) -> dict[str, str]:
        """The addresses that could not be listened on (an interface may just have vanished), and why."""
        return dict(self._doors.skipped)

    @property
    def tunnel_ports(self) -> tuple[int, int]:
        """The ports of control and bulk on 127.0.0.1, for the ends of an ssh tunnel."""
        return self._doors.ports

    # --- hosts ------------------------------------------------------------------------------------------------------

    def invite(self, host: int, *, here: bool = True, tunnel: str = "") -> Invitation:
        """A fresh key for this host's agent. An earlier invitation of the host, and who came by it, count no more.

        Args:
            host: its place in the launcher's list.
            here: whether it is this very machine: it comes by loopback then, and else by all other addresses.
            tunnel: for another machine: what the paths of the two sockets begin with that its sshd listens on and
                hands to ``tunnel_ports``; ``.c`` comes behind it for control and ``.b`` for bulk.
        """
        former = self._reception.peers.get(host)
        if former is not None:
            self._doorman.revoke(former.invitation.public_key)
            self._post.sending.pop(host, None)
        public, secret = zmq.curve_keypair()
        self._incarnations[host] = self._incarnations.get(host, 0) + 1
        control, bulk = self._doors.endpoints(here=here)
        invitation = Invitation(
            host=host,
            incarnation=self._incarnations[host],
            control=control,
            bulk=bulk,
            server_key=self._server_key.decode(),
            public_key=public.decode(),
            secret_key=secret.decode(),
            nonce=self._reception.nonce,
            tunnel=(f"ipc://{tunnel}.c", f"ipc://{tunnel}.b") if tunnel and not here else None,
            heartbeat=self._times[0],
            silence=self._times[1],
        )
        self._reception.expect(invitation)
        self._doorman.allow(invitation.public_key, invitation.user)
        return invitation

    def forget(self, host: int) -> None:
        """Drop whatever comes from this host from now on; it cannot come back without a new invitation."""
        peer = self._reception.drop(host, silently=True)
        self._post.sending.pop(host, None)
        if peer is not None:
            self._doorman.revoke(peer.invitation.public_key)

    @property
    def counters(self) -> dict[str, int]:
        """How often something was turned away, by kind of refusal (and ``late``: from hosts that were forgotten)."""
        return dict(self._reception.counters)

    # --- sending ----------------------------------------------------------------------------------------------------

    def send(self, host: int, message: ToAgent, payload: Buffer | None = None) -> None:
        """Say something on control; it is sent now or as soon as the host takes it.

        Raises:
            Gone: the host is not connected, or has not taken anything for so long that its outbox is full.
            Malformed: the message or its payload is too large for any peer, or the payload is not what it says.
        """
        self._post.send(self._connected(host), message, payload)

    def send_payload(self, host: int, payload_id: int, view: memoryview) -> None:
        """Send a payload on bulk, after the message that announces it. ``view`` must stay as it is until it is sent.

        Raises:
            Gone: the host is not connected.
        """
        self._post.send_payload(self._connected(host), payload_id, view)

    def _connected(self, host: int) -> Peer:
        peer = self._reception.peers.get(host)
        if peer is None or not peer.joined:
            raise Gone(host)
        if peer.leaving:
            raise Gone(host, peer.leaving)
        return peer

    # --- receiving --------------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None, extra: Collection[int] = ()) -> tuple[list[HubEvent], set[int]]:
        """Wait until there is something to tell, or ``timeout`` seconds have passed (``None``: for ever).

        Returns the events in order, and which descriptors of ``extra`` are readable, hung up or closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            events = self._turn()
            ready = self._waiter.wait(self._patience(bool(events), deadline), extra)
            if events or ready or (deadline is not None and time.monotonic() >= deadline):
                return events, ready

    def _patience(self, something: bool, deadline: float | None) -> float | None:
        if something or self._busy or self._waiter.readable():
            return 0.0
        limits = [deadline - time.monotonic()] if deadline is not None else []
        limits += [_PROBE] if self._reception.leaving else []
        limits += [_RETRY] if self._post.sending else []
        return min(limits, default=None)

    def _turn(self) -> list[HubEvent]:
        reception = self._reception
        for peer in reception.leaving.values():
            self._post.probe(peer)
        self._busy = self._doorman.read()
        for bulk, monitor in enumerate(self._monitors):
            for happening in monitor.drain():
                self._happened(happening, bool(bulk))
        for text in self._doorman.answer():
            reception.refuse("key", text)
        drained = [self._drain(self._control, False), self._drain(self._bulk, True)]
        self._busy |= not all(drained)
        self._post.say_farewells()
        self._post.flush()
        self._part(all(drained))
        events, reception.events = reception.events, []
        return events

    def _drain(self, router: zmq.Socket[bytes], bulk: bool) -> bool:
        """Read messages, but not for ever; True when there are no more."""
        if not wires.readable(router):
            return True
        size = 0
        for _ in range(TURN_MESSAGES):
            parts = wires.receive(router)
            if parts is None:
                return True
            self._reception.take(parts, bulk=bulk)
            size += len(parts[-1])
            if size > TURN_BYTES:
                break
        return False

    def _happened(self, happening: wires.Happening, bulk: bool) -> None:
        event, value = happening
        match event:
            case wires.ACCEPTED:
                self._reception.accepted(value, bulk=bulk)
            case wires.DISCONNECTED:
                if not self._reception.disconnected(value, bulk=bulk):
                    if self._explained:
                        self._explained -= 1
                    else:
                        self._reception.refuse("dropped", "a connection ended before anyone was known by it")
            case wires.ACCEPT_FAILED:
                self._reception.refuse("accept", f"a connection could not be accepted: {os.strerror(value)}")
            case wires.FAILED_PROTOCOL:
                self._explained += 1
                self._reception.refuse("handshake", f"a connection without CURVE or this run's key ({value:#x})")
            case wires.FAILED:
                self._explained += 1
                self._reception.refuse("dropped", "a connection ended during its handshake")
            case _:  # FAILED_AUTH: the doorman has told it
                self._explained += 1

    # --- leaving ----------------------------------------------------------------------------------------------------

    def _part(self, drained: bool) -> None:
        now, reception = time.monotonic(), self._reception
        for host, peer in list(reception.leaving.items()):
            flooded = now - peer.leaving_since >= _LATEST  # others must not hide for ever that somebody is gone
            if (drained and (peer.quiet() or reception.overdue(peer, now))) or flooded:
                left = why_gone(peer, self._times[1])
                self.forget(host)
                reception.events.append(left)

    def close(self) -> None:
        """Hang up. What was said last still gets out, for half a second at most."""
        deadline = time.monotonic() + _LINGER
        self._post.flush()
        while self._post.sending and time.monotonic() < deadline:
            self._waiter.readable()
            self._waiter.wait(_RETRY, ())
            self._post.flush()
        for monitor in self._monitors:
            monitor.close()
        self._doorman.socket.close(linger=0)
        self._control.close(linger=int(_LINGER * 1000))
        self._bulk.close(linger=0 if self._post.sending else int(_LINGER * 1000))
        self._context.destroy(linger=0)  # the sockets that are closed already keep their linger


def _raise_file_limit() -> None:
    """A connection is a descriptor, a host has two: as many as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
