"""Level 3: the hub's reception. It knows who was invited, reads what comes in, and turns away what should not.

No sockets here: frames, descriptors and user ids come in, events go out. Nothing that a peer sends raises.

Who is who: the doorman gives every connection the user id of its key. A connection's routing id has to be that user id
with ``/n`` behind it (n: which of its addresses the agent got through by), and the first good message settles which of
an agent's connections counts. Its descriptor, which libzmq tells with each message (ZMQ_SRCFD), is what the monitor
later calls the connection by when it ends.
"""

from __future__ import annotations

import time
from collections import Counter

import zmq

from ..protocol import frames
from ..protocol.frames import Malformed, VersionMismatch
from ..protocol.messages import Bye, Hello, Log, Piece
from .peers import BROKE, HELD_MESSAGES, Channel, Peer
from .pieces import HELD_PIECES
from .tidings import Heard, HubEvent, Joined, LogCame, PieceCame
from .words import Invitation, RefusalKind, Refused

LEAVING_TIME = 0.05
"""Seconds without a word that the second channel of a host may take to end after the first, before it is given up."""
FAREWELL_TIME = 2.0
"""The same after a Bye: nobody is in a hurry, and what was said last may be slow to come."""
_REPORTS = 20
"""Refusals of a kind that are told within a second; all are counted."""


class Reception:
    """The hub's peers, and the events that came of what they sent."""

    def __init__(self, nonce: bytes) -> None:
        self.nonce = nonce
        self.peers: dict[int, Peer] = {}
        self.leaving: dict[int, Peer] = {}
        self.events: list[HubEvent] = []
        self.farewells: list[tuple[bool, bytes, str]] = []
        """To be told to peers of another version: bulk or not, routing id, text."""
        self.counters: Counter[str] = Counter()
        self._users: dict[str, Peer] = {}
        self._silenced: set[str] = set()
        self._identities: tuple[dict[bytes, Peer], dict[bytes, Peer]] = ({}, {})
        self._open: tuple[set[int], set[int]] = (set(), set())
        """Descriptors, by channel: the two monitors are not in step, so an end that control's tells may be told after
        bulk's has told that the number came again."""
        self._owners: tuple[dict[int, tuple[Peer, Channel]], dict[int, tuple[Peer, Channel]]] = ({}, {})
        self._told: Counter[str] = Counter()
        self._second = 0

    # --- who is there -----------------------------------------------------------------------------------------------

    def expect(self, invitation: Invitation) -> None:
        """From now on this host is who holds this invitation."""
        self.drop(invitation.host)
        peer = Peer(
            invitation,
            Channel(frames.Inbound(self.nonce, frames.TO_SUPERVISOR), frames.Outbound(self.nonce)),
            Channel(frames.Inbound(self.nonce, frames.BULK), frames.Outbound(self.nonce)),
        )
        self.peers[invitation.host] = self._users[invitation.user] = peer

    def drop(self, host: int, *, silently: bool = False) -> Peer | None:
        """Forget a host; what still comes from it is counted, and told unless ``silently``."""
        peer = self.peers.pop(host, None)
        if peer is None:
            return None
        self.leaving.pop(host, None)
        del self._users[peer.user]
        if silently:
            self._silenced.add(peer.user)
        for channel, identities in zip(peer.channels(), self._identities, strict=True):
            identities.pop(channel.identity or b"", None)
        return peer

    def leave(self, peer: Peer, reason: str) -> None:
        """This host is on its way out: it is told as soon as nothing more can come from it."""
        if not peer.leaving:
            peer.leaving = reason
            peer.leaving_since = time.monotonic()
            self.leaving[peer.host] = peer

    def overdue(self, peer: Peer, now: float) -> bool:
        """Whether what a leaving host may still have to say has been waited for long enough."""
        patience = FAREWELL_TIME if peer.said_bye else LEAVING_TIME
        return now - max(peer.leaving_since, peer.heard_at) >= patience

    # --- connections ------------------------------------------------------------------------------------------------

    def accepted(self, fd: int, *, bulk: bool) -> None:
        """A connection came."""
        self._open[bulk].add(fd)

    def disconnected(self, fd: int, *, bulk: bool) -> bool:
        """A connection ended; True when it was somebody's."""
        self._open[bulk].discard(fd)
        peer, channel = self._owners[bulk].pop(fd, (None, None))
        if peer is None or channel is None:
            return False
        channel.broken = True
        if self.peers.get(peer.host) is peer:  # else it was forgotten, or invited again: nobody waits for this end
            self.leave(peer, BROKE)
        return True

    def refuse(self, kind: RefusalKind, text: str, host: int | None = None) -> None:
        """Count it, and tell it unless too many were told this second."""
        self.counters[kind] += 1
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._told.clear()
        self._told[kind] += 1
        if self._told[kind] <= _REPORTS:
            more = "; more of the kind are only counted for a second" if self._told[kind] == _REPORTS else ""
            self.events.append(Refused(kind, text + more, host))

    # --- messages ---------------------------------------------------------------------------------------------------

    def take(self, parts: list[zmq.Frame], *, bulk: bool) -> None:
        """One message of a ROUTER: routing id, header, payload frames."""
        identity = parts[0].bytes
        user = _property(parts[0], "User-Id")
        peer = self._identities[bulk].get(identity)
        if peer is None or peer.user != user:
            peer = self._admit(identity, user, _property(parts[0], "Peer-Address"), bulk)
            if peer is None:
                return
        try:
            if len(parts) < 2:
                raise Malformed("an empty message")
            if bulk:
                self._take_bulk(peer, parts)
            else:
                self._take_control(peer, parts)
        except Malformed as error:
            self.refuse(error.kind, f"host {peer.host} sent {error.reason}", peer.host)
        except VersionMismatch as error:
            self.refuse("version", f"host {peer.host}: {error}", peer.host)
            self.farewells.append((bulk, identity, str(error)))

    def _admit(self, identity: bytes, user: str, address: str, bulk: bool) -> Peer | None:
        """The peer whose first message this may be."""
        peer = self._users.get(user)
        if peer is None and user in self._silenced:
            self.counters["late"] += 1
            return None
        if peer is None:
            self.refuse("identity", f"{address} ({user.rpartition('.')[0]}) is not expected any more")
            return None
        channel = peer.bulk if bulk else peer.control
        if identity.rpartition(b"/")[0] != user.encode():
            self.refuse("identity", f"host {peer.host} ({address}) came under another name", peer.host)
            return None
        if channel.identity is not None:
            self.refuse("identity", f"host {peer.host} ({address}) is connected already", peer.host)
            return None
        return peer

    def _settle(self, peer: Peer, channel: Channel, parts: list[zmq.Frame], bulk: bool) -> None:
        """Its first good message: this connection is the one that counts."""
        channel.identity = parts[0].bytes
        channel.fd = int(parts[0].get(zmq.SRCFD))
        self._identities[bulk][channel.identity] = peer
        former = self._owners[bulk].get(channel.fd)
        if former is not None:  # the number came again before its end was told
            self.disconnected(channel.fd, bulk=bulk)
        self._owners[bulk][channel.fd] = (peer, channel)
        if channel.fd not in self._open[bulk] and former is None:  # it ended before its first message was read
            self.disconnected(channel.fd, bulk=bulk)

    def _take_control(self, peer: Peer, parts: list[zmq.Frame]) -> None:
        channel = peer.control
        message = channel.inbound.decode(parts[1].buffer)
        frames.check_control(message, [len(part) for part in parts[2:]])
        first = channel.identity is None
        if first is not isinstance(message, Hello):
            raise Malformed("something before its Hello" if first else "a second Hello")
        if first:
            self._settle(peer, channel, parts, bulk=False)
        peer.said_bye |= isinstance(message, Bye)
        peer.control_heard_at = time.monotonic()
        self._tell(peer, Heard(peer.host, message, parts[2].buffer if len(parts) > 2 else None))
        if peer.incoming.announce(message) and peer.early:
            early, peer.early = peer.early, []
            for piece, data in early:
                self._piece(peer, piece, data)
        if first:
            self._join(peer)

    def _take_bulk(self, peer: Peer, parts: list[zmq.Frame]) -> None:
        channel = peer.bulk
        message = channel.inbound.decode(parts[1].buffer)
        if peer.leaving:
            peer.heard_at = time.monotonic()
        rest = [part.buffer for part in parts[2:]]
        frames.check_bulk(message, [len(part) for part in rest])
        first = channel.identity is None
        if first is not (message is None):
            raise Malformed("something before its greeting" if first else "a second greeting")
        match message:
            case Log():
                self._tell(peer, LogCame(peer.host, message, rest))
            case Piece():
                self._piece(peer, message, rest[0])
            case _:
                self._settle(peer, channel, parts, bulk=True)
                self._join(peer)

    def _piece(self, peer: Peer, piece: Piece, data: memoryview) -> None:
        if peer.incoming.accept(piece, len(data)):
            self._tell(peer, PieceCame(peer.host, piece.id, piece.offset, data))
        elif len(peer.early) < HELD_PIECES:
            peer.early.append((piece, data))
        else:
            raise Malformed(f"a piece of payload {piece.id}, which nothing has announced", "unknown")

    def _tell(self, peer: Peer, event: HubEvent) -> None:
        if peer.joined:
            self.events.append(event)
        elif len(peer.held) < HELD_MESSAGES:
            peer.held.append(event)
        else:
            raise Malformed("too much before both of its channels were there")

    def _join(self, peer: Peer) -> None:
        if peer.control.identity is not None and peer.bulk.identity is not None:
            peer.joined = True
            self.events += [Joined(peer.host), *peer.held]
            peer.held = []


def _property(frame: zmq.Frame, name: str) -> str:
    """What libzmq knows of the connection that a frame came by; empty where it knows nothing."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
