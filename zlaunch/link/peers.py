"""Level 3: what the hub knows of one agent: its two channels, what waits to be sent, what was announced. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..protocol.frames import Buffer, Inbound, Outbound
from ..protocol.messages import Piece
from .pieces import Incoming, Outgoing
from .tidings import HubEvent
from .words import Invitation

BROKE = "the connection to its agent broke"
HELD_MESSAGES = 1024
"""Messages that may come before both channels are there."""


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
