"""Level 6: ``zlaunch ps``: the user's runs and batch jobs, as a table or as JSON. One row for a job and its run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

import msgspec

from ..backends.scheduler import State
from ..registry import runs, submitted
from ..registry.runs import RunEntry
from ..registry.submitted import BatchJob
from ..surroundings import say
from .grammar import UsageError
from .queues import Elsewhere, Unreachable, cluster, is_settled, look_at, printable, remembered

AT_ONCE = 8
"""Questions to a scheduler, or to runs of other machines, at a time."""
ANSWER = 2.0
"""Seconds that a run of another machine has to answer."""
_HEADS = ("RUN", "WHERE", "STATE", "HOSTS x RANKS", "ELAPSED", "NAME")


class Row(NamedTuple):
    """A job, a run or both, and where it stands; ``trouble`` where nobody could tell."""

    job: BatchJob | None
    state: State
    trouble: str = ""
    alone: bool = False
    """Whether the trouble says nothing of other jobs."""
    run: RunEntry | None = None

    @property
    def began(self) -> float:
        """When it was submitted."""
        return self.run.started if self.run and not self.job else self.job.submitted if self.job else 0.0


def ps(*, all_jobs: bool, as_json: bool) -> int:
    """Print them; returns the exit status.

    Raises:
        OSError: the registry cannot be read.
    """
    jobs, living = submitted.look(), runs.look()
    rows = _rows(jobs.jobs)
    rows = sorted([*_joined(rows, living.runs), *_rows_of_runs(rows, living.runs)], key=lambda row: row.began)
    shown = [row for row in rows if all_jobs or not row.state.over]
    if as_json:
        sys.stdout.write(json.dumps([_plain(row) for row in shown], indent=2) + "\n")
    elif shown:
        sys.stdout.write(_table([_HEADS, *map(_cells, shown)]))
    sys.stdout.flush()
    for trouble in dict.fromkeys(row.trouble for row in shown if row.trouble):
        say(trouble)
    for path in (*jobs.odd, *living.odd):
        say(f"left aside, since it is no entry that zlaunch wrote for you: {printable(path)}")
    if not shown and not as_json:
        ended = "" if all_jobs or not rows else "; -a lists those that have ended"
        say(f"there are no runs or batch jobs of yours that zlaunch knows of{ended}")
    return 0


# --- jobs -----------------------------------------------------------------------------------------------------------


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
            for row, job in zip(_ask(asked, cluster(scheduler)), asked, strict=True):
                rows.append(Row(job, remembered(job)) if row.trouble and job.ended else row)
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


# --- runs -----------------------------------------------------------------------------------------------------------


def _joined(rows: Iterable[Row], found: Sequence[RunEntry]) -> list[Row]:
    """The jobs' rows, with their runs."""
    by_id = {entry.run: entry for entry in found}
    by_job = {(entry.scheduler, entry.job): entry for entry in found if entry.job}
    joined = []
    for row in rows:
        assert row.job is not None
        entry = by_id.get(row.job.run) or by_job.get((row.job.scheduler, row.job.job))
        if entry is not None and row.state.over and not entry.ended:
            runs.remove(entry.run)  # its supervisor was in there, and is gone, whatever became of it
        joined.append(row._replace(run=entry))
    return joined


def _rows_of_runs(rows: Iterable[Row], found: Sequence[RunEntry]) -> list[Row]:
    """Of runs that are in no row of a job's."""
    jobs = [row.job for row in rows if row.job]
    known = {job.run for job in jobs if job.run} | {(job.scheduler, job.job) for job in jobs}
    others = [entry for entry in found if not {entry.run, (entry.scheduler, entry.job)} & known]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(_row_of_run, others))


def _row_of_run(entry: RunEntry) -> Row:
    if entry.ended:
        why = f"exit status {entry.status}" if entry.status else ""
        return Row(None, State(printable(entry.state), why, over=True), run=entry)
    if runs.whereabouts(entry.place) == "here":
        return Row(None, State(printable(entry.state)), run=entry)
    if entry.job:
        over = _job_is_over(entry)
        if over:
            runs.remove(entry.run)
            return Row(None, State("ended", over=True), run=entry)
        if over is False:
            return Row(None, State(printable(entry.state)), run=entry)
    if _answers(entry):
        return Row(None, State(printable(entry.state)), run=entry)
    where = printable(entry.place.hostname)
    file = printable(runs.path(entry.run))
    trouble = f"run {entry.run} on {where} does not answer; if it has ended, zlaunch ps there, or rm {file}, forgets it"
    return Row(None, State("unreachable"), trouble, run=entry)


def _job_is_over(entry: RunEntry) -> bool | None:
    """What the scheduler says of the job that a run is in; ``None``: nothing."""
    from .queues import UNKNOWN, state

    try:
        found = state(entry.scheduler, entry.job)
    except (Unreachable, UsageError):
        return None
    return None if found is UNKNOWN else found.over


def _answers(entry: RunEntry) -> bool:
    """Whether the run of another machine lets us in."""
    from ..link.visitor import Visitor
    from ..link.words import LinkError

    ticket = runs.ticket(entry)
    if ticket is None:
        return False
    visitor = Visitor(ticket)
    try:
        visitor.connect(ANSWER, listen=False)
    except LinkError:
        return False
    finally:
        visitor.close()
    return True


# --- words ----------------------------------------------------------------------------------------------------------


def _cells(row: Row) -> tuple[str, ...]:
    job, run = row.job, row.run
    name = (job.name if job else run.name if run else "") or "-"
    if job is not None:
        return (job.job, job.scheduler, str(row.state), size(job), _elapsed(row), name)
    assert run is not None
    return (run.run, run.place.hostname, str(row.state), _size(run.hosts), _elapsed(row), name)


def size(job: BatchJob) -> str:
    """``4 x 8``: nodes and the ranks of each, as far as they are known."""
    if job.hosts:
        return _size(job.hosts)
    nodes = "?" if job.nodes is None else str(job.nodes)
    return nodes if job.ranks is None else f"{nodes} x {job.ranks}"


def _size(hosts: Sequence[tuple[str, int]]) -> str:
    counts = {count for _, count in hosts}
    return f"{len(hosts)} x {counts.pop()}" if len(counts) == 1 else f"{len(hosts)} hosts"


def _elapsed(row: Row) -> str:
    """Since the run began, or until its end; of a job without one nothing is known."""
    began = row.run.started if row.run else 0.0
    end = (row.run.ended if row.run else 0.0) or time.time()
    if not began or (row.state.over and not (row.run and row.run.ended)):
        return "-"
    minutes, seconds = divmod(max(0, int(end - began)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}:{minutes:02}:{seconds:02}" if days else f"{hours}:{minutes:02}:{seconds:02}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    plain = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in plain)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _plain(row: Row) -> dict[str, object]:
    """What is said of every row, of those with a run and of those with a job; what one has not is null."""
    job, run = row.job, row.run
    hosts = (run.hosts if run else ()) or (job.hosts if job else ())
    return {
        "run": run.run if run else (job.run or None) if job else None,
        "job": job.job if job else (run.job or None) if run else None,
        "scheduler": job.scheduler if job else (run.scheduler or None) if run else None,
        "cluster": (job.cluster or None) if job else None,
        "state": row.state.word,
        "why": row.state.why or None,
        "over": row.state.over,
        "nodes": len(hosts) or (job.nodes if job else None),
        "ranks_per_node": job.ranks if job else None,
        "hosts": msgspec.to_builtins(hosts),
        "name": job.name if job else run.name if run else None,
        "folder": job.folder if job else None,
        "out": job.out if job else (run.console or None) if run else None,
        "err": job.err if job else None,
        "log_dir": job.log_dir if job else None,
        "log_folder": (run.log_folder or None) if run else None,
        "argv": list(job.argv if job else run.argv if run else ()),
        "submitted": _date(row.began),
        "submitted_on": job.hostname if job else run.place.hostname if run else None,
        "started": _date(run.started) if run else None,
        "hostname": run.place.hostname if run else None,
        "pid": run.place.pid if run else None,
        "detached": run.detached if run else None,
        "status": run.status if run and run.ended else None,
    }


def _date(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
