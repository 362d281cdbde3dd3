"""Level 6: ``zlaunch ps``: the user's batch jobs, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

import msgspec

from .. import registry
from ..backends.scheduler import State
from ..registry import BatchJob
from ..surroundings import say
from .grammar import UsageError
from .queues import Elsewhere, Unreachable, cluster, is_settled, look_at, printable, remembered

AT_ONCE = 8
"""Questions to a scheduler at a time."""
_HEADS = ("JOB", "SCHEDULER", "STATE", "NODES x RANKS", "NAME", "FOLDER")


class Row(NamedTuple):
    """A job and where it stands; ``trouble`` where nobody could tell."""

    job: BatchJob
    state: State
    trouble: str = ""
    alone: bool = False
    """Whether the trouble says nothing of other jobs."""


def ps(*, all_jobs: bool, as_json: bool) -> int:
    """Print the jobs; returns the exit status.

    Raises:
        OSError: the registry cannot be read.
    """
    found = registry.look()
    rows = sorted(_rows(found.jobs), key=lambda row: row.job.submitted)
    shown = [row for row in rows if all_jobs or not row.state.over]
    if as_json:
        sys.stdout.write(json.dumps([_plain(row) for row in shown], indent=2) + "\n")
    elif shown:
        sys.stdout.write(_table([_HEADS, *map(_cells, shown)]))
    sys.stdout.flush()
    for trouble in dict.fromkeys(row.trouble for row in shown if row.trouble):
        say(trouble)
    for path in found.odd:
        say(f"left aside, since it is no entry that zlaunch wrote for you: {printable(path)}")
    if not shown and not as_json:
        ended = "" if all_jobs or not found.jobs else "; -a lists those that have ended"
        say(f"there are no batch jobs of yours that zlaunch knows of{ended}")
    return 0


def _rows(jobs: Iterable[BatchJob]) -> list[Row]:
    def whose(job: BatchJob) -> tuple[str, str]:
        return job.scheduler, job.cluster

    rows: list[Row] = []
    for (scheduler, _), group in groupby(sorted(jobs, key=whose), whose):
        asked: list[BatchJob] = []
        for job in group:
            if is_settled(job):
                rows.append(Row(job, remembered(job)))
            else:
                asked.append(job)
        if asked:
            found = _ask(asked, cluster(scheduler))
            rows += [Row(row.job, remembered(row.job)) if row.trouble and row.job.ended else row for row in found]
    return rows


def _ask(jobs: Sequence[BatchJob], here: str) -> list[Row]:
    """Of one cluster. Where the first question is in vain, the others are not put: each might take its time."""
    first = _row(jobs[0], here)
    if first.trouble and not first.alone:
        return [first, *(Row(job, first.state, first.trouble) for job in jobs[1:])]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [first, *pool.map(lambda job: _row(job, here), jobs[1:])]


def _row(job: BatchJob, here: str) -> Row:
    try:
        return Row(*look_at(job, here))
    except (Unreachable, UsageError) as error:
        return Row(job, State("unreachable"), str(error), isinstance(error, Elsewhere))


def _cells(row: Row) -> tuple[str, ...]:
    job = row.job
    return (job.job, job.scheduler, str(row.state), size(job), job.name or "-", job.folder)


def size(job: BatchJob) -> str:
    """``4 x 8``: nodes and the ranks of each, as far as they are known."""
    if job.hosts:
        counts = {count for _, count in job.hosts}
        return f"{len(job.hosts)} x {counts.pop()}" if len(counts) == 1 else f"{len(job.hosts)} nodes"
    nodes = "?" if job.nodes is None else str(job.nodes)
    return nodes if job.ranks is None else f"{nodes} x {job.ranks}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    plain = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in plain)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _plain(row: Row) -> dict[str, object]:
    job = row.job
    return {
        "job": job.job,
        "scheduler": job.scheduler,
        "cluster": job.cluster or None,
        "state": row.state.word,
        "why": row.state.why or None,
        "over": row.state.over,
        "nodes": len(job.hosts) or job.nodes,
        "ranks_per_node": job.ranks,
        "hosts": msgspec.to_builtins(job.hosts),
        "name": job.name,
        "folder": job.folder,
        "out": job.out,
        "err": job.err,
        "log_dir": job.log_dir,
        "argv": list(job.argv),
        "submitted": datetime.fromtimestamp(job.submitted).astimezone().isoformat(timespec="seconds"),
        "submitted_on": job.hostname,
    }
