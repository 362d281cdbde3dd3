"""Level 6: what a job writes and submits, decided before anything is: the launch directory, the script, the command
line that the script has. Pure, but for the clock and a look at what is there already.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..backends import schedulers
from . import options
from .grammar import Given, UsageError, Words
from .options import Takes
from .values import Values
from .where import Where

SCRIPT = "launch.sh"
_ODD = re.compile(r"[^\w.-]", re.ASCII)

_OF_PAPERS = ("bg", "batch-script", "launch-dir", "output-script", "setup-only", "dry-run", "log-dir")
_OF_ALLOCATION = (
    *("nodes", "procs-per-node", "gpus-at-least", "gpumem-at-least", "queue", "account", "reservation", "dependency"),
    *("exclusive", "xargs", "scheduler", "python", "setup"),
)
"""What the scheduler is asked for by the script's directives, or what is said once more within the job."""
_OF_OWN = (
    *("bg", "batch-script", "dry-run", "verbose", "nodes", "procs-per-node", "gpus-per-proc", "gpus-at-least"),
    *("gpumem-at-least", "system-params", "queue", "account", "reservation", "dependency", "exclusive", "time-limit"),
    *("job-name", "xargs", "scheduler", "env", "env-file", "comm-backend"),
)
"""What counts for a script of the user's own, too."""
_NOT_OF_OWN = ("launch-dir", "output-script", "setup", "python", "module", "out", "err", "log-dir")
"""What such a script would miss."""


@dataclass(frozen=True, kw_only=True)
class Papers:
    """What is written and what becomes of it."""

    folder: str | None
    """The launch directory; ``None``: none."""
    is_new: bool
    """Whether nobody named it: then it must not be there yet."""
    script: str | None
    """The script's path; ``None`` where only the user's own is submitted."""
    submit: bool
    """It becomes a batch job; we don't wait for it."""
    attended: bool
    """It runs as a job, and we wait for it."""
    only: bool
    """It is written, and that is all."""
    own: str | None
    """The user's script, to be submitted."""
    typed: tuple[str, ...]
    """The command line that we were called with."""
    command: tuple[str, ...]
    """What our script runs."""
    setup: str | None
    left_aside: str
    """What the user should hear of options that have no effect."""

    def below(self, log_dir: str | None) -> str | None:
        """Where the log files of ranks go, if there is a launch directory."""
        return log_dir if log_dir is None or self.folder is None else os.path.join(self.folder, log_dir)

    def outputs(self) -> tuple[str | None, str | None]:
        """Where a batch job's own stdout and stderr go; ``None`` for where the scheduler puts them."""
        if self.folder is None:
            return None, None
        folder = os.path.abspath(self.folder)
        return os.path.join(folder, "out.log"), os.path.join(folder, "err.log")


def papers(given: Values, words: Words, place: Where, name: str, log_dir: str | None) -> Papers | None:
    """What is to be written; ``None`` where nothing is. Raises UsageError."""
    own, submit, only = given.text("batch-script"), given.flag("bg"), given.flag("setup-only")
    asked = given.last("launch-dir")
    file = given.target("output-script")
    left_aside = _check_own(given, words) if own is not None else ""
    if own is None and not (submit or only or asked or file or place.attended):
        return None
    if submit or own is not None:
        _check_clusters(given, place)
    if only and own is not None:
        raise UsageError("--setup-only writes a script, and --batch-script is one", "leave one out")
    folder, is_new = (asked.text, not asked.text) if asked else (None, (submit or (only and not file)) and own is None)
    if is_new:
        folder = _new_folder(name)
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        hint = f"{asked.spelling} -- {asked.text} leaves it to be the COMMAND" if asked else ""
        raise UsageError(f"{asked.spelling if asked else '-l'} {folder}: this is no folder", hint)
    inside = _inside(given, words, place, folder, log_dir)
    return Papers(
        folder=folder,
        is_new=is_new,
        script=None if own is not None or not (folder or file) else file or os.path.join(folder or ".", SCRIPT),
        submit=submit or own is not None,
        attended=place.attended,
        only=only,
        own=own,
        typed=("zlaunch", "run", *_written(given, words.given), *_command(words)),
        command=(*_program(place.hosts.python if place.scheduler else None), "run", *inside, *_command(words)),
        setup=place.hosts.setup if place.scheduler else None,
        left_aside=left_aside,
    )


def _check_clusters(given: Values, place: Where) -> None:
    """A job's id is of the cluster that we are on: there ``zlaunch stop`` would end another job of that id."""
    away = schedulers.of(place.scheduler).away
    for one in given.all("xargs"):
        if away.match(one.text.partition("=")[0]):
            raise UsageError(
                f"{one.spelling} {one.text}: a batch job is submitted to the cluster that we are on",
                "type this on a login node of the other one",
            )


def _check_own(given: Values, words: Words) -> str:
    """A note on what has no effect. Raises UsageError."""
    one = given.last("batch-script")
    assert one is not None
    try:
        with open(one.text, "rb") as file:
            first = file.read(2)
    except OSError as error:
        raise UsageError(f"{one.spelling} {one.text}: {error.strerror}") from None
    if first != b"#!":
        raise UsageError(f"{one.spelling} {one.text}: its first line is not #! and an interpreter", "#!/bin/sh is one")
    other = next((o for key in _NOT_OF_OWN if (o := given.last(key))), None)
    if other:
        raise UsageError(
            f"{other.spelling} is about a script that zlaunch writes, and {one.spelling} is yours", "say it in there"
        )
    idle = [values[-1].spelling for key, values in words.given.items() if key not in _OF_OWN]
    return f"your script is submitted as it is; left aside: {', '.join(idle)}" if idle else ""


def _new_folder(name: str) -> str:
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = f"zlaunch-{_ODD.sub('_', name)[:40]}-{now}"
    more = (f"{base}-{number}" for number in range(2, 1000))
    return next(folder for folder in (base, *more) if not os.path.exists(folder))


# --- the command line within the job --------------------------------------------------------------------------------


def _inside(given: Values, words: Words, place: Where, folder: str | None, log_dir: str | None) -> tuple[str, ...]:
    """The options of the zlaunch that runs within the job."""
    out = [key for key in words.given if key in _OF_PAPERS or (place.scheduler and key in _OF_ALLOCATION)]
    kept = {key: values for key, values in words.given.items() if key not in out}
    size: list[str] = []
    if place.scheduler:
        size = [f"--scheduler={place.scheduler}"]
        if given.flag("procs-per-node") or place.workers != "auto":
            size += ["-n", str(place.workers)]
        size += _xargs_inside(given, place)
    logs: list[str] = []
    if given.flag("log-dir") or (folder is not None and log_dir):
        logs = ["--log-dir", os.path.join(folder or "", log_dir) if log_dir else "none"]
    return (*size, *logs, *_written(given, kept))


def _xargs_inside(given: Values, place: Where) -> list[str]:
    """Of -x what is for the ranks, and for the command that starts agents."""
    size: list[str] = []
    for one in given.all("xargs"):
        name, equals, value = one.text.partition("=")
        if name[:1] not in "-~":
            size += ["--env", one.text]
        elif (name, value if equals else None) in (*place.request.step, *place.request.ranks):
            size += ["-x", one.text]
    return size


def _written(given: Values, kept: Iterable[str]) -> list[str]:
    """Options as words that mean the same."""
    found: list[str] = []
    for key in kept:
        for one in given.all(key):
            found += _words(one)
    return found


def _words(one: Given) -> list[str]:
    option = options.find(one.spelling)
    if option is None or option.takes is Takes.NOTHING or (option.takes is Takes.MAYBE and not one.text):
        return [one.spelling]
    if one.text.startswith("-") and option.takes is not Takes.PAIRS:
        return [f"{one.spelling}={one.text}"]
    return [one.spelling, one.text]


def _command(words: Words) -> tuple[str, ...]:
    """COMMAND and ARGS, and the dashes that must stand before them where they could be taken for an option's value."""
    first = words.command[0] if words.command else ""
    bare = any(one.text == "" for one in words.given.get("launch-dir", ()))
    return ("--", *words.command) if first and (first.startswith("-") or "=" in first or bare) else words.command


def _program(python: str | None) -> Sequence[str]:
    """zlaunch itself, as the nodes find it."""
    beside = Path(sys.executable).with_name("zlaunch")
    if python is None and os.access(beside, os.X_OK):
        return (str(beside),)
    return (python or sys.executable, "-m", "zlaunch")
