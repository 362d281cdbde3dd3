"""Level 4, pure: all that can happen to an agent, as its core hears of it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from ..model import StartMethod, Survivor
from ..protocol.messages import MeetingPoint, ToAgent, Way

Key = tuple[str, int]


class Told(Struct, frozen=True):
    """The supervisor said something."""

    message: ToAgent


class TemplateUp(Struct, frozen=True):
    """A template has imported everything."""

    key: str
    seconds: float
    start_method: StartMethod
    note: str


class TemplateDown(Struct, frozen=True):
    """A template could not import something, or is dead."""

    key: str
    text: str


class LetterReady(Struct, frozen=True):
    """A step's letter is here, whole."""

    key: Key


class LetterFailed(Struct, frozen=True):
    """A step's letter cannot be had."""

    key: Key
    text: str


class RankCalled(Struct, frozen=True):
    """A process of an MPI launcher's has called for a rank of a world of ``size``."""

    key: Key
    rank: int
    size: int


class RankForked(Struct, frozen=True):
    """The template has forked a rank."""

    key: Key
    rank: int
    pid: int


class RankAnswered(Struct, frozen=True):
    """A rank gave its answer; ``size`` of its payload in bytes, 0 where there is none."""

    key: Key
    rank: int
    kind: Literal["value", "exception", "unpicklable"]
    at: float
    text: str
    symptom: bool
    size: int


class RankExited(Struct, frozen=True):
    """A rank's process is dead. ``status`` is waitpid's, ``None`` where nobody could tell."""

    key: Key
    rank: int
    status: int | None
    at: float
    out_of_memory: bool = False
    text: str = ""


class RankDrained(Struct, frozen=True):
    """A dead rank's pipes are empty, and what was in them is on its way."""

    key: Key
    rank: int


class Swept(Struct, frozen=True):
    """All processes of a step were killed and waited for, but these."""

    key: Key
    survivors: tuple[Survivor, ...]


class PortKept(Struct, frozen=True):
    """A port is bound for rank 0, and stays so until the step has ended."""

    key: Key
    port: int
    point: MeetingPoint | None = None


class Sought(Struct, frozen=True):
    """All addresses of a meeting point have been tried."""

    key: Key
    ways: tuple[Way, ...]
    tried: str


class SupervisorLost(Struct, frozen=True):
    """The connection or stdin ended, or somebody else told the agent to end."""

    reason: str
    is_there: bool = False
    """Whether the supervisor may still be there: it says then how long the ranks have."""


class Tick(Struct, frozen=True):
    """The core's deadline has come."""


Happening: TypeAlias = (
    Told
    | TemplateUp
    | TemplateDown
    | LetterReady
    | LetterFailed
    | RankCalled
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
