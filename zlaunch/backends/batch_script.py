"""Level 4: the script of a batch job, as text. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

MARK = "Written by zlaunch"
"""In the second line of each of our scripts."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


def script(
    directives: Sequence[str], *, version: str, typed: Sequence[str], setup: str | None, command: Sequence[str]
) -> str:
    """A script that a person would sign.

    Args:
        directives: lines for the scheduler; none for a script that runs where it is started.
        version: ours.
        typed: the command line that it is written for.
        setup: what its shell does first.
        command: what it runs.
    """
    lines = ["#!/bin/sh", f"# {MARK} {version} for:", f"#   {' '.join(map(_in_comment, typed))}", *directives, ""]
    if setup:
        lines.append(f"{setup} || exit 125")
    lines.append(f"exec {shlex.join(command)}")
    return "\n".join(lines) + "\n"


def _in_comment(word: str) -> str:
    """A word as a shell takes it, in one line."""
    if not _UNPRINTABLE.search(word):
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", plain) + "'"
