"""Level 3: the hub's post office: what goes out to each host, in order, as fast as the host takes it.

ROUTERs drop what they cannot deliver unless ZMQ_ROUTER_MANDATORY is set, and then say EAGAIN for a full pipe and
EHOSTUNREACH for nobody. What a full pipe did not take waits here: control messages up to a bound of bytes, payloads as
views of memory that their owner keeps anyway.
"""

from __future__ import annotations

from contextlib import suppress

import zmq

from ..protocol import frames
from ..protocol.frames import Buffer
from ..protocol.messages import ToAgent
from . import wires
from .peers import BROKE, Channel, Peer
from .pieces import Outgoing
from .reception import Reception
from .words import Gone, as_bytes

OUTBOX = 64 << 20
"""Bytes of control messages that may wait for one host; one that takes no more is lost."""
_BURST = 16
"""Pieces that one host gets before the next has its turn."""


class Post:
    """Sends by the hub's two ROUTERs, on behalf of their owner."""

    def __init__(self, reception: Reception, control: zmq.Socket[bytes], bulk: zmq.Socket[bytes]) -> None:
        self._reception = reception
        self._control = control
        self._bulk = bulk
        self.sending: dict[int, Peer] = {}
        """The hosts that something waits for."""

    def send(self, peer: Peer, message: ToAgent, payload: Buffer | None) -> None:
        """As ``Hub.send``."""
        view = None if payload is None else as_bytes(payload)
        frames.check_control(message, [] if view is None else [len(view)])
        header = peer.control.outbound.encode(message)
        parts: list[Buffer] = [header] if view is None else [header, view]
        peer.messages.append(parts)
        peer.message_bytes += sum(map(len, parts))
        self._send_messages(peer)
        if peer.message_bytes > OUTBOX:
            self._reception.leave(peer, f"its agent has not taken {peer.message_bytes >> 20} MiB of messages")
            peer.messages.clear()
        if peer.leaving:
            raise Gone(peer.host, peer.leaving)

    def send_payload(self, peer: Peer, payload_id: int, view: memoryview) -> None:
        """As ``Hub.send_payload``."""
        flat = as_bytes(view)
        if len(flat):
            peer.payloads.append(Outgoing(payload_id, flat))
            self.sending[peer.host] = peer
            self._send_pieces(peer)

    def flush(self) -> None:
        """Give to each host what it takes now."""
        for host, peer in list(self.sending.items()):
            if not peer.leaving:
                self._send_messages(peer)
                self._send_pieces(peer)
            if peer.leaving or not (peer.messages or peer.payloads):
                del self.sending[host]

    def probe(self, peer: Peer) -> None:
        """Find out whether the ended connections of this peer have been read to their end: offer them nothing."""
        for channel, router in zip(peer.channels(), (self._control, self._bulk), strict=True):
            if channel.broken and not channel.closed and self._open(peer, channel, router):
                with suppress(zmq.ZMQError):
                    router.send(b"", wires.NOBLOCK)

    def say_farewells(self) -> None:
        """Tell peers of another version why nobody answers them, in a header whose beginning they can read."""
        for bulk, identity, text in self._reception.farewells:
            refusal = frames.encode(self._reception.nonce, 1, text)
            with suppress(zmq.ZMQError):
                (self._bulk if bulk else self._control).send_multipart([identity, refusal], wires.NOBLOCK)
        self._reception.farewells.clear()

    def _send_messages(self, peer: Peer) -> None:
        while peer.messages and self._open(peer, peer.control, self._control):
            parts = peer.messages.popleft()
            peer.message_bytes -= sum(map(len, parts))
            wires.send(self._control, parts)
        if peer.messages:
            self.sending[peer.host] = peer

    def _send_pieces(self, peer: Peer) -> None:
        for _ in range(_BURST):
            if not peer.payloads or not self._open(peer, peer.bulk, self._bulk):
                return
            payload = peer.payloads[0]
            piece, data = payload.next()
            wires.send(self._bulk, [peer.bulk.outbound.encode(piece), data])
            if payload.advance():
                peer.payloads.popleft()

    def _open(self, peer: Peer, channel: Channel, router: zmq.Socket[bytes]) -> bool:
        """Begin a message to a peer; False where its pipe is full, or it is gone."""
        if channel.identity is None:
            return False
        try:
            router.send(channel.identity, wires.NOBLOCK | wires.SNDMORE)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            channel.broken = channel.closed = True
            self._reception.leave(peer, BROKE)
            return False
        return True
