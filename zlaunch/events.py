"""Level 1: everything that happens, as one stream of frozen values.

The supervisor emits them in order; the console, the log files, ``--view json``, the logging handlers and the tests
only listen. The union ``Event`` is closed: who matches on it can be checked for having thought of every case.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from .model import Fate, HostFacts, HostPlan, RankUsage, StreamName, Survivor

Outcome = Literal["succeeded", "failed", "cancelled", "timed out", "lost"]
"""How a run ended: ``lost`` is a host that was lost, ``failed`` a rank that failed."""


Level = Literal["debug", "info", "warning", "error"]
"""Of a notice."""


class AgentConnected(Struct, frozen=True, tag="agent-connected"):
    """A host's agent has connected and said what is there."""

    at: float
    hostname: str
    facts: HostFacts


class AgentLost(Struct, frozen=True, tag="agent-lost"):
    """A host's agent is gone without having been told to go."""

    at: float
    hostname: str
    reason: str


class RunStarted(Struct, frozen=True, tag="run-started"):
    """A run's ranks are being started. Sent again, with ``restart`` risen, for every restart."""

    at: float
    run: str
    name: str
    hosts: tuple[HostPlan, ...]
    restart: int
    log_token: str
    log_folder: str = ""
    """The absolute path of the folder that the run's log files go to, on the launcher's machine; empty: none."""
    created: float = 0.0
    """Wall-clock time of ``at`` in seconds since the epoch: with it every other ``at`` of the run can be dated."""


class RankStarted(Struct, frozen=True, tag="rank-started"):
    """A rank's process is there."""

    at: float
    run: str
    rank: int
    local_rank: int
    hostname: str
    pid: int


class Output(Struct, frozen=True, tag="output"):
    """What a rank printed: whole lines, each with its line end, except where ``piece`` says otherwise.

    ``data`` may hold many lines. A line that had no end when its rank died ends without one. A line of over 16 MiB
    comes as several events: all but its last have ``piece`` true, and no line end. Logging records of the rank lie
    between the lines as marked lines until ``view.records`` has taken them out.
    """

    at: float
    run: str
    rank: int
    local_rank: int
    hostname: str
    stream: StreamName
    data: bytes
    piece: bool = False


class Redrawn(Struct, frozen=True, tag="redrawn"):
    """The present state of a line that redraws itself with ``\\r``, told every half second while it does, until it is
    finished; in very large runs every few seconds.

    Then its last state comes as ``Output``, as any line; this is for eyes only, and belongs in no file.
    """

    at: float
    run: str
    rank: int
    local_rank: int
    hostname: str
    stream: StreamName
    text: str


class Record(Struct, frozen=True, tag="record"):
    """A ``logging`` record of a rank, as it was made there."""

    at: float
    run: str
    rank: int
    local_rank: int
    hostname: str
    name: str
    level: int
    created: float
    """Wall-clock time in seconds since the epoch, on the rank's host."""
    message: str
    handled: bool = False
    """True where the user's own handlers on the rank had it too, so that it was printed there already."""
    exc_text: str = ""
    pathname: str = ""
    lineno: int = 0
    func: str = ""
    process: int = 0
    thread: str = ""
    """Its name."""
    extra: dict[str, Any] = {}
    """What ``logging`` was given by ``extra``: plain values, as JSON has them."""


class Usage(Struct, frozen=True, tag="usage"):
    """What the ranks of one host use, told every few seconds while they run."""

    at: float
    run: str
    hostname: str
    ranks: tuple[RankUsage, ...]


class RankEnded(Struct, frozen=True, tag="rank-ended"):
    """A rank is gone, and all that it printed has been told."""

    at: float
    run: str
    fate: Fate


class RunRestarting(Struct, frozen=True, tag="run-restarting"):
    """A step failed and is started again as a whole."""

    at: float
    run: str
    cause: Fate
    restart: int
    max_restarts: int


class RunEnded(Struct, frozen=True, tag="run-ended"):
    """A run is over: nothing of it is alive but the survivors."""

    at: float
    run: str
    outcome: Outcome
    cause: Fate | None
    fates: tuple[Fate, ...]
    """Every rank's fate, in the order of time."""
    survivors: tuple[Survivor, ...] = ()
    unasked: tuple[str, ...] = ()
    """Other machines that were lost: what ran there could not be asked for, and ends by itself."""


class Notice(Struct, frozen=True, tag="notice"):
    """zlaunch has something to say; ``hostname`` is empty where it is the supervisor itself."""

    at: float
    level: Level
    text: str
    hostname: str = ""


Event: TypeAlias = (
    AgentConnected
    | AgentLost
    | RunStarted
    | RankStarted
    | Output
    | Redrawn
    | Record
    | Usage
    | RankEnded
    | RunRestarting
    | RunEnded
    | Notice
)
