"""Level 4, pure: all that an agent's core can want done."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from ..model import Fate, Seat, Survivor, TemplateSpec
from ..protocol.messages import MeetingPoint, Payload, ToSupervisor
from .happenings import RankAnswered

Key = tuple[str, int]


class Send(Struct, frozen=True):
    """Say this to the supervisor."""

    message: ToSupervisor


class RunTemplate(Struct, frozen=True):
    """Start a template; one that runs already ends."""

    spec: TemplateSpec


class EndTemplate(Struct, frozen=True):
    """Let the template end."""


class FetchLetter(Struct, frozen=True):
    """Bring the step's letter into a memfd."""

    key: Key
    payload: Payload


class AwaitCalls(Struct, frozen=True):
    """Be there for the processes of an MPI launcher's that call for the ranks of this step."""

    key: Key


class DismissCallers(Struct, frozen=True):
    """Nothing of the step is left: let these processes go."""


class Fork(Struct, frozen=True):
    """Have the template fork a rank, with pipes and a socket of its own."""

    key: Key
    seat: Seat


class Signal(Struct, frozen=True):
    """Send a signal to a rank's process, by its pidfd."""

    key: Key
    rank: int
    number: int


class Drain(Struct, frozen=True):
    """Forward what a dead rank's pipes still hold."""

    key: Key
    rank: int


class Answered(Struct, frozen=True):
    """Tell the supervisor a rank's answer, with its payload."""

    key: Key
    answer: RankAnswered


class Ended(Struct, frozen=True):
    """Tell the supervisor a rank's fate, with the number of log messages sent before it."""

    key: Key
    fate: Fate


class Sweep(Struct, frozen=True):
    """Kill everything that the step left, wait for it, and report what would not die."""

    key: Key


class Closed(Struct, frozen=True):
    """Tell the supervisor that the step is over here."""

    key: Key
    survivors: tuple[Survivor, ...]


class KeepPort(Struct, frozen=True):
    """Bind a free port for rank 0, never listening on it; with ``meet``, be a meeting point on another one."""

    key: Key
    meet: bool


class Seek(Struct, frozen=True):
    """Try all addresses of a meeting point."""

    key: Key
    point: MeetingPoint


class EndMeeting(Struct, frozen=True):
    """Nobody is waited for, or looked for, any more."""

    key: Key


class FreePort(Struct, frozen=True):
    """Close the port that was kept for a step, and its meeting point."""

    key: Key


class Leave(Struct, frozen=True):
    """End the agent with this exit status."""

    status: int


Effect: TypeAlias = (
    Send
    | RunTemplate
    | EndTemplate
    | FetchLetter
    | AwaitCalls
    | DismissCallers
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
