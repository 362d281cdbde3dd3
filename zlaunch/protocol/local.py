"""Level 2: what agent, fork template and rank say to one another, over SEQPACKET socketpairs on one host.

A message is one MessagePack header; file descriptors travel beside it (SCM_RIGHTS). These sockets have no name: only
processes that we started hold an end.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from ..model import Seat, StartMethod


class Prepare(Struct, frozen=True, tag="prepare"):
    """Agent to template, first: what to import. The template's environment is its process's."""

    preload: tuple[str, ...]
    sys_path: tuple[str, ...]
    start_method: StartMethod
    inherit: bool = False
    """Of ``sys_path``, what this host has, around the interpreter's own path."""


class Fork(Struct, frozen=True, tag="fork"):
    """Agent to template. Descriptors: the letter (a memfd), stdout, stderr, the rank's answer socket; and, where its
    caller had one, the line to its MPI launcher."""

    step: str
    attempt: int
    seat: Seat
    calling: dict[str, str] = {}
    """Variables of an MPI launcher's, which its caller has brought."""


class Ready(Struct, frozen=True, tag="ready"):
    """Template to agent: everything is imported."""

    seconds: float
    start_method: StartMethod
    note: str = ""


class Broken(Struct, frozen=True, tag="broken"):
    """Template to agent: an import failed; the template ends after this."""

    text: str


class Forked(Struct, frozen=True, tag="forked"):
    """Template to agent. Descriptor: the rank's pidfd."""

    step: str
    attempt: int
    rank: int
    pid: int


class Exited(Struct, frozen=True, tag="exited"):
    """Template to agent: a rank was reaped; ``status`` is what waitpid gave."""

    step: str
    attempt: int
    rank: int
    pid: int
    status: int


class Answer(Struct, frozen=True, tag="answer"):
    """Rank to agent, at most once. Descriptor: a memfd with the envelope of the pickled value, where there is one."""

    kind: Literal["value", "exception", "unpicklable"]
    at: float
    """On the host's monotonic clock."""
    text: str = ""
    symptom: bool = False


ToTemplate: TypeAlias = Prepare | Fork
FromTemplate: TypeAlias = Ready | Broken | Forked | Exited
