"""Level 2: what supervisor and agent say to each other. Two closed unions of frozen structs.

A header is MessagePack; msgspec validates it against the union, so what is decoded is well-formed or an error. Payloads
(the letter with the task, results) are opaque and never part of a header: ``Payload`` says how one travels.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from ..model import Fate, HostFacts, RankUsage, Seat, StreamName, Survivor, TemplateSpec

PROTOCOL = 1
"""Risen with every change that an older peer would misread, from one release to the next. A message that it does not
know is such a change, and so is a field that it must not ignore."""


# --- how a payload travels ------------------------------------------------------------------------------------------


class Attached(Struct, frozen=True, tag="attached"):
    """In the frame that follows the header: payloads of up to ``frames.ATTACH_LIMIT`` bytes."""

    size: int


class Shared(Struct, frozen=True, tag="shared"):
    """In a memfd of a process on this very host, open at ``/proc/pid/fd/fd`` until it is released."""

    id: int
    pid: int
    fd: int
    size: int


class Pieces(Struct, frozen=True, tag="pieces"):
    """On the bulk channel, in pieces of 1 MiB with this id."""

    id: int
    size: int


Payload: TypeAlias = Attached | Shared | Pieces


# --- supervisor to agent, control -----------------------------------------------------------------------------------


class Welcome(Struct, frozen=True, tag="welcome"):
    """The agent is known. ``probe`` is a memfd of the supervisor: who can read the nonce in it shares the host."""

    probe_pid: int
    probe_fd: int
    probe_nonce: bytes
    log_credit: int
    """Bytes of log lines that may be on the way."""


class Ping(Struct, frozen=True, tag="ping"):
    """For the agent's clock: answered by ``Pong``."""

    sent: float


class Warm(Struct, frozen=True, tag="warm"):
    """Have this template ready; another one ends."""

    template: TemplateSpec


class MeetingPoint(Struct, frozen=True):
    """Where an agent waits for the others of a step, who find out by which of its addresses they can reach it."""

    addresses: tuple[str, ...]
    """The most promising first."""
    port: int
    token: bytes
    """16 bytes that it sends to everybody who connects: an address may well belong to another machine too."""


class Reserve(Struct, frozen=True, tag="reserve"):
    """Keep a free port for rank 0 of this step; with ``meet``, be a meeting point until the step starts."""

    step: str
    attempt: int
    meet: bool = False


class Reach(Struct, frozen=True, tag="reach"):
    """Try all addresses of this meeting point, and tell which of them reach it."""

    step: str
    attempt: int
    point: MeetingPoint


class Start(Struct, frozen=True, tag="start"):
    """Fork these ranks as soon as letter and template are there."""

    step: str
    attempt: int
    template: str
    seats: tuple[Seat, ...]
    letter: Payload
    answers: bool = True
    """Whether status 0 without an answer is a failure. Not for scripts and programs: they end as they like."""
    called: bool = False
    """Each rank is forked only when a process of an MPI launcher's has called for it."""


class Stop(Struct, frozen=True, tag="stop"):
    """End the ranks of a step: SIGTERM, and SIGKILL after ``grace`` seconds; at once where it is 0."""

    step: str
    attempt: int
    grace: float


class Credit(Struct, frozen=True, tag="credit"):
    """So many bytes of log lines have been dealt with."""

    size: int


class Release(Struct, frozen=True, tag="release"):
    """A shared payload of yours has been read."""

    id: int


class Shutdown(Struct, frozen=True, tag="shutdown"):
    """Go home."""


ToAgent: TypeAlias = Welcome | Ping | Warm | Reserve | Reach | Start | Stop | Credit | Release | Shutdown


# --- agent to supervisor, control -----------------------------------------------------------------------------------


class Hello(Struct, frozen=True, tag="hello"):
    """The first word of an agent."""

    facts: HostFacts
    clock: float
    way: str = ""
    """By which of the supervisor's endpoints it came."""


class Pong(Struct, frozen=True, tag="pong"):
    """The agent's clock, when it saw a ``Ping``."""

    sent: float
    clock: float
    shares_memory: bool
    """Whether the probe could be read: payloads may pass as memfds."""


class TemplateReady(Struct, frozen=True, tag="template-ready"):
    """A fork template has imported what it was to import."""

    key: str
    seconds: float
    start_method: str
    note: str = ""
    """Why it will start new interpreters although fork was asked for."""


class TemplateFailed(Struct, frozen=True, tag="template-failed"):
    """A fork template could not import what it was to import, or died."""

    key: str
    text: str


class Reserved(Struct, frozen=True, tag="reserved"):
    """A port is kept for rank 0."""

    step: str
    attempt: int
    port: int
    point: MeetingPoint | None = None


class Way(Struct, frozen=True):
    """An address of a meeting point that can be reached, and the interface here by which."""

    address: str
    interface: str


class Reached(Struct, frozen=True, tag="reached"):
    """By which addresses the meeting point was reached, in its own order; ``tried`` tells of the others."""

    step: str
    attempt: int
    ways: tuple[Way, ...]
    tried: str = ""


class Miscalled(Struct, frozen=True, tag="miscalled"):
    """An MPI launcher has called for a rank that is not planned on this host, or for one twice."""

    step: str
    attempt: int
    text: str


class Called(Struct, frozen=True, tag="called"):
    """The MPI launcher has called for all ranks of this host."""

    step: str
    attempt: int


class Started(Struct, frozen=True, tag="started"):
    """A rank's process is there."""

    step: str
    attempt: int
    rank: int
    pid: int
    at: float


class Answered(Struct, frozen=True, tag="answered"):
    """A rank gave its answer; it still has to end."""

    step: str
    attempt: int
    rank: int
    kind: Literal["value", "exception", "unpicklable"]
    at: float
    text: str = ""
    symptom: bool = False
    payload: Payload | None = None


class Ended(Struct, frozen=True, tag="ended"):
    """A rank is gone; its lines were sent before this: ``logs`` counts the agent's log messages until then."""

    step: str
    attempt: int
    fate: Fate
    logs: int


class Closed(Struct, frozen=True, tag="closed"):
    """Nothing of the step is alive here but the survivors. ``logs``: how many log messages the agent has sent."""

    step: str
    attempt: int
    survivors: tuple[Survivor, ...]
    logs: int


class Said(Struct, frozen=True, tag="said"):
    """The agent has something to say to the people."""

    level: Literal["debug", "info", "warning", "error"]
    text: str


class Usage(Struct, frozen=True, tag="usage"):
    """What the ranks of a step use, told every few seconds while they run. It may be late or missing: for eyes only."""

    step: str
    attempt: int
    at: float
    ranks: tuple[RankUsage, ...]


class Leaving(Struct, frozen=True, tag="leaving"):
    """The agent ends its ranks and goes, though the supervisor has not said so: a scheduler takes the host away."""

    reason: str


class Bye(Struct, frozen=True, tag="bye"):
    """The agent leaves as it was told to."""


ToSupervisor: TypeAlias = (
    Hello
    | Pong
    | TemplateReady
    | TemplateFailed
    | Reserved
    | Reached
    | Miscalled
    | Called
    | Started
    | Answered
    | Ended
    | Closed
    | Said
    | Usage
    | Leaving
    | Bye
    | Release
)


# --- bulk, both ways ------------------------------------------------------------------------------------------------


class Piece(Struct, frozen=True, tag="piece"):
    """The next frame is a part of a payload. Pieces come in order; the last one completes the payload's size."""

    id: int
    offset: int


class Log(Struct, frozen=True, tag="log"):
    """The frames that follow are lines of a rank, to be read as one piece of text."""

    number: int
    """Counts an agent's log messages from 1, so that one that is missing is noticed."""
    step: str
    rank: int
    stream: StreamName
    at: float
    size: int
    piece: bool = False
    redraw: bool = False
    """These are no lines, but the present state of one that redraws itself."""


Bulk: TypeAlias = Piece | Log
