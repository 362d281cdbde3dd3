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
import json
import logging
import numbers
import os
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

_HIGH = 200
_LARGEST = 32 << 20
"""Bytes of a record that is sent as it is; the launcher waits for the parts of one twice as large at most."""
_ENOUGH = 1 << 20
"""Characters that are left of a text in a larger one."""
_MOST_EXTRAS = 64
_LARGEST_EXTRA = 16 << 10
"""Bytes of one: ``extra`` is for facts, not for data."""
_DEEPEST_EXTRA = 6
_HIGHEST = 1 << 31
"""Level, whatever somebody thinks of."""
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; what else it has came with ``extra``."""


def capture_records(token: str, level: int) -> None:
    """From now on, send every record of this process that its logger lets pass; root's level becomes ``level``."""
    mark = b"\x1e" + token.encode()
    serials = itertools.count()
    pipe = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    original = logging.Logger.callHandlers
    configure = logging.basicConfig
    formatter = logging.Formatter()

    def basic_config(**options: Any) -> None:
        if sys._getframe(1).f_globals is not vars(logging):
            configure(**options)

    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        extra = _extra(record)  # before handlers add what is theirs
        if self.hasHandlers():
            original(self, record)
        with suppress(Exception):
            _write(pipe, mark, _encode(record, _is_handled(self, record), formatter, extra), serials)

    logging.basicConfig = basic_config
    logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
    logging.getLogger().setLevel(level)


def _encode(record: logging.LogRecord, handled: bool, formatter: logging.Formatter, extra: dict[str, object]) -> bytes:
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
    text = _json(record, handled, _clean(message), _clean(trace), extra)
    if len(text) > _LARGEST:
        text = _json(record, handled, _cut(_clean(message)), _cut(_clean(trace)), extra)
    return text


def _json(record: logging.LogRecord, handled: bool, message: str, trace: str, extra: dict[str, object]) -> bytes:
    fields = {
        "name": _clean(record.name),
        "level": min(record.levelno, _HIGHEST),
        "created": record.created,
        "message": message,
        "handled": handled,
        "exc_text": trace,
        "pathname": _clean(record.pathname),
        "lineno": record.lineno,
        "func": _clean(record.funcName or ""),
        "process": record.process or 0,
        "thread": _clean(record.threadName or ""),
    }
    if not extra:
        return msgspec.json.encode(fields)
    return json.dumps({**fields, "extra": extra}).encode()  # which knows NaN, a loss that is worth a record


def _cut(text: str) -> str:
    return text if len(text) <= _ENOUGH else f"{text[:_ENOUGH]} … ({len(text)} characters)"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    """What the user has given a record: numbers, texts, and lists and dicts of them. Of the rest nothing is sent."""
    kept: dict[str, object] = {}
    for name in vars(record).keys() - _OWN:
        if len(kept) == _MOST_EXTRAS:
            break
        with suppress(Exception):
            plain = _plain(vars(record)[name], _DEEPEST_EXTRA)
            if len(json.dumps(plain)) <= _LARGEST_EXTRA:
                kept[_clean(name)] = plain
    return kept


def _plain(value: object, depth: int) -> object:
    """A value as JSON has it, numpy's numbers too. Raises TypeError where it is no such value."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, numbers.Integral) and -(1 << 63) <= int(value) < 1 << 63:  # what every encoding has
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if depth and isinstance(value, (list, tuple)) and len(value) <= _LARGEST_EXTRA:
        return [_plain(each, depth - 1) for each in value]
    if depth and isinstance(value, dict) and len(value) <= _LARGEST_EXTRA:
        return {_clean(str(key)): _plain(each, depth - 1) for key, each in value.items()}
    raise TypeError(f"{type(value).__name__} is not plain")


def _is_handled(logger: logging.Logger, record: logging.LogRecord) -> bool:
    """Whether one of the user's handlers has printed the record."""
    current: logging.Logger | None = logger
    while current is not None:
        if any(record.levelno >= handler.level and _prints(handler) for handler in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False


def _prints(handler: logging.Handler) -> bool:
    """Whether what a handler does is seen on stdout or stderr: twice is a nuisance, and never is a loss."""
    if isinstance(handler, logging.FileHandler):
        return False
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    with suppress(Exception):
        return stream in (sys.stdout, sys.stderr) or stream.fileno() in (1, 2)  # type: ignore[union-attr]
    return False


def _write(pipe: int, mark: bytes, text: bytes, serials: Iterator[int]) -> None:
    with suppress(Exception):
        sys.stdout.flush()  # what was printed before comes before
    if len(mark) + len(text) < select.PIPE_BUF:
        os.write(pipe, mark + text + b"\n")
        return
    name = b"%x.%x" % (os.getpid(), next(serials))
    room = select.PIPE_BUF - len(mark) - len(name) - 3
    last = (len(text) - 1) // room * room
    for start in range(0, len(text), room):
        sign = b"." if start == last else b"+"
        os.write(pipe, b"%b%b%b %b\n" % (mark, sign, name, text[start : start + room]))


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
