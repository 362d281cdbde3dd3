"""Level 4, view: the wording of records, notices and reports. Pure: values in, text out."""

from __future__ import annotations

import logging
import time

from ..events import Notice, Record, RunEnded, RunRestarting
from ..model import Fate, FateKind


def wall_time(created: float) -> str:
    """``2026-01-01 12:00:00,123``, as ``logging`` writes it, in local time."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(created))},{int(created % 1 * 1000):03d}"


def format_record(record: Record) -> str:
    """A record as it stands in a log file: time, level, logger and message, then the exception's text."""
    head = f"{wall_time(record.created)} {logging.getLevelName(record.level)} {record.name}: {record.message}"
    return f"{head}\n{record.exc_text.rstrip()}" if record.exc_text else head


def short_record(record: Record) -> str:
    """A record as it stands on the console, where it is read as it happens: without the time."""
    head = f"{logging.getLevelName(record.level)} {record.name}: {record.message}"
    return f"{head}\n{record.exc_text.rstrip()}" if record.exc_text else head


def format_notice(notice: Notice, created: float) -> str:
    """An agent's notice as it stands in its host's log file."""
    return f"{wall_time(created)} {notice.level.upper()} agent: {notice.text}"


def who(fate: Fate) -> str:
    """``rank 2 (localhost, local rank 2, pid 41)``."""
    pid = f", pid {fate.pid}" if fate.pid else ", never started"
    return f"rank {fate.rank} ({fate.hostname}, local rank {fate.local_rank}{pid})"


def restart_words(event: RunRestarting) -> str:
    """Why a step is started again."""
    return f"{who(event.cause)} {event.cause.describe()}: restart {event.restart} of {event.max_restarts}"


def _same_loss(fate: Fate, cause: Fate) -> bool:
    return (fate.kind, fate.hostname, fate.text) == (cause.kind, cause.hostname, cause.text)


def report(ended: RunEnded, log_file: str | None) -> list[str]:
    """What to say of a run that did not succeed: who failed, which rank first, and where to read on.

    The last lines are the ones that matter. Of a run that succeeded only survivors are told.
    """
    lines = [f"still alive: pid {s.pid} on {s.hostname} ({s.command})" for s in ended.survivors]
    if ended.outcome == "succeeded":
        return lines
    cause = ended.cause
    lost = [fate for fate in ended.fates if cause and cause.kind is FateKind.LOST and _same_loss(fate, cause)]
    told = {fate.rank for fate in lost} | ({cause.rank} if cause else set())
    others = [fate for fate in ended.fates if not fate.ok and fate.rank not in told]
    failed = [fate for fate in others if not fate.stopped and not fate.symptom]
    lines += [f"{who(fate)} {fate.describe()}" for fate in failed[:5]]
    if more := len(others) - len(failed[:5]):
        other = "" if cause is None and not failed else "other "
        lines.append(f"{more} {other}{'rank' if more == 1 else 'ranks'} ended or stopped with the run")
    if ended.outcome == "cancelled":
        lines.append("cancelled")
    elif ended.outcome == "timed out":
        lines.append("the time limit has passed")
    if cause is not None:
        first = "first: " if failed else ""
        whose = who(cause) if len(lost) < 2 else f"ranks {', '.join(str(f.rank) for f in lost)} ({cause.hostname})"
        lines.append(f"{first}{whose} {cause.describe()}")
        if cause.out_of_memory:
            lines.append("use fewer ranks, a smaller batch, or a larger memory limit")
        elif cause.kind is FateKind.UNPICKLABLE and cause.text:
            lines += cause.text.rstrip().splitlines()
    if log_file:
        lines.append(f"its whole output: {log_file}")
    return lines
