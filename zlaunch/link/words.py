"""Level 3: the words that both ends of the wire share: invitation, refusal, errors. No sockets here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from .._version import __version__
from ..errors import ZlaunchError
from ..protocol.frames import Buffer, VersionMismatch
from ..protocol.messages import PROTOCOL, Answered, Pieces, Start

RefusalKind: TypeAlias = Literal[
    "key", "handshake", "dropped", "identity", "malformed", "oversized", "unknown", "replayed", "version", "accept"
]
"""Why something was turned away:

``key``: a CURVE key that nobody was given, or one that was revoked; ``handshake``: no CURVE, or broken; ``dropped``: a
connection that ended before anyone was known at its other end (port scanners; also what an agent lets go that had
several addresses to try); ``identity``: a good key under another's name, or of one that is forgotten; ``accept``: the
kernel has no more connections to give; ``version``: an agent of another version; the rest: a message that is not what
it should be.
"""


class LinkError(ZlaunchError):
    """There is no connection to be had: which addresses were tried, and why each failed."""


class Gone(LinkError):
    """This host is not connected.

    Attributes:
        host: its index.
    """

    def __init__(self, host: int, reason: str = "it is not connected") -> None:
        self.host = host
        super().__init__(f"host {host}: {reason}")


class Refused(Struct, frozen=True):
    """Something was counted and dropped; nothing else came of it. ``host`` is known for a peer whose key was good."""

    kind: RefusalKind
    text: str
    host: int | None = None


class Invitation(Struct, frozen=True):
    """All that one agent needs to come home, and a secret: it travels on stdin or in a file of mode 0600 only."""

    host: int
    incarnation: int
    control: tuple[str, ...]
    """Candidate endpoints; ``bulk`` has the other channel's in the same order."""
    bulk: tuple[str, ...]
    server_key: str
    public_key: str
    secret_key: str
    nonce: bytes
    tunnel: tuple[str, str] | None = None
    """Endpoints for control and bulk through ssh, for a supervisor that can be reached by no address."""
    heartbeat: float = 1.0
    """Seconds between heartbeats on control."""
    silence: float = 4.5
    """Seconds after which a peer that answers none is lost."""
    version: str = __version__
    protocol: int = PROTOCOL

    @property
    def user(self) -> str:
        """Who holds this key: the user id that the supervisor's ZAP handler gives its connections."""
        return user_id(self.host, self.incarnation, self.public_key)

    def to_line(self) -> bytes:
        """As one line of JSON, with its line end."""
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def from_line(cls, line: Buffer) -> Invitation:
        """Back from the line.

        Raises:
            VersionMismatch: another version of zlaunch wrote it.
            LinkError: it is no invitation.
        """
        try:
            made_by = msgspec.json.decode(line, type=_MadeBy)
            if made_by.protocol != PROTOCOL:
                raise VersionMismatch(made_by.protocol, made_by.version)
            return msgspec.json.decode(line, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise LinkError(f"this is not an invitation of zlaunch {__version__}: {error}") from None

    def __repr__(self) -> str:
        return f"<Invitation {self.host}.{self.incarnation} to {', '.join(self.control)}>"


class _MadeBy(Struct):
    protocol: int
    version: str = ""


def user_id(host: int, incarnation: int, public_key: str) -> str:
    """``host.incarnation`` and a part of the key, so that no other agent can take the name before its owner comes."""
    return f"{host}.{incarnation}.{public_key[:12]}"


def announced(message: object) -> Pieces | None:
    """The payload that a control message says will come on the bulk channel."""
    match message:
        case Start(letter=Pieces() as payload) | Answered(payload=Pieces() as payload):
            return payload
        case _:
            return None


def as_bytes(payload: Buffer) -> memoryview:
    """Any buffer as a flat view of its bytes, without a copy."""
    return memoryview(payload).cast("B")


def describe_tries(tries: Sequence[tuple[str, str]]) -> str:
    """``tcp://10.0.0.1:4711: Connection refused; …``."""
    return "; ".join(f"{endpoint}: {reason}" for endpoint, reason in tries) or "no address was given"
