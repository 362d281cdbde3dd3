"""Level 4, view: ranks' records and lines as ``logging`` records of this program.

Without handlers of the user's choice, the ranks' logging records go to the loggers
``zlaunch.<hostname>.<local rank>``, as if they had been made here. With them, those handlers get
everything, printed lines too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial

from ..events import Event, Notice, Output, Record

LEVELS = {"out": logging.INFO, "err": logging.ERROR}
_NOTICE_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def log_record(record: Record) -> logging.LogRecord:
    """A rank's record as one of this program: time, level, place, process, thread and what ``extra`` gave it are kept.

    Its message begins with its logger's name, unless that was the root. It carries ``hostname``,
    ``local_rank``, ``rank`` and ``origin``, the logger's name on the rank; these no ``extra`` can change.
    """
    message = record.message if record.name == "root" else f"{record.name}: {record.message}"
    made = _make(record.hostname, record.local_rank, record.level, message)
    made.created = record.created
    made.msecs = float(int(record.created % 1 * 1000))
    made.relativeCreated = (record.created - _loaded) * 1000
    made.pathname = record.pathname
    made.filename = os.path.basename(record.pathname)
    made.module = os.path.splitext(made.filename)[0]
    made.lineno = record.lineno
    made.funcName = record.func or ""
    made.exc_text = record.exc_text or None
    made.rank = record.rank
    made.origin = record.name
    made.process = record.process or None
    made.threadName = record.thread or None
    made.thread = None
    for name, value in record.extra.items():
        if not name.startswith("_") and not hasattr(made, name):
            setattr(made, name, value)
    return made


def _make(hostname: str, local_rank: int | None, level: int, message: str) -> logging.LogRecord:
    parts = [
        "zlaunch",
        *([hostname] if hostname else []),
        *([str(local_rank)] if local_rank is not None else []),
    ]
    made = logging.LogRecord(".".join(parts), level, "", 0, message, None, None)
    made.hostname = hostname
    made.local_rank = local_rank
    made.rank = None
    made.origin = ""
    return made


_loaded = _make("", None, 0, "").created


def to_loggers(event: Record) -> bool:
    """Gives a record to this program's loggers; false where no handler is there that could have shown it."""
    logger = logging.getLogger(f"zlaunch.{event.hostname}.{event.local_rank}")
    if not logger.hasHandlers():
        return False
    if logger.isEnabledFor(event.level):
        logger.handle(log_record(event))
    return True


class Handlers:
    """The user's own handlers, in the console's place. One that raises is told of once and stops nothing."""

    def __init__(self, handlers: Sequence[logging.Handler], said: Callable[[str], None]) -> None:
        self._handlers = list(handlers)
        self._said = said
        self._failed: set[int] = set()

    def handle(self, event: Event) -> None:
        """Hands an event over: of output a record per line, INFO from stdout and ERROR from stderr."""
        match event:
            case Output():
                for line in event.data.removesuffix(b"\n").split(b"\n"):
                    made = _make(
                        event.hostname,
                        event.local_rank,
                        LEVELS[event.stream],
                        line.removesuffix(b"\r").decode(errors="replace"),
                    )
                    made.rank = event.rank
                    self._emit(made)
            case Record():
                self._emit(log_record(event))
            case Notice():
                self._emit(_make(event.hostname, None, _NOTICE_LEVELS[event.level], event.text))
            case _:
                pass

    def flush(self) -> None:
        """Flushes all."""
        for handler in self._handlers:
            self._guarded(handler, handler.flush)

    def close(self) -> None:
        """Flushes and closes all."""
        self.flush()
        for handler in self._handlers:
            self._guarded(handler, handler.close)

    def _emit(self, record: logging.LogRecord) -> None:
        for handler in self._handlers:
            if record.levelno >= handler.level:
                self._guarded(handler, partial(handler.handle, record))

    def _guarded(self, handler: logging.Handler, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            if id(handler) not in self._failed:
                self._failed.add(id(handler))
                self._said(f"logging handler {handler!r} failed: {type(error).__name__}: {error}")
