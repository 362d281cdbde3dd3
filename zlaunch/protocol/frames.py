"""Level 2, pure: what a message looks like on the wire between supervisor and agent. No I/O; imports only the messages.

A message is one header frame and, for some, payload frames that nobody opens here. The header is one MessagePack array

    [b"zl", protocol, nonce of the run, sequence number, message]

whose first two elements are the same in every version, so that two versions can at least tell each other who they are.
The sequence number rises with every message of a channel: what was said once cannot be said again by whoever recorded
it. (CURVE's own nonces already refuse a replayed packet; this one also refuses a replay by a peer with a valid key.)

The bulk channel's first message is ``None``, the greeting. A text in the place of a message is a refusal in plain
words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import Struct

from .._version import __version__
from .messages import PROTOCOL, Answered, Attached, Bulk, Log, Piece, Start, ToAgent, ToSupervisor

Buffer: TypeAlias = bytes | bytearray | memoryview
Fault = Literal["malformed", "oversized", "unknown", "replayed"]

MAGIC = b"zl"
PIECE = 1 << 20
"""Bytes of a payload in one frame: CURVE seals 1.4 GB/s so, and control never waits long behind one."""
ATTACH_LIMIT = 64 << 10
"""Bytes of a payload that travels beside its control message instead of on the bulk channel."""
CONTROL_MAX = 4 << 20
"""Bytes of a control header: a step's whole environment and a thousand seats fit many times over."""
BULK_MAX = PIECE
"""Bytes of any frame on the bulk channel."""
LOG_FRAMES = 256
"""Frames that the lines of one log message may be spread over."""

Message = TypeVar("Message")


class Malformed(ValueError):
    """A peer said what no peer of this version says.

    Attributes:
        reason: what is wrong with it, in words.
        kind: which of the wire's counters it belongs to.
    """

    def __init__(self, reason: str, kind: Fault = "malformed") -> None:
        self.reason = reason
        self.kind: Fault = kind
        super().__init__(reason)


class VersionMismatch(ValueError):
    """The two ends are of different versions; the text names both and says what to do.

    Attributes:
        theirs, ours: the protocol's numbers.
    """

    def __init__(self, theirs: int, their_version: str = "", *, said: str = "") -> None:
        self.theirs = theirs
        self.ours = PROTOCOL
        them = f"zlaunch {their_version[:40]}, protocol {theirs}" if their_version else f"protocol {theirs}"
        text = (
            f"this end is zlaunch {__version__}, protocol {PROTOCOL}; the other end is {them}. "
            "Install the same version of zlaunch on both"
        )
        super().__init__(f"{text} (it says: {said[:400]})" if said else text)


class _Header(Struct, Generic[Message], array_like=True, frozen=True, forbid_unknown_fields=True):
    magic: bytes
    protocol: int
    nonce: bytes
    seq: int
    message: Message


class Decoder:
    """msgspec's decoder of one kind of header, made when the first one is read: an agent starts without any."""

    def __init__(self, header: Any) -> None:
        self._header = header

    @cached_property
    def decode(self) -> Callable[[Buffer], Any]:
        """The header in these bytes. Raises what msgspec raises."""
        return msgspec.msgpack.Decoder(self._header).decode


TO_AGENT = Decoder(_Header[ToAgent | str])
TO_SUPERVISOR = Decoder(_Header[ToSupervisor])
BULK = Decoder(_Header[Bulk | None])

_encoder = msgspec.msgpack.Encoder()
_parts: msgspec.msgpack.Decoder[list[msgspec.Raw]] = msgspec.msgpack.Decoder(list[msgspec.Raw])
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)


class Outbound:
    """The header's writer of one channel to one peer: it counts."""

    __slots__ = ("_nonce", "seq")

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self.seq = 0

    def encode(self, message: ToAgent | ToSupervisor | Bulk | str | None) -> bytes:
        """The header of the channel's next message."""
        self.seq += 1
        return encode(self._nonce, self.seq, message)


class Inbound:
    """The header's reader of one channel from one peer: it knows the run's nonce and what came last."""

    __slots__ = ("_decoder", "_nonce", "_seq")

    def __init__(self, nonce: bytes, decoder: Decoder) -> None:
        self._nonce = nonce
        self._decoder = decoder
        self._seq = 0

    def decode(self, header: Buffer) -> Any:
        """The message of a header.

        Raises:
            VersionMismatch: the other end is of another version.
            Malformed: it is of this version, and still nothing that it should have said.
        """
        if len(header) > CONTROL_MAX:
            raise Malformed(f"a header of {len(header)} bytes, {CONTROL_MAX} at most", "oversized")
        try:
            opened = self._decoder.decode(header)
        except _UNREADABLE as error:
            raise _diagnose(header, error) from None
        if opened.magic != MAGIC or opened.protocol != PROTOCOL:
            raise _diagnose(header, ValueError("not a header of zlaunch"))
        if opened.nonce != self._nonce:
            raise Malformed("it carries the nonce of another run")
        if opened.seq <= self._seq:
            raise Malformed(f"number {opened.seq} came after number {self._seq}", "replayed")
        self._seq = opened.seq
        return opened.message


def encode(nonce: bytes, seq: int, message: ToAgent | ToSupervisor | Bulk | str | None) -> bytes:
    """A header's bytes. Raises ``Malformed`` for one that no peer would accept for its size."""
    header = _encoder.encode((MAGIC, PROTOCOL, nonce, seq, message))
    if len(header) > CONTROL_MAX:
        raise Malformed(f"a header of {len(header)} bytes, {CONTROL_MAX} at most", "oversized")
    return header


def attached(message: object) -> Attached | None:
    """What the message says about a payload in the frame that follows it."""
    match message:
        case Start(letter=Attached() as payload) | Answered(payload=Attached() as payload):
            return payload
        case _:
            return None


def check_control(message: object, sizes: Sequence[int]) -> None:
    """Whether frames of these sizes may stand behind a control message; ``Malformed`` if not."""
    payload = attached(message)
    expected = [] if payload is None else [payload.size]
    if payload is not None and max(sizes, default=payload.size) > ATTACH_LIMIT:
        raise Malformed(f"a payload of {max(sizes)} bytes is attached, {ATTACH_LIMIT} at most", "oversized")
    if list(sizes) != expected:
        raise Malformed(f"{_sizes(sizes)} where {_sizes(expected)} had to follow")


def check_bulk(message: Piece | Log | None, sizes: Sequence[int]) -> None:
    """Whether frames of these sizes may stand behind a bulk message; ``Malformed`` if not."""
    if sizes and max(sizes) > BULK_MAX:
        raise Malformed(f"a bulk frame of {max(sizes)} bytes, {BULK_MAX} at most", "oversized")
    match message:
        case None:
            if sizes:
                raise Malformed(f"{_sizes(sizes)} behind a greeting")
        case Piece(offset=offset):
            if len(sizes) != 1 or not sizes[0] or offset < 0:
                raise Malformed(f"a piece at {offset} with {_sizes(sizes)}")
        case Log(size=size):
            if len(sizes) > LOG_FRAMES or sum(sizes) != size:
                raise Malformed(f"log lines of {size} bytes with {_sizes(sizes)}")


def _sizes(sizes: Sequence[int]) -> str:
    if len(sizes) > 4:
        return f"{len(sizes)} frames of {sum(sizes)} bytes together"
    return f"frames of {', '.join(map(str, sizes))} bytes" if sizes else "no frame"


def _diagnose(header: Buffer, error: BaseException) -> Malformed | VersionMismatch:
    """Why a header could not be read: another version's, an unknown word of ours, or no header at all."""
    try:
        parts = _parts.decode(header)
        magic = msgspec.msgpack.decode(parts[0], type=bytes)
        protocol = msgspec.msgpack.decode(parts[1], type=int)
    except (*_UNREADABLE, IndexError):
        return Malformed(f"not a header of zlaunch ({len(header)} bytes)")
    if magic != MAGIC:
        return Malformed(f"not a header of zlaunch ({len(header)} bytes)")
    message = _peek(parts[4]) if len(parts) > 4 else None
    if protocol != PROTOCOL:
        return VersionMismatch(protocol, _version_in(message), said=message if isinstance(message, str) else "")
    tag = message.get("type") if isinstance(message, dict) else None
    if isinstance(tag, str) and tag not in _tags():
        return Malformed(f"an unknown message {tag[:40]!r}", "unknown")
    return Malformed(str(error)[:200])


@cache
def _tags() -> frozenset[str]:
    unions = (ToAgent, ToSupervisor, Bulk)
    return frozenset(str(member.__struct_config__.tag) for union in unions for member in get_args(union))


def _peek(raw: msgspec.Raw) -> object:
    try:
        return msgspec.msgpack.decode(raw)
    except (*_UNREADABLE, TypeError):  # TypeError: a map whose keys cannot be keys
        return None


def _version_in(message: object) -> str:
    """The package version that a Hello of another protocol version carries, where it still looks like ours."""
    facts = message.get("facts") if isinstance(message, dict) else None
    version = facts.get("version") if isinstance(facts, dict) else None
    return version if isinstance(version, str) else ""
