"""Level 6: the commands for jobs that were submitted, ``ps``, ``logs`` and ``stop``: their options, help and statuses.

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

COMMANDS = {
    "ps": Command(
        "zlaunch ps [-a] [--json]",
        "Batch jobs that you have submitted by zlaunch and that have not ended, from all hosts that share this home.",
        (
            flag("-a", "--all", says="those that have ended, too: of the last week, 100 at most"),
            flag("--json", says="as a list of JSON objects"),
        ),
    ),
    "logs": Command(
        "zlaunch logs JOB [--rank R] [-f]",
        "What a job has printed: its own stdout and stderr, on ours; with --rank the log file of a rank.",
        (
            Option(("--rank",), "R", "the log file of rank R, or of HOST:LOCAL_RANK"),
            flag("-f", "--follow", says="go on with what comes, until the job has ended"),
            _WHICH,
        ),
        "JOB",
    ),
    "stop": Command(
        "zlaunch stop JOB [--grace SECONDS]",
        "End a job, and wait until it has ended. One in the queue is cancelled; within a running one zlaunch ends its "
        "ranks, by SIGTERM first, and the scheduler ends what is left after that.",
        (
            Option(
                ("--grace",), "SECONDS", "until the scheduler ends it, 0: at once (default: as the job has it, and 10)"
            ),
            _WHICH._replace(help="whose job it is; with it also a job that was not submitted by zlaunch from here"),
        ),
        "JOB",
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
    from ..surroundings import say
    from .queues import Unreachable

    try:
        match name:
            case "ps":
                from .ps import ps

                return ps(all_jobs="--all" in given, as_json="--json" in given)
            case "logs":
                from .logs import logs

                return logs(asked.operand, scheduler, given.get("--rank"), follow="--follow" in given)
            case _:
                from .stop import stop

                return stop(asked.operand, scheduler, _seconds(given.get("--grace")))
    except (BrokenPipeError, KeyboardInterrupt, UsageError):
        raise
    except Unreachable as error:
        say(str(error))
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return FAILED


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
        given[option.names[-1]] = value
    if command.operand and not any(operands):
        raise UsageError(f"{name}: which job?", "zlaunch ps lists them")
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
