"""Level 4: a batch job of Slurm's as values: its script, and the command that submits it. Pure.

sbatch reads its directives from the comments at a script's top, word by word: quotes hold a word together, and a
backslash takes the next character as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from ..model import AllocationRequest
from .slurm import allocation_words, overridden

MARK = "Written by zlaunch"
"""In the second line of each of our scripts."""

_SAFE = re.compile(r"[\w@%+=:,./~?\[\]-]*", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


def directive(word: str) -> str:
    """An argument of sbatch's as a line of a script."""
    name, equals, value = word.partition("=")
    if equals and not _SAFE.fullmatch(value):
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH {name}{equals}{value}"


def file_pattern(path: str) -> str:
    """A path as --output takes it, where ``%j`` is the job's id."""
    return path.replace("%", "%%")


def job_words(request: AllocationRequest, folder: str, out: str | None, err: str | None) -> list[str]:
    """sbatch's arguments for a job that starts in ``folder`` and writes to ``out`` and ``err``."""
    words = [*allocation_words(request, extra=False), f"--chdir={folder}"]
    if out is not None:
        words.append(f"--output={file_pattern(out)}")
    if err is not None:
        words.append(f"--error={file_pattern(err)}")
    return overridden(words, request.extra)


def script(
    words: Sequence[str], *, version: str, typed: Sequence[str], setup: str | None, command: Sequence[str]
) -> str:
    """A script that a person would sign.

    Args:
        words: of sbatch's arguments; none for a script that runs where it is started.
        version: ours.
        typed: the command line that it is written for.
        setup: what its shell does first.
        command: what it runs.
    """
    lines = ["#!/bin/sh", f"# {MARK} {version} for:", f"#   {' '.join(map(_in_comment, typed))}"]
    lines += map(directive, words)
    lines.append("")
    if setup:
        lines.append(f"{setup} || exit 125")
    lines.append(f"exec {shlex.join(command)}")
    return "\n".join(lines) + "\n"


def submit_argv(path: str) -> tuple[str, ...]:
    """What submits a script of ours, and prints the job's id."""
    return ("sbatch", "--parsable", path)


def submit_own_argv(path: str, arguments: Sequence[str], request: AllocationRequest) -> tuple[str, ...]:
    """The same for a script of the user's, whose own directives hold but for what ``request`` says."""
    return ("sbatch", "--parsable", *allocation_words(request, defaults=False), path, *arguments)


def job_id(answer: str) -> str | None:
    """The id in what ``sbatch --parsable`` prints, behind which a cluster's name may stand; else ``None``."""
    last = answer.strip().rsplit("\n", 1)[-1].partition(";")[0]
    return last if last.isdecimal() else None


def _in_comment(word: str) -> str:
    """A word as a shell takes it, in one line."""
    if not _UNPRINTABLE.search(word):
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", plain) + "'"
