"""Level 4: the schedulers that there are, and which of them is ours here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from . import SCHEDULERS
from .scheduler import Job, Scheduler


def _load(name: str) -> Scheduler:
    module = import_module(f".{name}", __package__)
    (found,) = (one for one in Scheduler.__subclasses__() if one.__module__ == module.__name__)
    return found()


TABLE: dict[str, Scheduler] = {name: _load(name) for name in SCHEDULERS}
"""By name."""


def of(name: str) -> Scheduler:
    """The scheduler of this name. Raises KeyError."""
    return TABLE[name]


def job_in(environ: Mapping[str, str]) -> tuple[Scheduler, Job] | None:
    """The job that we are in, and whose it is; ``None`` where we are in none."""
    found = ((one, one.job_in(environ)) for one in TABLE.values())
    return next(((one, job) for one, job in found if job), None)


def configured(environ: Mapping[str, str]) -> Scheduler | None:
    """The scheduler whose commands are here; ``None`` where there is none."""
    return next((one for one in TABLE.values() if one.is_configured(environ)), None)


def here(environ: Mapping[str, str]) -> tuple[str, str]:
    """The name of the scheduler whose job we are in, and the job's id; else of the configured one, or ``none``."""
    if found := job_in(environ):
        return found[0].name, found[1].id
    one = configured(environ)
    return (one.name if one else "none"), ""
