"""Level 6: the commands for runs and jobs, ``ps``, ``attach``, ``logs`` and ``stop``: their options, help and statuses.

Light: the help and shell completion read this too. What a command does is in the module of its name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..systems.nearest import nearest
from .grammar import UsageError
from .options import Option, flag

FAILED = 125
_HELP = ("-h", "--help")


class Command(NamedTuple):
    """One of these commands."""

    usage: str
    says: str
    options: tuple[Option, ...]
    operand: str = ""


class Asked(NamedTuple):
    """What was typed after a command."""

    operand: str
    given: Mapping[str, str]
    """Options by their last names, the long ones; flags are empty."""


_WHICH = Option(("--scheduler",), "NAME", "whose job it is, where two schedulers have one of this id")

_RUN = "RUN is a run's id, the beginning of one, its name, the id of its batch job, or the word last."

COMMANDS = {
    "ps": Command(
        "zlaunch ps [-a] [--json]",
        "Your runs that have not ended, and the batch jobs that you have submitted by zlaunch, from all hosts that "
        "share this home.",
        (
            flag(
                "-a", "--all", says="those that have ended, too: jobs and detached runs of the last week, 100 at most"
            ),
            flag("--json", says="as a list of JSON objects"),
        ),
    ),
    "attach": Command(
        "zlaunch attach RUN [--view HOW] [--ranks LIST]",
        "Watch a run that was started elsewhere: by another terminal, with --detach, by a batch job or a notebook. "
        f"Ctrl-C leaves, and the run goes on; its end ends this, with its exit status. {_RUN}",
        (
            Option(
                ("--view",), "HOW", "auto (the default), live, plain, json", choices=("auto", "live", "plain", "json")
            ),
            Option(("--ranks",), "LIST", "whose lines are shown: 0,4-7, all or none"),
            _WHICH,
        ),
        "RUN",
    ),
    "logs": Command(
        "zlaunch logs RUN [--rank R] [-f]",
        "What a run or a job has printed, on our stdout and stderr: what a detached run or a job has itself, else the "
        f"lines of all ranks; with --rank the log file of a rank. {_RUN}",
        (
            Option(("--rank",), "R", "the log file of rank R, or of HOST:LOCAL_RANK"),
            flag("-f", "--follow", says="go on with what comes, until the run has ended"),
            _WHICH,
        ),
        "RUN",
    ),
    "stop": Command(
        "zlaunch stop RUN [--grace SECONDS]",
        "End a run or a job, and wait until it has ended. Ranks get SIGTERM, and SIGKILL after the run's grace period; "
        "a second stop kills them at once. A job in the queue is cancelled, and of a running one the scheduler ends "
        f"what is left after that. {_RUN}",
        (
            Option(
                ("--grace",),
                "SECONDS",
                "from SIGTERM to SIGKILL, 0: at once (default: as the run has it); of a job, until the scheduler does",
            ),
            _WHICH._replace(help="whose job it is; with it also a job that was not submitted by zlaunch from here"),
        ),
        "RUN",
    ),
}


def run(name: str, words: Sequence[str]) -> int:
    """Do what ``name`` does; returns the exit status.

    Raises:
        UsageError: a command line that cannot be meant, or a job that is not known.
    """
    command = COMMANDS[name]
    if any(word in _HELP for word in words):
        from .help import Paint, command_help

        sys.stdout.write(command_help(command.usage, command.says, command.options, Paint(sys.stdout)))
        return 0
    asked = _read(name, command, words)
    given = asked.given
    scheduler = given["--scheduler"].lower().removesuffix("scheduler") if "--scheduler" in given else None
    from ..errors import ZlaunchError
    from ..surroundings import say
    from .queues import Unreachable

    try:
        return _do(name, asked, scheduler)
    except (BrokenPipeError, KeyboardInterrupt, UsageError):
        raise
    except (Unreachable, ZlaunchError) as error:
        say(str(error))
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return FAILED


def _do(name: str, asked: Asked, scheduler: str | None) -> int:
    given, word = asked.given, asked.operand
    if name == "ps":
        from .ps import ps

        return ps(all_jobs="--all" in given, as_json="--json" in given)
    from .which import find_run, the_run

    if name == "attach":
        ranks = _ranks(given.get("--ranks"))
        from .attach import attach, view_here

        return attach(the_run(word, scheduler), view_here(given.get("--view")), ranks)
    grace = _seconds(given.get("--grace"))
    from .queues import find

    job = find(word, scheduler)
    run = None if job else find_run(word, scheduler)
    if name == "logs":
        if run is not None:
            from .runlogs import logs_of_run

            return logs_of_run(run, given.get("--rank"), follow="--follow" in given)
        from .logs import logs

        return logs(word, scheduler, given.get("--rank"), follow="--follow" in given)
    from .stop import stop, stop_run

    return stop_run(run, grace) if run is not None else stop(word, scheduler, grace)


def _ranks(text: str | None) -> str | None:
    from ..view.settings import parse_ranks

    try:
        if text is not None:
            parse_ranks(text)
    except ValueError as error:
        raise UsageError(f"attach: --ranks: {error}") from None
    return text


def _read(name: str, command: Command, words: Sequence[str]) -> Asked:
    found = {spelling: option for option in command.options for spelling in option.names}
    operands: list[str] = []
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            operands.append(word)
            continue
        spelling, equals, value = word.partition("=")
        option = found.get(spelling)
        if option is None or (equals and not option.metavar):
            hint = nearest(spelling, [one for one in found if one.startswith("--")])
            raise UsageError(f"{name}: there is no {word}", hint or command.usage)
        if option.metavar and not equals:
            if not rest:
                raise UsageError(f"{name}: {word} needs a value", command.usage)
            value = rest.pop(0)
        if option.choices and value not in option.choices:
            raise UsageError(f"{name}: {spelling}: {value!r} is not a choice", f"there are {', '.join(option.choices)}")
        given[option.names[-1]] = value
    if command.operand and not any(operands):
        raise UsageError(f"{name}: which run?", "zlaunch ps lists them")
    if len(operands) > bool(command.operand):
        raise UsageError(f"{name}: {operands[-1]!r} is too much", command.usage)
    return Asked(operands[0] if operands else "", given)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e7:
        raise UsageError(f"stop: --grace: expected seconds, not {text!r}")
    return seconds
