"""Level 3: what the hub tells its supervisor. Values only; ``hub`` exports them."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from ..protocol.messages import Log, ToSupervisor
from .words import Refused


class Joined(Struct, frozen=True):
    """Both channels of a host's agent are connected; its Hello comes next."""

    host: int


class Heard(Struct, frozen=True):
    """An agent said something on control, with the payload that was attached to it."""

    host: int
    message: ToSupervisor
    payload: memoryview | None


class PieceCame(Struct, frozen=True):
    """A part of a payload that was announced before, in order and without a gap."""

    host: int
    id: int
    offset: int
    data: memoryview


class LogCame(Struct, frozen=True):
    """Lines of a rank, in one or several buffers."""

    host: int
    log: Log
    data: list[memoryview]


class Left(Struct, frozen=True):
    """A host's agent is gone, for good; all that had arrived from it was told before."""

    host: int
    reason: str
    silent: bool = False
    """Whether it is known that nothing was heard of it any more, though nobody had ended the connection."""


HubEvent: TypeAlias = Joined | Heard | PieceCame | LogCame | Left | Refused
