"""Level 4, worker: how a task ended, and how its process does.

A fork must end as ``python script.py`` would for all that can be seen (threads are waited for, exit handlers run,
files are written out, the exit status), but without taking the interpreter apart: for what the template had
imported, that takes a quarter of a second in each rank, and serves nobody.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import io
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TypeAlias

from msgspec import Struct

from ..torchenv.symptoms import is_symptom
from . import linux
from .mpi import leave
from .traces import left_open
from .voice import Voice

_HERE = os.path.dirname(os.path.abspath(__file__))


class Exit(Struct, frozen=True):
    """End with a status. ``answer``: say at the very end, if the status is 0, that all is well."""

    code: int
    answer: bool = False


class Interrupted(Struct, frozen=True):
    """End by SIGINT, as a Python does that a KeyboardInterrupt has left."""


Ending: TypeAlias = Exit | Interrupted


def strip(error: BaseException) -> None:
    """Take zlaunch's own frames off the start of an exception's traceback."""
    tb = error.__traceback__
    while tb is not None and os.path.dirname(tb.tb_frame.f_code.co_filename) == _HERE:
        tb = tb.tb_next
    error.__traceback__ = tb


def describe(error: BaseException) -> tuple[str, bool]:
    """The text of an exception's traceback with causes and notes, and whether it only says that a peer is gone."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as second:  # a __str__ or a note that raises
        text = f"{type(error).__name__} (whose text could not be made: {type(second).__name__})\n"
    return text, says_that_a_peer_is_gone(error)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within this, signals that ask to end wait until it is over.

    A rank that has told of its failure is asked to end at once, as all the others are; and what it failed by is still
    to be printed. Any thread may get a signal, so blocking them in this one would not do.
    """
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    ours = [number for number, handler in handlers.items() if handler is not None]  # None: not Python's to restore
    for number in ours:
        signal.signal(number, lambda number, _frame: waiting.append(number))
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, handlers[number])
        for came in waiting:
            os.kill(os.getpid(), came)


def show(error: BaseException) -> None:
    """Print an exception as Python would: by ``sys.excepthook``, which may be the user's own.

    Torch wraps it to put the rank before each line, as every line of ours has already: then it is what it wraps.
    """
    with suppress(Exception):
        sys.stdout.flush()
    try:
        hook = sys.excepthook
        if str(getattr(hook, "__module__", "")).startswith("torch.distributed"):
            hook = inspect.getclosurevars(hook).nonlocals.get("old_hook", sys.__excepthook__)
        hook(type(error), error, error.__traceback__)
    except BaseException:
        with suppress(Exception):
            traceback.print_exception(error)


def exit_status(error: SystemExit) -> Exit:
    """What ``sys.exit`` meant; a text goes to stderr."""
    code = error.code
    if code is None:
        return Exit(0)
    if isinstance(code, int):
        return Exit(code & 0xFF)
    with suppress(Exception):
        sys.stdout.flush()
        print(code, file=sys.stderr)  # noqa: T201 - it is what Python does
    return Exit(1)


def finish(ending: Ending, voice: Voice) -> NoReturn:
    """End the process: also the one of a child that the user's code has forked and let run into our frames."""
    _run(threading._shutdown)  # type: ignore[attr-defined]  # what Py_Finalize calls; there is no public name
    _run(atexit._run_exitfuncs)
    if ending == Exit(0) or ending == Exit(0, answer=True):
        _run(leave)
    _clear_main()
    _flush()
    match ending:
        case Exit(code, answer):
            if answer and code == 0:
                voice.say("value")
            os._exit(code)
        case Interrupted():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(128 + signal.SIGINT)


def _run(function: object) -> None:
    assert callable(function)
    try:
        function()
    except BaseException as error:
        with suppress(Exception):
            strip(error)
            traceback.print_exception(error)


def _clear_main() -> None:
    """Drop the globals of ``__main__`` in Python's own order: names with one underscore first."""
    main = sys.modules.get("__main__")
    if isinstance(main, types.ModuleType):
        names = [name for name in vars(main) if name != "__builtins__"]
        for name in sorted(names, key=lambda name: not (name.startswith("_") and not name.startswith("__"))):
            vars(main)[name] = None
    with suppress(BaseException):
        gc.collect()


def _flush() -> None:
    """Write out every file that is still open, Python's and C's."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    layers: tuple[type[io.IOBase], ...] = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    for layer in layers:
        for file in [found for found in gc.get_objects() if type(found) is layer]:
            with suppress(Exception):
                file.flush()
    for file in left_open:
        with suppress(Exception):
            file.flush()
    linux.flush_c_streams()


def says_that_a_peer_is_gone(error: BaseException) -> bool:
    """Whether that is all that an error says, or one that it was raised from."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        with suppress(Exception):
            if is_symptom([kind.__name__ for kind in type(link).__mro__], str(link)):
                return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False
