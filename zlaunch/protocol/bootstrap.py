"""Level 2: the one line that an agent reads on its stdin (or from a file of mode 0600) before it knows anyone."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ..model import TemplateSpec


class Bootstrap(Struct, frozen=True, kw_only=True):
    """Who the agent is to be, how it gets home, and the template that it may warm meanwhile."""

    hostname: str
    """The name that the user gave to this host."""
    invitation: msgspec.Raw
    """``link.hub.Invitation``, opened by the link: addresses and keys."""
    template: TemplateSpec | None
    stdin_is_link: bool
    """Whether end-of-file on stdin means that the supervisor is gone."""
    connect_timeout: float

    def to_line(self) -> bytes:
        """As one line of JSON."""
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Bootstrap:
        """Back from the line; raises msgspec.ValidationError or DecodeError."""
        return msgspec.json.decode(line, type=cls)
