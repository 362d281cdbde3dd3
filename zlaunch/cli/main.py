"""Level 6: the command ``zlaunch``. Finds the command, calls it, and makes an exit status of what it raises.

What ``--help`` needs is imported at the top and is light; all else is imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from .._version import __version__
from ..systems.nearest import nearest
from . import grammar, help  # noqa: A004 - it is what it says

USAGE = 2
"""The exit status of a command line that cannot be meant."""
FAILED = 125
"""zlaunch itself could not do it."""
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's own); returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    try:
        return _command(words)
    except grammar.UsageError as error:
        _complain(str(error), error.hint)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our answer has seen enough (`| head`). Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13


def _open_standard_streams() -> None:
    """A shell's ``>&-`` leaves a descriptor below 3 free, and whatever we opened next would be our stdout."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))


def _command(words: list[str]) -> int:
    if not words:
        sys.stderr.write(help.overview(help.Paint(sys.stderr)))
        return USAGE
    first, rest = words[0], words[1:]
    if first == "help" and rest and rest[0] in _COMMANDS:
        return _command([rest[0], "--help"])
    if first in ("-h", "--help", "help"):
        sys.stdout.write(help.overview(help.Paint(sys.stdout)))
    elif first == "--version":
        sys.stdout.write(f"zlaunch {__version__}\n")
    elif first in _COMMANDS:
        status = _COMMANDS[first](rest)
        sys.stdout.flush()
        return status
    elif first.startswith("-"):
        ours = first.startswith("--") and nearest(first, ["--help", "--version"])
        raise grammar.UsageError(f"there is no option {first} here", ours or "options of a run come after run")
    else:
        hint = nearest(first, [*_COMMANDS, "--version"])
        if first.endswith(".py") or os.sep in first:
            hint = f"did you mean zlaunch run {first}?"
        raise grammar.UsageError(f"there is no command {first}", hint or f"there are {', '.join(_COMMANDS)}")
    sys.stdout.flush()
    return 0


def _run(words: list[str]) -> int:
    sorted_words = grammar.split(words)
    if "help" in sorted_words.given:
        sys.stdout.write(help.run_help(help.Paint(sys.stdout)))
        return 0
    if "version" in sorted_words.given:
        sys.stdout.write(f"zlaunch {__version__}\n")
        return 0
    if sorted_words.not_needed:
        names = ", ".join(dict.fromkeys(sorted_words.not_needed))
        say(f"not needed here, and left aside: {names}")
    try:
        os.getcwd()
    except FileNotFoundError:
        raise grammar.UsageError("the folder that you are in has been removed", "cd to one that is there") from None
    from .job import job

    what = job(sorted_words, os.environ)
    hand = None
    if what.detach:
        from .detach import Hand, check, detach

        check(what)
        outcome = detach(what)
        if not isinstance(outcome, Hand):
            return outcome
        hand, what = outcome, outcome.shown(what)
    from .run import run

    try:
        return run(what, hand)
    except (BrokenPipeError, grammar.UsageError):
        raise
    except OSError as error:  # no folder, no descriptors, no processes left: the machine's, not the program's
        say(str(error))
    except Exception:
        traceback.print_exc()
        say("this is a mistake of zlaunch's own, not of your program")
    return FAILED


def _info(words: list[str]) -> int:
    if any(word in ("-h", "--help") for word in words):
        sys.stdout.write("usage: zlaunch info [--json]\n\nWhat this machine is, as zlaunch sees it.\n")
        return 0
    for word in words:
        if word != "--json":
            raise grammar.UsageError(f"info: there is no {word}", "zlaunch info [--json]")
    from .info import info

    return info(as_json=bool(words))


def _jobs(name: str) -> Callable[[list[str]], int]:
    """``ps``, ``attach``, ``logs`` or ``stop``."""

    def command(words: list[str]) -> int:
        from .jobs import run

        return run(name, words)

    return command


def _completion(words: list[str]) -> int:
    from .completion import SHELLS, script

    if any(word in ("-h", "--help") for word in words):
        sys.stdout.write(
            f"usage: zlaunch completion {'|'.join(SHELLS)}\n\nPrint what makes the shell complete zlaunch's words. For "
            'every new shell: put\neval "$(zlaunch completion bash)" into ~/.bashrc, or with zsh into ~/.zshrc.\n'
        )
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        raise grammar.UsageError("completion: for which shell?", f"there are {', '.join(SHELLS)}")
    sys.stdout.write(script(words[0]))
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    **{name: _jobs(name) for name in ("ps", "attach", "logs", "stop")},
    "info": _info,
    "completion": _completion,
}


def say(text: str) -> None:
    """zlaunch's own words, on stderr."""
    sys.stderr.write(f"zlaunch: {text}\n")


def _complain(message: str, hint: str) -> None:
    paint = help.Paint(sys.stderr)
    sys.stderr.write(f"zlaunch: {paint.error('error:')} {message}\n")
    if hint:
        sys.stderr.write(f"  {hint}\n")
