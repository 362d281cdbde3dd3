"""Level 4: the script of a batch job, as text. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

MARK = "Written by zlaunch"
"""In the second line of each of our scripts."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


def script(
    directives: Sequence[str],
    *,
    version: str,
    typed: Sequence[str],
    setup: str | None,
    command: Sequence[str],
    shell: str = "/bin/sh",
) -> str:
    """A script that a person would sign.

    Args:
        directives: lines for the scheduler; none for a script that runs where it is started.
        version: ours.
        typed: the command line that it is written for.
        setup: what its shell does first; of several lines the status of the last one counts.
        command: what it runs.
        shell: what reads it.
    """
    lines = [f"#!{shell}", f"# {MARK} {version} for:", f"#   {' '.join(map(_in_comment, typed))}", *directives, ""]
    if setup and any(re.match(r"\s*[^\s#]", line) for line in setup.split("\n")):  # a shell wants a command in braces
        lines += [f"{{ {setup}", "} </dev/null || exit 125"]  # on a line of its own: a comment may stand before it
    if any("\n" in word for word in command):
        lines.append("newline=$(printf '\\n.') newline=${newline%.}")
    lines.append(f"exec {' '.join(map(_in_one_line, command))}")
    return "\n".join(lines) + "\n"


def _in_one_line(word: str) -> str:
    """A word as a shell takes it. Schedulers read directives from any line that looks like one, within quotes, too."""
    return '"$newline"'.join(map(shlex.quote, word.split("\n")))


def _in_comment(word: str) -> str:
    """A word as a shell takes it, in one line."""
    if not _UNPRINTABLE.search(word):
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", plain) + "'"
