"""Level 4, pure: ``--dependency afterok:12:13,afterany:14``, for schedulers that spell it otherwise."""

from __future__ import annotations

import re
from typing import NamedTuple

from .scheduler import Refused


class Dependency(NamedTuple):
    """``afterok:12:13``."""

    kind: str
    ids: tuple[str, ...]


def dependencies(text: str, like: str = r"\w+") -> tuple[list[Dependency], bool]:
    """The parts of ``afterok:12:13,afterany:14``, and whether one of them is enough (``?`` between them).

    Raises:
        Refused: it is none of this form.
    """
    found = []
    for part in re.split(r"[,?]", text):
        kind, *ids = part.split(":")
        if not re.fullmatch(r"after(any|ok|notok)?", kind) or not ids or not all(re.fullmatch(like, i) for i in ids):
            hint = f"did you mean afterok:{text}?" if re.fullmatch(like, text) else "for example afterok:1234"
            raise Refused("dependency", f"{text}: this is no dependency", hint)
        found.append(Dependency(kind, tuple(ids)))
    if "," in text and "?" in text:
        raise Refused("dependency", f"{text}: , and ? cannot be mixed", "write one of them")
    return found, "?" in text
