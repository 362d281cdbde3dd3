"""Level 4, view: the wording of records, notices and restarts. Pure: values in, text out."""

from __future__ import annotations

import logging
import time

from ..events import Notice, Record, RunRestarting
from ..failure import what, who


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


def restart_words(event: RunRestarting) -> str:
    """Why a step is started again."""
    return f"{who(event.cause)} {what(event.cause)}: restart {event.restart} of {event.max_restarts}"
