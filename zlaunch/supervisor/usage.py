"""Level 4, pure: what an agent says that its ranks use, as an event, after it was looked at."""

from __future__ import annotations

from math import isfinite

from .. import events as ev
from ..model import RankUsage
from ..protocol import messages as m
from . import effects as do
from .state import Host, Run

MOST_GPUS = 64
"""GPUs of one rank that are told."""


def told_usage(run: Run | None, host: Host, message: m.Usage) -> list[do.Effect]:
    """Only of ranks of this host that run: each once, and in numbers that are some."""
    if run is None or run.attempt != message.attempt:
        return []
    ours = (seat.rank for seat in run.order.seats.get(host.plan.index, ()))
    running = {rank for rank in ours if rank in run.pids and rank not in run.fates}
    found = {use.rank: use for use in message.ranks if use.rank in running and _sane(use)}
    if not found:
        return []
    ranks = tuple(found[rank] for rank in sorted(found))
    at = message.at - host.clock_offset
    return [do.Emit(ev.Usage(at, run.order.id, host.plan.name, ranks))]


def _sane(use: RankUsage) -> bool:
    numbers = (use.cpu, use.memory, use.gpu or 0.0, use.gpu_memory or 0, *use.gpus)
    return len(use.gpus) <= MOST_GPUS and all(isfinite(number) and number >= 0 for number in numbers)
