"""Level 3: what the hub knows of one agent: its two channels, what waits to be sent, what was announced. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..protocol.frames import PIECE, Buffer, Inbound, Malformed, Outbound
from ..protocol.messages import Piece
from .tidings import HubEvent
from .words import Invitation, announced

BROKE = "the connection to its agent broke"
HELD_PIECES = 64
"""Pieces that may come before the message that announces them: control and bulk are two connections."""
HELD_MESSAGES = 1024
"""Messages that may come before both channels are there."""


class Outgoing:
    """A payload on its way out, one piece after the other."""

    __slots__ = ("id", "offset", "view")

    def __init__(self, payload_id: int, view: memoryview) -> None:
        self.id = payload_id
        self.view = view
        self.offset = 0

    @property
    def left(self) -> int:
        """Bytes that have not been sent."""
        return len(self.view) - self.offset

    def next(self) -> tuple[Piece, memoryview]:
        """The next piece; ``advance`` when it was taken."""
        return Piece(self.id, self.offset), self.view[self.offset : self.offset + PIECE]

    def advance(self) -> bool:
        """The piece was taken; True when it was the last."""
        self.offset = min(self.offset + PIECE, len(self.view))
        return self.offset == len(self.view)


class Incoming:
    """The payloads that were announced by control messages, so that pieces are told only after their announcement."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._received: dict[int, int] = {}

    def announce(self, message: object) -> bool:
        """Note what a control message announces; True when it announces something."""
        payload = announced(message)
        if payload is None or payload.size <= 0:
            return False
        self._sizes[payload.id], self._received[payload.id] = payload.size, 0
        return True

    def accept(self, piece: Piece, size: int) -> bool:
        """Whether a piece may be told now. False: not announced yet. Raises ``Malformed`` for one out of its place."""
        total = self._sizes.get(piece.id)
        if total is None:
            return False
        if piece.offset != self._received[piece.id] or piece.offset + size > total:
            raise Malformed(
                f"a piece of payload {piece.id} at {piece.offset} with {size} bytes, "
                f"where {self._received[piece.id]} of {total} had come"
            )
        self._received[piece.id] += size
        if self._received[piece.id] == total:
            del self._sizes[piece.id], self._received[piece.id]
        return True


@dataclass
class Channel:
    """One of an agent's two connections."""

    inbound: Inbound
    outbound: Outbound
    identity: bytes | None = None
    """Its routing id, once its first message was good."""
    fd: int = -1
    """The descriptor of its connection: the monitor knows connections by nothing else."""
    broken: bool = False
    """The monitor has seen it end."""
    closed: bool = False
    """Nothing more can come: what had arrived has been read."""


@dataclass
class Peer:
    """One agent."""

    invitation: Invitation
    user: str = field(init=False)
    control: Channel
    bulk: Channel
    joined: bool = False
    said_bye: bool = False
    held: list[HubEvent] = field(default_factory=list)
    """Events that wait until both channels are there."""
    early: list[tuple[Piece, memoryview]] = field(default_factory=list)
    """Pieces that wait for their announcement."""
    incoming: Incoming = field(default_factory=Incoming)
    messages: deque[list[Buffer]] = field(default_factory=deque)
    message_bytes: int = 0
    payloads: deque[Outgoing] = field(default_factory=deque)
    leaving: str = ""
    """Why it is leaving, once it is."""
    leaving_since: float = 0.0
    control_heard_at: float = 0.0
    """When its last message on control was read."""
    heard_at: float = 0.0
    """When the last lines or pieces came while it was leaving."""

    def __post_init__(self) -> None:
        self.user = self.invitation.user

    @property
    def host(self) -> int:
        """Its place in the launcher's list."""
        return self.invitation.host

    def channels(self) -> Iterator[Channel]:
        """Both."""
        yield self.control
        yield self.bulk

    def quiet(self) -> bool:
        """Whether nothing more can come from it."""
        return all(channel.closed or channel.identity is None for channel in self.channels())
