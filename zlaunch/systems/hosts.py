"""Level 2, pure: the words by which hosts are named: in a list, on a command line, in a host file."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple

_NEVER = re.compile(r"""[\s\x00-\x1f\x7f/,'"`$;&<>|(){}\[\]*?!\\#]""")
"""What no name or address of a host has; most of it would mean something to a shell."""
_NEVER_IN_USERS = re.compile(r"""[\s\x00-\x1f\x7f/,:'"`$;&<>|(){}\[\]*?!#]""")
_RANGE = re.compile(r"\[[^\]:]*\d[^\]:]*\]")
_SLOTS = re.compile(r"slots=(.*)", re.IGNORECASE)
_IGNORED = re.compile(r"max[_-]slots=\d+", re.IGNORECASE)
_LONGEST_LINE_SHOWN = 80


class HostWord(NamedTuple):
    """A host as it was written down."""

    name: str
    """``host``, ``user@host`` or an address, which has no brackets."""
    slots: int | None = None
    """Ranks that it is meant for, where that was said."""


def check_names(names: Sequence[str]) -> None:
    """Whether these can be hosts of one launcher.

    Raises:
        ValueError: there is none, one is no name, or there twice; says which and what is wrong.
    """
    if not names:
        raise ValueError("the list of hosts is empty")
    for name in names:
        wrong = _wrong(name)
        if wrong:
            raise ValueError(f"{name!r} is no host: {wrong}")
    seen: set[str] = set()
    for name in names:
        if _bare(name) in seen:
            raise ValueError(_twice(name))
        seen.add(_bare(name))


def parse_hosts(text: str) -> list[HostWord]:
    """``a,b:4,user@c,[2001:db8::1]:2``: names, each with its ranks where a number follows.

    Raises:
        ValueError: one is no name, no number, or there twice.
    """
    if _RANGE.search(text):
        raise ValueError(f"{text!r}: ranges of names are not expanded, write them all out")
    words = [_word(word.strip()) for word in text.split(",")]
    check_names([word.name for word in words])
    return words


def parse_hostfile(text: str, filename: str) -> list[HostWord]:
    """One host per line: ``name``, ``name slots=4`` or ``name:4``; ``#`` begins a comment.

    ``max_slots=``, which mpirun knows, is passed over.

    Raises:
        ValueError: with the file, the line and its number.
    """
    words: dict[str, HostWord] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.partition("#")[0].split()
        if not parts:
            continue
        try:
            word = _line(parts)
            check_names([word.name])
            if _bare(word.name) in words:
                raise ValueError(_twice(word.name))
        except ValueError as error:
            raise ValueError(f"{filename}, line {number}: {error}: {line.strip()[:_LONGEST_LINE_SHOWN]!r}") from None
        words[_bare(word.name)] = word
    if not words:
        raise ValueError(f"{filename} names no host")
    return list(words.values())


def user_and_host(name: str) -> tuple[str | None, str]:
    """``("me", "::1")`` of ``me@[::1]``; ``None`` where no user is named."""
    user, at, host = name.rpartition("@")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return (user if at else None), host


def _line(parts: list[str]) -> HostWord:
    word = _word(parts[0])
    for part in parts[1:]:
        slots = _SLOTS.fullmatch(part)
        if slots and word.slots is None:
            word = word._replace(slots=_count(slots[1]))
        elif slots:
            raise ValueError("its ranks are given twice")
        elif not _IGNORED.fullmatch(part):
            raise ValueError(f"{part!r} is not known here, a line is NAME [slots=N]")
    return word


def _word(word: str) -> HostWord:
    """A name, and a number after its colon. A bare IPv6 address has colons of its own, and no number."""
    if not word:
        raise ValueError("there is an empty name")
    user, at, rest = word.rpartition("@")
    if rest.startswith("["):
        address, bracket, number = rest[1:].partition("]")
        if not bracket or not _is_ipv6(address) or (number and not number.startswith(":")):
            raise ValueError(f"{word!r}: brackets are for an IPv6 address: [2001:db8::1]:4")
        return HostWord(f"{user}{at}{address}", _count(number[1:]) if number else None)
    if rest.count(":") > 1 and _is_ipv6(rest):
        return HostWord(word)
    name, colon, number = rest.partition(":")
    return HostWord(f"{user}{at}{name}", _count(number) if colon else None)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"{text!r} is not a number of ranks (1 at least)")
    return int(text)


def _wrong(name: object) -> str:
    if not isinstance(name, str):
        return "a name is a string"
    if not name.strip():
        return "it is empty"
    user, host = user_and_host(name)
    if user == "":
        return "there is no user before the @"
    if not host:
        return "there is no host after the @"
    if name.startswith("-") or host.startswith("-"):
        return "a name does not begin with -"
    bad = _NEVER_IN_USERS.search(user or "") or (None if _is_ipv6(host) else _NEVER.search(host))
    if bad:
        return "there is white space in it" if bad[0].isspace() else f"there is {bad[0]!r} in it"
    if ":" in host and not _is_ipv6(host):
        return "it has a colon and is no IPv6 address; a port is set in the ssh configuration"
    return ""


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _bare(name: str) -> str:
    """One spelling of ``[::1]`` and ``::1``."""
    user, host = user_and_host(name)
    return host if user is None else f"{user}@{host}"


def _twice(name: str) -> str:
    return (
        f"{name} is in the list twice: give it more ranks by workers_per_host=[...], --hosts {name}:2 "
        f"or, in a host file, {name} slots=2"
    )
