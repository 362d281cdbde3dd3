"""Level 6: which run a word on the command line means: an id, the beginning of one, a name, a job's id, ``last``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..registry import runs, submitted
from ..registry.runs import RunEntry
from ..registry.submitted import BatchJob
from .grammar import UsageError
from .queues import printable

LAST = "last"


def find_run(word: str, scheduler: str | None = None) -> RunEntry | None:
    """The run that is meant, if one is known.

    Raises:
        UsageError: there are several.
        OSError: the registry cannot be read.
    """
    found = runs.look().runs
    living = [entry for entry in found if not entry.ended]
    if word == LAST:
        return (living or list(found) or [None])[-1]  # type: ignore[list-item]
    of_job = run_of(word, scheduler)
    ways: tuple[Callable[[RunEntry], bool], ...] = (
        lambda entry: entry.run == word,
        lambda entry: bool(entry.job) and entry.job == submitted.same_id(word) and scheduler in (None, entry.scheduler),
        lambda entry: entry.run == of_job,
        lambda entry: entry.name == word,
        lambda entry: entry.run.startswith(word),
    )
    for is_meant in ways if scheduler is None else ways[1:3]:
        for among in (living, found):
            meant = [entry for entry in among if is_meant(entry)]
            if len(meant) > 1:
                raise UsageError(f"{word!r} may be any of these runs: {_ids(meant)}", "say which by its id")
            if meant:
                return meant[0]
    return None


def the_run(word: str, scheduler: str | None = None) -> RunEntry:
    """The run that is meant. Raises as ``find_run``, and UsageError where none is known."""
    found = find_run(word, scheduler)
    if found is not None:
        return found
    job = next((job for job in submitted.look().jobs if job.job == submitted.same_id(word)), None)
    if job is not None:
        raise UsageError(_no_run_of(job), f"zlaunch logs {job.job} shows what it has printed")
    raise UsageError(f"no run {word} is known here", "zlaunch ps lists those that are")


def run_of(job: str, scheduler: str | None) -> str | None:
    """The id of a batch job's run, where it has told us."""
    wanted = submitted.same_id(job)
    known = [one for one in submitted.look().jobs if one.job == wanted and scheduler in (None, one.scheduler)]
    return next((one.run for one in known if one.run), None)


def _no_run_of(job: BatchJob) -> str:
    if job.ended:
        return f"job {job.job} has ended: {printable(job.word)}"
    return f"no run of job {job.job} is there: it waits in the queue, or is none of zlaunch's own"


def _ids(meant: Sequence[RunEntry]) -> str:
    shown = [f"{entry.run} ({printable(entry.name)})" for entry in meant[-6:]]
    return ", ".join(shown if len(meant) <= 6 else ["...", *shown])
