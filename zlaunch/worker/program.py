"""Level 4, worker: a script or a module, run as ``python script.py`` and ``python -m module`` run it."""

from __future__ import annotations

import errno
import importlib.machinery
import io
import os
import runpy
import sys
from types import CodeType

from ..model import Seat, Step
from .ending import Ending, Exit, Interrupted, describe, exit_status, show, strip, undisturbed
from .group import choose_gpu
from .mpi import meet
from .voice import Voice


def run_program(step: Step, seat: Seat, voice: Voice) -> Ending:
    """Run the script or module of a step in this process's ``__main__``, and tell how it ended."""
    try:
        if step.rendezvous == "mpi":
            seat = meet(seat)
        if step.gpu_memory_fraction is not None:
            choose_gpu(step, seat)
        if step.kind == "module":
            _run_module(step)
        else:
            _run_script(step)
    except SystemExit as error:
        ending = exit_status(error)
        return Exit(ending.code, answer=voice.ours)
    except KeyboardInterrupt as error:
        strip(error)
        show(error)
        return Interrupted()
    except BaseException as error:
        strip(error)
        text, symptom = describe(error)
        with undisturbed():
            voice.say("exception", text, symptom=symptom)  # now: its threads and exit handlers may take their time
            show(error)
        return Exit(1)
    return Exit(0, answer=voice.ours)


def _home(step: Step) -> str:
    """Where names of files are looked for: on a host that has not got that folder nothing else is taken for it."""
    return step.cwd if step.inherit else os.getcwd()


def _run_script(step: Step) -> None:
    path = os.path.join(_home(step), step.argv[0])  # not made any shorter: Python does not, and it shows in tracebacks
    if step.inherit and not os.path.exists(path):
        raise FileNotFoundError(
            errno.ENOENT, "a script must be on every host, at the same path, and here is none", path
        )
    main = sys.modules["__main__"]
    main.__dict__.update(
        __file__=path,
        __cached__=None,
        __loader__=importlib.machinery.SourceFileLoader("__main__", path),
        __package__=None,
        __spec__=None,
    )
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    exec(_compile(path), main.__dict__)


def _compile(path: str) -> CodeType:
    with io.open_code(path) as file:
        source = file.read()
    return compile(source, path, "exec", dont_inherit=True)


def _run_module(step: Step) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, _home(step))
    sys.argv[0] = "-m"
    # What the interpreter itself calls for -m: packages, sys.argv[0], and the words for a module that is not there.
    runpy._run_module_as_main(step.argv[0], alter_argv=True)  # type: ignore[attr-defined]
