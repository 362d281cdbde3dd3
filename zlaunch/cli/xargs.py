"""Level 6: the words of ``-x``: arguments for the scheduler, and variables for the ranks. Pure."""

from __future__ import annotations

import re

from .grammar import UsageError
from .values import Values, check_plain

_ARGUMENT = re.compile(r"~?--?[A-Za-z][A-Za-z0-9_-]*")
_CAPITALS = re.compile(r"[A-Z_][A-Z0-9_]*")

Argument = tuple[str, str | None]
"""As the scheduler spells it, with its value or none; a ``~`` before the name takes it away."""


def xargs(given: Values) -> tuple[tuple[Argument, ...], dict[str, str]]:
    """The arguments and the variables. Raises UsageError for what is neither."""
    arguments: list[Argument] = []
    variables: dict[str, str] = {}
    for one in given.all("xargs"):
        name, equals, value = one.text.partition("=")
        if _ARGUMENT.fullmatch(name):
            if name.startswith("~") and equals:
                raise UsageError(f"{one.spelling} {one.text}: what is taken away has no value", f"write {name}")
            check_plain(one)
            arguments.append((name, value if equals else None))
        elif equals and _CAPITALS.fullmatch(name):
            variables[name] = value
        else:
            raise UsageError(
                f"{one.spelling} {one.text}: this is neither an argument of the scheduler's nor a variable",
                f"an argument is spelled as the scheduler does, {one.spelling} --ntasks=8; a variable is NAME=VALUE, "
                "in capitals",
            )
    return tuple(arguments), variables
