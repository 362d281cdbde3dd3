"""Level 4, worker: the ``logging`` records of a function go to the launcher within the rank's stdout.

Each is one marked line, which nobody can forge who does not know the step's token, and which keeps its place among
the lines that the rank prints; a large one is several, since a pipe takes only so much without letting other threads
and processes come between. No handler is put on the root logger: the user's ``logging.basicConfig`` would do
nothing where one is. Instead the method by which a logger finds its handlers is wrapped; what the user's own handlers
print is so marked, and Python's last resort, which prints warnings where there is no handler, is replaced by us. So is
the handler that ``logging.info`` and its sisters add by themselves where root has none: no user has asked for that one.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

_HIGH = 200


def capture_records(token: str, level: int) -> None:
    """From now on, send every record of this process that its logger lets pass; root's level becomes ``level``."""
    mark = b"\x1e" + token.encode()
    numbers = itertools.count()
    pipe = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    original = logging.Logger.callHandlers
    configure = logging.basicConfig
    formatter = logging.Formatter()

    def basic_config(**options: Any) -> None:
        if sys._getframe(1).f_globals is not vars(logging):
            configure(**options)

    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        if self.hasHandlers():
            original(self, record)
        with suppress(Exception):
            _write(pipe, mark, _encode(record, _is_handled(self, record), formatter), numbers)

    logging.basicConfig = basic_config
    logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
    logging.getLogger().setLevel(level)


def _encode(record: logging.LogRecord, handled: bool, formatter: logging.Formatter) -> bytes:
    try:
        message = record.getMessage()
    except Exception as error:  # the arguments do not fit the format
        message = f"{record.msg!r} % {record.args!r} ({type(error).__name__}: {error})"
    trace = ""
    if record.exc_info and record.exc_info[0] is not None:
        trace = formatter.formatException(record.exc_info)
    elif record.exc_text:
        trace = record.exc_text
    if record.stack_info:
        trace = f"{trace}\n{record.stack_info}" if trace else record.stack_info
    return msgspec.json.encode(
        {
            "name": record.name,
            "level": record.levelno,
            "created": record.created,
            "message": _clean(message),
            "handled": handled,
            "exc_text": _clean(trace),
            "pathname": _clean(record.pathname),
            "lineno": record.lineno,
            "func": record.funcName or "",
        }
    )


def _is_handled(logger: logging.Logger, record: logging.LogRecord) -> bool:
    """Whether one of the user's handlers has shown the record; a file's or an empty one has not."""
    current: logging.Logger | None = logger
    while current is not None:
        for handler in current.handlers:
            silent = isinstance(handler, (logging.NullHandler, logging.FileHandler))
            if not silent and record.levelno >= handler.level:
                return True
        current = current.parent if current.propagate else None
    return False


def _write(pipe: int, mark: bytes, text: bytes, numbers: Iterator[int]) -> None:
    with suppress(Exception):
        sys.stdout.flush()  # what was printed before comes before
    if len(mark) + len(text) < select.PIPE_BUF:
        os.write(pipe, mark + text + b"\n")
        return
    name = b"%x.%x" % (os.getpid(), next(numbers))
    room = select.PIPE_BUF - len(mark) - len(name) - 3
    last = (len(text) - 1) // room * room
    for start in range(0, len(text), room):
        sign = b"." if start == last else b"+"
        os.write(pipe, b"%b%b%b %b\n" % (mark, sign, name, text[start : start + room]))


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
