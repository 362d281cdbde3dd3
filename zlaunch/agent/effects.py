"""Level 4, pure: all that an agent's core can want done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..model import Fate, Seat, Survivor, TemplateSpec
from ..protocol.messages import MeetingPoint, Payload, ToSupervisor
from .happenings import RankAnswered

Key = tuple[str, int]


@dataclass(frozen=True)
class Send:
    """Say this to the supervisor."""

    message: ToSupervisor


@dataclass(frozen=True)
class RunTemplate:
    """Start a template; one that runs already ends."""

    spec: TemplateSpec


@dataclass(frozen=True)
class EndTemplate:
    """Let the template end."""


@dataclass(frozen=True)
class FetchLetter:
    """Bring the step's letter into a memfd."""

    key: Key
    payload: Payload


@dataclass(frozen=True)
class Fork:
    """Have the template fork a rank, with pipes and a socket of its own."""

    key: Key
    seat: Seat


@dataclass(frozen=True)
class Signal:
    """Send a signal to a rank's process, by its pidfd."""

    key: Key
    rank: int
    number: int


@dataclass(frozen=True)
class Drain:
    """Forward what a dead rank's pipes still hold."""

    key: Key
    rank: int


@dataclass(frozen=True)
class Answered:
    """Tell the supervisor a rank's answer, with its payload."""

    key: Key
    answer: RankAnswered


@dataclass(frozen=True)
class Ended:
    """Tell the supervisor a rank's fate, with the number of log messages sent before it."""

    key: Key
    fate: Fate


@dataclass(frozen=True)
class Sweep:
    """Kill everything that the step left, wait for it, and report what would not die."""

    key: Key


@dataclass(frozen=True)
class Closed:
    """Tell the supervisor that the step is over here."""

    key: Key
    survivors: tuple[Survivor, ...]


@dataclass(frozen=True)
class KeepPort:
    """Bind a free port for rank 0, never listening on it; with ``meet``, be a meeting point on another one."""

    key: Key
    meet: bool


@dataclass(frozen=True)
class Seek:
    """Try all addresses of a meeting point."""

    key: Key
    point: MeetingPoint


@dataclass(frozen=True)
class EndMeeting:
    """Nobody is waited for, or looked for, any more."""

    key: Key


@dataclass(frozen=True)
class FreePort:
    """Close the port that was kept for a step, and its meeting point."""

    key: Key


@dataclass(frozen=True)
class Leave:
    """End the agent with this exit status."""

    status: int


Effect: TypeAlias = (
    Send
    | RunTemplate
    | EndTemplate
    | FetchLetter
    | Fork
    | Signal
    | Drain
    | Answered
    | Ended
    | Sweep
    | Closed
    | KeepPort
    | Seek
    | EndMeeting
    | FreePort
    | Leave
)
