"""Level 4, worker: from a fork of the template to the user's first line, and from the last one to the process's end.

The way in has two halves. The first is about the process (session, signals, descriptors) and holds for any program.
The second is about the interpreter, and makes a fork look like a Python that was just started: it runs in the fork
itself, or, where ranks are new interpreters, after the exec in ``spawned``.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import io
import os
import signal
import socket
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

import msgspec

from ..link.local import answer_end
from ..link.memory import map_fd
from ..model import Seat, StartMethod, Step, span_words
from ..protocol.envelope import unpack
from ..systems.interpreter import python_argv
from ..torchenv.environment import rank_environment
from ..torchenv.threads import set_threads
from . import linux
from .ending import finish
from .host import Host
from .traces import Traces
from .voice import Voice
from .warm import Warmth

_HIGH = 200
"""Descriptors of ours in a rank begin here, so that a program's first open gets the number that it expects."""
_DEFAULTS = (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class Place(msgspec.Struct, frozen=True):
    """What a new rank is told: its seat, its descriptors, and who its parent must be."""

    seat: Seat
    letter: int
    out: int
    err: int
    answer: int
    meeting: int
    template: int
    host: Host
    keep: frozenset[int] = frozenset()
    calling: dict[str, str] = {}
    """Variables of the MPI launcher's that called for the rank."""
    line: int = -1
    """And its line to its process, where it has one: the variable PMI_FD has its number."""


def become_rank(place: Place, method: StartMethod, warmth: Warmth) -> NoReturn:
    """Turn this fork of the template into a rank, run its task, and end."""
    code = 1
    try:
        letter, answer, meeting, line = _settle(place, warmth.traces.handlers)
        frames = unpack(map_fd(letter))
        step = msgspec.msgpack.decode(frames.pop(0), type=Step)
        calling = place.calling | ({"PMI_FD": str(line)} if line >= 0 else {})
        env = rank_environment(step, place.seat, place.host.env, calling)
        if step.inherit:
            env["PWD"] = place.host.folder(step)
        if step.kind == "command":
            _execute(step, place.host, env)
        if method == "spawn":
            _execute_python(step, place, env, (letter, answer, meeting))
        os.close(letter)
        _renew_interpreter(env, warmth)
        live(step, place.seat, place.host, frames, (answer, meeting), traces=warmth.traces)
    except BaseException:  # nothing may go back into the template's loop
        code = _last_words()
    finally:
        os._exit(code)


def live(
    step: Step,
    seat: Seat,
    host: Host,
    frames: list[memoryview],
    kept: tuple[int, int],
    *,
    traces: Traces | None = None,
) -> NoReturn:
    """Run the task of a step in this interpreter, and end the process.

    ``frames`` is emptied once they have been read: the mapping below them holds a descriptor. ``kept`` are those of
    answer and meeting. ``traces`` are what the template's imports have left.
    """
    answer, meeting = kept
    voice = Voice(answer_end(socket.socket(fileno=answer)))
    _renew_python(step, host)
    if traces is not None:
        traces.restore_path()
    if step.kind == "function":
        from .function import run_function

        ending = run_function(step, seat, frames, voice, meeting)
    else:
        from .program import run_program

        frames.clear()
        ending = run_program(step, seat, voice)
    finish(ending, voice)


# --- the process ----------------------------------------------------------------------------------------------------


def _settle(place: Place, handlers: Mapping[int, Any]) -> tuple[int, int, int, int]:
    """A session of its own, standard streams, the signals' handlers; where letter, answer, meeting and line are now."""
    os.setsid()
    linux.die_with_parent(place.template)
    linux.be_first_out_of_memory()
    kept = _arrange_descriptors(place)
    _bind(place.seat)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, handlers.get(signal.SIGINT, signal.default_int_handler))
    for number in _DEFAULTS:
        signal.signal(number, handlers.get(number, signal.SIG_DFL))
    # Only now: a SIGTERM that came meanwhile ends us here, where it would have been ignored before.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return kept


def _bind(seat: Seat) -> None:
    """To its cores. Where some of them have been taken away since, it goes on unbound, and says so."""
    if seat.cpus:
        try:
            os.sched_setaffinity(0, seat.cpus)
        except OSError as error:
            text = f"zlaunch: rank {seat.rank} is not bound to cores {span_words(seat.cpus)}: {error.strerror}\n"
            os.write(2, text.encode())


def _arrange_descriptors(place: Place) -> tuple[int, int, int, int]:
    import fcntl

    letter = fcntl.fcntl(place.letter, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    answer = fcntl.fcntl(place.answer, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    meeting = fcntl.fcntl(place.meeting, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    out = fcntl.fcntl(place.out, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    err = fcntl.fcntl(place.err, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    line = fcntl.fcntl(place.line, fcntl.F_DUPFD, _HIGH) if place.line >= 0 else -1  # programs inherit it
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for old, new in ((null, 0), (out, 1), (err, 2)):
        os.dup2(old, new)
    stay = {0, 1, 2, letter, answer, meeting, line} | place.keep
    for fd in linux.open_descriptors():
        if fd not in stay:
            os.close(fd)
    return letter, answer, meeting, line


def _execute(step: Step, host: Host, env: dict[str, str]) -> NoReturn:
    """Become the program. 127 where there is none, 126 where it can't be run, as in a shell."""
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = step.argv[0]
    if step.inherit and os.sep in program:  # on a host that has not got our folder nothing else is taken for it
        program = os.path.join(step.cwd, program)
    try:
        os.chdir(host.folder(step))
        os.execvpe(program, step.argv, env)
    except OSError as error:
        why = error.strerror
        if error.errno == errno.ENOEXEC:
            why = f"{why}: a script's first line names what runs it (#!/bin/sh), and a program is made for this machine"
        elif isinstance(error, FileNotFoundError) and os.sep in program and os.path.exists(program):
            why = "what its first line names (#!), or its dynamic linker, is not there"
        os.write(2, f"zlaunch: {program}: {why}\n".encode(errors="surrogateescape"))
        os._exit(127 if isinstance(error, (FileNotFoundError, NotADirectoryError)) else 126)


def _execute_python(step: Step, place: Place, env: dict[str, str], kept: tuple[int, int, int]) -> NoReturn:
    """Become a new interpreter, which comes to ``live`` by way of ``spawned``."""
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    for fd in kept:
        os.set_inheritable(fd, True)
    facts = msgspec.json.encode((place.seat, *kept)).decode()
    argv = python_argv("zlaunch.worker.spawned:main", facts)
    os.chdir(place.host.folder(step))
    os.execve(argv[0], argv, env)


# --- the interpreter ------------------------------------------------------------------------------------------------


def _renew_interpreter(env: dict[str, str], warmth: Warmth) -> None:
    """What differs between a fork of the template and an interpreter that was started for this rank."""
    warmth.traces.restore(env)
    set_threads(os.environ, warmth.pools)
    # A folder that was not there when the template looked is forgotten; those that were are looked at by their time.
    for folder in [folder for folder, finder in sys.path_importer_cache.items() if finder is None]:
        del sys.path_importer_cache[folder]
    gc.enable()


def _renew_python(step: Step, host: Host) -> None:
    """The state of Python that a task sees first: directory, path, streams, an empty ``__main__``."""
    os.chdir(folder := host.folder(step))
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]  # where its children look for our __main__
    if step.sys_path:
        sys.path[:] = host.search_path(step.sys_path, step.inherit)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
        else:  # the template was started without one
            fresh = open(number, "w", buffering=1, closefd=False)  # noqa: SIM115 - it lives as long as the process
            setattr(sys, name, fresh)
            setattr(sys, f"__{name}__", fresh)
    linux.line_buffer_c_stdout()
    faulthandler.enable(2)
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=sys.modules["builtins"], __annotations__={})
    sys.modules["__main__"] = main
    if "__mp_main__" in sys.modules:  # what multiprocessing's spawned children call the module of our classes
        sys.modules["__mp_main__"] = main
    sys.orig_argv[:] = [sys.executable, *(["-m"] if step.kind == "module" else []), *step.argv]
    sys.argv[:] = list(step.argv) or [""]


def _last_words() -> int:
    """Tell what went wrong before the task could be run; the exit status."""
    import traceback

    with suppress(Exception):
        traceback.print_exc()
        sys.stderr.flush()
    return 1
