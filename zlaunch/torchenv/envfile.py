"""Level 3, pure: ``.env`` files, read as a shell would that sources them, without running anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

_NAME = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=")
_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


def parse_env_file(text: str, environ: Mapping[str, str], name: str = ".env") -> dict[str, str]:
    """The assignments of a ``.env`` file: ``KEY=value``, ``export``, quotes, comments, ``$NAME`` and ``${NAME}``.

    Args:
        environ: what references are looked up in, after the file's own earlier lines.
        name: the file's name, for errors.

    Raises:
        ValueError: a line that is no assignment, or whose quotes do not end; with its number.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _NAME.match(stripped)
        if match is None:
            raise ValueError(f"{name}, line {number}: expected KEY=value, found {stripped!r}")
        raw = stripped[match.end() :]
        try:
            values[match[1]] = _value(raw, {**environ, **values})
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error} in {stripped!r}") from None
    return values


def _value(raw: str, known: Mapping[str, str]) -> str:
    if raw[:1] == "'":
        return " ".join(shlex.split(raw, comments=True))
    words = shlex.split(raw, comments=True)
    if len(words) > 1:
        raise ValueError("a value with spaces needs quotes")
    return _REFERENCE.sub(lambda m: known.get(m[1] or m[2], ""), words[0]) if words else ""
