"""Level 4, pure: one rank, and what its answer and its exit status say together."""

from __future__ import annotations

import os

from msgspec import Struct, field

from ..model import Fate, FateKind, Seat
from ..tables import RANK_TABLE, Machine, RankState
from . import happenings as on


class Rank(Struct):
    """One rank of the step at hand."""

    seat: Seat
    pid: int = 0
    answer: on.RankAnswered | None = None
    fate: Fate | None = None
    signalled: bool = False
    answered_late: bool = False
    """Its answer came after our signal."""
    machine: Machine[RankState] = field(default_factory=lambda: Machine(RANK_TABLE, RankState.WAITING))

    @property
    def is_there(self) -> bool:
        """Whether it is a process."""
        return self.machine.state in (RankState.RUNNING, RankState.ANSWERED)

    @property
    def finishes(self) -> bool:
        """Whether it has answered and ends by itself; one that only misses a peer has nothing left to do."""
        return self.machine.state is RankState.ANSWERED and not (self.answer and self.answer.symptom)


def verdict(rank: Rank, event: on.RankExited, answers: bool) -> Fate:
    """What the exit status and the answer together say; ``answers``: whether one was to be expected."""
    answer, stopped = rank.answer, rank.signalled
    code, number = _exit_of(event.status)
    if answer and answer.kind != "value":
        kind = FateKind.RAISED if answer.kind == "exception" else FateKind.UNPICKLABLE
        if rank.signalled and not rank.answered_late:
            code, number = 1, None  # it had failed by itself; that we ended it afterwards says nothing of it
        return fate_of(
            rank,
            kind,
            answer.at,
            code=code,
            number=number,
            text=answer.text,
            symptom=answer.symptom,
            stopped=rank.answered_late,
        )
    if event.status is None:
        return fate_of(rank, FateKind.LOST, event.at, text=event.text, stopped=stopped)
    if number is not None:
        return fate_of(rank, FateKind.SIGNALED, event.at, number=number, oom=event.out_of_memory, stopped=stopped)
    if code == 0 and (answer or not answers):
        return fate_of(rank, FateKind.RETURNED, event.at, code=0)
    return fate_of(rank, FateKind.EXITED, event.at, code=code, stopped=stopped)


def fate_of(
    rank: Rank,
    kind: FateKind,
    at: float,
    *,
    code: int | None = None,
    number: int | None = None,
    oom: bool = False,
    stopped: bool = False,
    symptom: bool = False,
    text: str = "",
) -> Fate:
    """A fate of this rank."""
    return Fate(
        rank=rank.seat.rank,
        local_rank=rank.seat.local_rank,
        hostname=rank.seat.hostname,
        pid=rank.pid,
        kind=kind,
        at=at,
        exit_code=code,
        signal=number,
        out_of_memory=oom,
        stopped=stopped,
        symptom=symptom,
        text=text,
    )


def _exit_of(status: int | None) -> tuple[int | None, int | None]:
    """Exit status and signal of a wait status; where nobody knows it, those of an uncaught exception."""
    if status is None:
        return 1, None
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.waitstatus_to_exitcode(status), None
