"""Level 4, pure: all that can happen to an agent, as its core hears of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..model import StartMethod, Survivor
from ..protocol.messages import MeetingPoint, ToAgent, Way

Key = tuple[str, int]


@dataclass(frozen=True)
class Told:
    """The supervisor said something."""

    message: ToAgent


@dataclass(frozen=True)
class TemplateUp:
    """A template has imported everything."""

    key: str
    seconds: float
    start_method: StartMethod
    note: str


@dataclass(frozen=True)
class TemplateDown:
    """A template could not import something, or is dead."""

    key: str
    text: str


@dataclass(frozen=True)
class LetterReady:
    """A step's letter is here, whole."""

    key: Key


@dataclass(frozen=True)
class LetterFailed:
    """A step's letter cannot be had."""

    key: Key
    text: str


@dataclass(frozen=True)
class RankForked:
    """The template has forked a rank."""

    key: Key
    rank: int
    pid: int


@dataclass(frozen=True)
class RankAnswered:
    """A rank gave its answer; ``size`` of its payload in bytes, 0 where there is none."""

    key: Key
    rank: int
    kind: Literal["value", "exception", "unpicklable"]
    at: float
    text: str
    symptom: bool
    size: int


@dataclass(frozen=True)
class RankExited:
    """A rank's process is dead. ``status`` is waitpid's, ``None`` where nobody could tell."""

    key: Key
    rank: int
    status: int | None
    at: float
    out_of_memory: bool = False
    text: str = ""


@dataclass(frozen=True)
class RankDrained:
    """A dead rank's pipes are empty, and what was in them is on its way."""

    key: Key
    rank: int


@dataclass(frozen=True)
class Swept:
    """All processes of a step were killed and waited for, but these."""

    key: Key
    survivors: tuple[Survivor, ...]


@dataclass(frozen=True)
class PortKept:
    """A port is bound for rank 0, and stays so until the step has ended."""

    key: Key
    port: int
    point: MeetingPoint | None = None


@dataclass(frozen=True)
class Sought:
    """All addresses of a meeting point have been tried."""

    key: Key
    ways: tuple[Way, ...]
    tried: str


@dataclass(frozen=True)
class SupervisorLost:
    """The connection or stdin ended."""

    reason: str


@dataclass(frozen=True)
class Tick:
    """The core's deadline has come."""


Happening: TypeAlias = (
    Told
    | TemplateUp
    | TemplateDown
    | LetterReady
    | LetterFailed
    | RankForked
    | RankAnswered
    | RankExited
    | RankDrained
    | Swept
    | PortKept
    | Sought
    | SupervisorLost
    | Tick
)
