"""Level 4, pure: which failure is the cause, and what is said of ranks that nobody saw end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..model import Fate, FateKind, Seat
from ..protocol.messages import Answered


def choose_cause(failures: Iterable[Fate]) -> Fate:
    """The failure that came first. What we ended ourselves is no cause, and a symptom is one only among symptoms."""
    return min(failures, key=lambda fate: (fate.stopped, fate.symptom, fate.at))


def provisional_fate(seat: Seat, answer: Answered, at: float, pid: int) -> Fate:
    """A failure as it was told by the rank itself, before its process has ended."""
    kind = FateKind.RAISED if answer.kind == "exception" else FateKind.UNPICKLABLE
    return Fate(
        rank=seat.rank,
        local_rank=seat.local_rank,
        hostname=seat.hostname,
        pid=pid,
        kind=kind,
        at=at,
        exit_code=1,
        text=answer.text,
        symptom=answer.symptom,
    )


def lost_fates(
    seats: Iterable[Seat], known: Mapping[int, Fate], reason: str, now: float, pids: Mapping[int, int]
) -> Iterator[Fate]:
    """Fates for the ranks of a lost host that had none yet; ``pids`` are those of ranks that had started."""
    for seat in seats:
        if seat.rank not in known:
            yield Fate(
                rank=seat.rank,
                local_rank=seat.local_rank,
                hostname=seat.hostname,
                pid=pids.get(seat.rank, 0),
                kind=FateKind.LOST,
                at=now,
                text=reason,
            )
