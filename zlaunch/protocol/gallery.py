"""Level 2: what a run and those who watch it say to each other. Two closed unions of frozen structs, and their bytes.

An observer can say who it is, ask for the run's end, and leave: there are no other words, so none can carry a task.
What it hears are the run's events. A message is one frame, one MessagePack array

    [b"zlw", protocol, message]

whose first two elements are the same in every version. A text in the place of a message is a refusal in plain words.
"""

from __future__ import annotations

from typing import Any, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from .._version import __version__
from ..events import Event
from .frames import Buffer, Malformed

WATCHING = 1
"""Risen with every change that an older peer would misread, also of the events."""
MAGIC = b"zlw"
ASKED_MAX = 4096
"""Bytes of whatever an observer may say."""

Message = TypeVar("Message")


class Hello(Struct, frozen=True, tag="hello"):
    """An observer has come, and wants to hear the run's events."""

    version: str = __version__


class Stop(Struct, frozen=True, tag="stop"):
    """The run shall end: SIGTERM, and SIGKILL after ``grace`` seconds (``None``: its own; asked again: now)."""

    who: str
    """Who asks, for the people who see it: ``me@login1``."""
    grace: float | None = None


class Bye(Struct, frozen=True, tag="bye"):
    """The observer leaves."""


ToGallery: TypeAlias = Hello | Stop | Bye


class Welcome(Struct, frozen=True, tag="welcome"):
    """The observer is let in. What has happened comes next, then ``Present``."""

    run: str
    clock: float
    """The clock of the events' ``at``, now."""
    version: str = __version__


class Told(Struct, frozen=True, tag="told"):
    """Something has happened."""

    event: Event


class Present(Struct, frozen=True, tag="present"):
    """The story so far has been told; what follows happens now."""


class Missed(Struct, frozen=True, tag="missed"):
    """The observer was too slow for so many lines, which are in the log files only."""

    lines: int


ToVisitor: TypeAlias = Welcome | Told | Present | Missed


class _Header(Struct, Generic[Message], array_like=True, frozen=True):
    magic: bytes
    protocol: int
    message: Message


TO_GALLERY: msgspec.msgpack.Decoder[_Header[ToGallery]] = msgspec.msgpack.Decoder(_Header[ToGallery])
TO_VISITOR: msgspec.msgpack.Decoder[_Header[ToVisitor | str]] = msgspec.msgpack.Decoder(_Header[ToVisitor | str])
_ANY: msgspec.msgpack.Decoder[_Header[Any]] = msgspec.msgpack.Decoder(_Header[Any])
_encoder = msgspec.msgpack.Encoder()


def encode(message: ToGallery | ToVisitor | str) -> bytes:
    """A message's bytes. What no UTF-8 can say of a file's name, or a record's words, is escaped."""
    try:
        return _encoder.encode((MAGIC, WATCHING, message))
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(message, builtin_types=(bytes,))
        return _encoder.encode((MAGIC, WATCHING, _escaped(plain)))


def asked(data: Buffer) -> ToGallery:
    """What an observer says. Raises Malformed."""
    if len(data) > ASKED_MAX:
        raise Malformed(f"{len(data)} bytes, {ASKED_MAX} at most", "oversized")
    try:
        opened = TO_GALLERY.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Malformed(other_version(data) or str(error)[:200]) from None
    if opened.magic != MAGIC or opened.protocol != WATCHING:
        raise Malformed(other_version(data) or "it is not for here")
    return opened.message


def told(data: Buffer) -> ToVisitor | str:
    """What an observer hears; a text is a refusal. Raises Malformed."""
    try:
        opened = TO_VISITOR.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Malformed(other_version(data) or str(error)[:200]) from None
    if opened.magic != MAGIC:
        raise Malformed("it does not come from a run of zlaunch")
    if opened.protocol != WATCHING and not isinstance(opened.message, str):
        raise Malformed(other_version(data))
    return opened.message


def other_version(data: Buffer) -> str:
    """What to say where the other end is of another version; empty where it is not."""
    try:
        opened = _ANY.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        return ""
    if opened.magic != MAGIC or opened.protocol == WATCHING:
        return ""
    version = opened.message.get("version") if isinstance(opened.message, dict) else None
    them = f"zlaunch {str(version)[:40]}" if isinstance(version, str) else "another version of zlaunch"
    return f"here is zlaunch {__version__}, and there {them}: the same version is needed to watch a run"


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return value
