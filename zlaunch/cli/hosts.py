"""Level 6: the options that say which hosts a job has, and how they are reached. Pure, but for the files they name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..systems.hosts import HostWord, parse_hostfile, parse_hosts
from .grammar import Given, UsageError
from .values import Values

NAME_THEM = "--hosts A,B or --hostfile FILE name them"


class HostOptions:
    """What was said of hosts. Each property raises UsageError for what cannot be meant."""

    def __init__(self, given: Values, *, scheduled: bool) -> None:
        """``scheduled``: a scheduler says which hosts there are."""
        self._given, self._scheduled = given, scheduled
        self.chosen = None if scheduled else self._first(self._listed())
        """In their order; ``None``: this machine, or a scheduler's."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """As they are spelled."""
        return tuple(host.name for host in self.chosen) if self.chosen else None

    @property
    def slots(self) -> tuple[int, ...] | Literal["auto"]:
        """The ranks that the list of hosts has for each of them."""
        counts = {host.name: host.slots for host in self.chosen or ()}
        without = [name for name, count in counts.items() if count is None]
        if len(without) == len(counts):
            return "auto"
        if without:
            raise UsageError(f"{without[0]} has no number of ranks, and other hosts have", "-n N counts for all")
        return tuple(count for count in counts.values() if count is not None)

    @property
    def python(self) -> str | None:
        """The interpreter on other hosts: a path as it is here, or a name that is looked for there."""
        given = self._for_others("python")
        if given is None:
            return None
        if not given.text or given.text.startswith("-"):
            raise UsageError(f"{given.spelling} {given.text}: expected an interpreter's path")
        path = given.text
        return os.path.abspath(path) if "/" in path and not path.startswith("~") else path

    @property
    def setup(self) -> str | None:
        """What the shell on other hosts does first."""
        given = self._for_others("setup")
        return given.text.strip() or None if given else None

    @property
    def ssh_config(self) -> str | None:
        """ssh's configuration file."""
        given = self._given.last("ssh-config")
        if given is None:
            return None
        if not Path(given.text).expanduser().is_file():
            raise UsageError(f"{given.spelling} {given.text}: there is no such file")
        return given.text

    def _for_others(self, key: str) -> Given | None:
        given = self._given.last(key)
        if given and not self.chosen and not self._scheduled:
            raise UsageError(f"{given.spelling} is for other hosts", NAME_THEM)
        return given

    def _listed(self) -> list[HostWord] | None:
        names, file = self._given.last("hosts"), self._given.last("hostfile")
        if names and file:
            raise UsageError(f"{names.spelling} and {file.spelling}: which of them?", "give one list of hosts")
        said = names or file
        if said is None:
            return None
        for key in ("local", "standalone", "scheduler"):
            other = self._given.last(key)
            if other and other.text != "None":
                words = f"{other.spelling} {other.text}".rstrip()
                means = "this machine" if other.text.lower() in ("", "local", "localscheduler") else "a scheduler's"
                raise UsageError(f"{said.spelling} names hosts, and {words} means {means}", "leave one out")
        try:
            return parse_hosts(said.text) if names else parse_hostfile(_read(said), said.text)
        except ValueError as error:
            raise UsageError(f"{said.spelling}: {error}") from None

    def _first(self, listed: list[HostWord] | None) -> Sequence[HostWord] | None:
        """As many as -N wants: torchrun's MIN:MAX takes what there is between the two."""
        given, counts = self._given.last("nodes"), self._given.nodes()
        if given is None or counts is None:
            return listed
        least, most = counts
        if listed is None:
            if most > 1:
                raise UsageError(
                    f"{given.spelling} {given.text}: which hosts?",
                    f"{NAME_THEM}, --scheduler slurm asks for them; for this machine alone leave it out, or write -N 1",
                )
        elif len(listed) < least:
            there = "there is one" if len(listed) == 1 else f"there are {len(listed)}"
            raise UsageError(f"{given.spelling} {given.text}: {there} in the list of hosts")
        return listed[:most] if listed else None


def _read(given: Given) -> str:
    try:
        return Path(given.text).read_text()
    except OSError as error:
        raise UsageError(f"{given.spelling} {given.text}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{given.spelling} {given.text}: it is no text") from None
