"""Level 4, pure: ``--dependency afterok:12:13,afterany:14``, as Slurm has it, and for those that spell it otherwise."""

from __future__ import annotations

import re
from typing import NamedTuple

from .scheduler import Refused

_FLUX = {"after": "afterstart", "afterany": "afterany", "afterok": "afterok", "afternotok": "afternotok"}
_LSF = {"after": "started", "afterany": "ended", "afterok": "done", "afternotok": "exit"}
_SLURM = re.compile(
    r"singleton|(after|afterany|afterok|afternotok|aftercorr|afterburstbuffer)(:\d+(_(\d+|\*))?(\+\d+)?)+"
)


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


def slurms(text: str | None) -> str | None:
    """Slurm's own words are taken as they are. Raises Refused where they are not well-formed."""
    if text is None:
        return None
    if not all(_SLURM.fullmatch(part) for part in re.split(r"[,?]", text)) or ("," in text and "?" in text):
        hint = f"did you mean afterok:{text}?" if text.isdecimal() else "for example afterok:1234, or after:1234+10"
        raise Refused("dependency", f"{text}: this is no dependency of Slurm's", hint)
    return text


def fluxs(text: str | None, like: str) -> list[str]:
    """As Flux spells them, each an option of its own. Raises Refused."""
    if text is None:
        return []
    found, either = dependencies(text, like)
    if either:
        raise Refused("dependency", f"{text}: Flux waits for all jobs, not for one of them", "write , in place of ?")
    return [f"{_FLUX[one.kind]}:{job}" for one in found for job in one.ids]


def lsfs(text: str | None) -> str | None:
    """As LSF spells it; its own words are taken as they are. Raises Refused."""
    if text is None or re.fullmatch(r"[\w()!&|\" .*<>=-]+\(.*\)", text):
        return text
    found, either = dependencies(text, r"\d+(\[\d+\])?")
    parts = [f"{_LSF[one.kind]}({job})" for one in found for job in one.ids]
    return ("||" if either else "&&").join(parts)
