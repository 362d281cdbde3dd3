"""Level 2: the one line that an agent reads on its stdin (or from a file of mode 0600) before it knows anyone."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from .._version import __version__
from ..model import TemplateSpec
from .frames import VersionMismatch
from .messages import PROTOCOL


class Bootstrap(Struct, frozen=True, kw_only=True):
    """Who the agent is to be, how it gets home, and the template that it may warm meanwhile."""

    places: dict[str, msgspec.Raw]
    """By the name that the user gave to a host: ``link.hub.Invitation``, opened by the link, with addresses and keys.
    More than one, where one command gives the same line to the agents of many hosts."""
    template: TemplateSpec | None
    """Started before the agent has connected. On other hosts there is none: who waits for many of them wants to know
    first whether they are there, and torch's import would be in the way of that."""
    folders: tuple[str, ...] = ()
    """Of the launcher's machine: the agent tells which of them its host has not."""
    stdin_is_link: bool
    """Whether end-of-file on stdin means that the supervisor is gone."""
    connect_timeout: float
    version: str = __version__
    protocol: int = PROTOCOL

    def to_line(self) -> bytes:
        """As one line of JSON."""
        return msgspec.json.encode(self) + b"\n"

    def place(self, names: Sequence[str]) -> tuple[str, msgspec.Raw]:
        """The name and the invitation of one host: the only one, or that which knows itself by any of ``names``.

        Raises:
            LookupError: it is none of those that the line is for.
        """
        if len(self.places) == 1:
            return next(iter(self.places.items()))
        short: dict[str, list[str]] = {}
        for place in self.places:
            short.setdefault(place.partition(".")[0], []).append(place)
        alike = {one: places[0] for one, places in short.items() if len(places) == 1}  # node1.x.org is known as node1
        name = next((name for name in names if name in self.places), None)
        name = name or next((alike[name] for name in names if name in alike), None)
        if name is None:
            raise LookupError(f"this host is {' or '.join(names)}, and none of {', '.join(self.places)}")
        return name, self.places[name]

    @classmethod
    def from_line(cls, line: bytes) -> Bootstrap:
        """Back from the line.

        Raises:
            VersionMismatch: another version of zlaunch wrote it.
            msgspec.ValidationError, msgspec.DecodeError: it is no such line.
        """
        made_by = msgspec.json.decode(line, type=_MadeBy)
        if (made_by.version, made_by.protocol) != (__version__, PROTOCOL):
            raise VersionMismatch(made_by.protocol, made_by.version)
        return msgspec.json.decode(line, type=cls)


class _MadeBy(Struct):
    protocol: int
    version: str
