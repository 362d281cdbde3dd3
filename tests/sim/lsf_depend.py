"""What ``bsub -w`` takes: conditions on other jobs, joined by ``&&`` and ``||``. Pure functions.

After IBM Spectrum LSF's page on job dependency conditions, of which this knows ``done``, ``ended``, ``exit`` and
``started`` with ids of jobs. LSF also has parentheses, ``!``, names, exit codes and more: they are refused. ``&&``
binds more than ``||``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_HOLDS = {
    "done": {"DONE"},
    "ended": {"DONE", "EXIT"},
    "exit": {"EXIT"},
    "started": {"RUN", "DONE", "EXIT"},
}
_CONDITION = re.compile(r"\s*([a-z]+)\(\s*([1-9][0-9]*)\s*\)\s*")

Stage = Callable[[int], str]
"""How far a job has come: ``PEND``, ``RUN`` (whatever its state, once it has begun), ``DONE`` or ``EXIT``."""


class DependencyError(ValueError):
    """The words are no dependency expression."""


@dataclass(frozen=True)
class Condition:
    word: str
    job: int

    def verdict(self, stage: Stage) -> bool | None:
        """Whether it holds; None: not yet."""
        now = stage(self.job)
        if now in _HOLDS[self.word]:
            return True
        return False if now in ("DONE", "EXIT") else None


@dataclass(frozen=True)
class Expression:
    """Any of these, of each of which all hold."""

    choices: tuple[tuple[Condition, ...], ...]

    @property
    def jobs(self) -> list[int]:
        return list(dict.fromkeys(condition.job for choice in self.choices for condition in choice))

    def verdict(self, stage: Stage) -> bool | None:
        """Whether it holds; None: not yet. What is False stays so."""
        choices = [[condition.verdict(stage) for condition in choice] for choice in self.choices]
        if any(all(choice) for choice in choices):
            return True
        return False if all(False in choice for choice in choices) else None


def parse(text: str) -> Expression:
    """The expression of these words.

    Raises:
        DependencyError: they are none that is known here.
    """
    choices = [tuple(map(_condition, choice.split("&&"))) for choice in text.split("||")]
    return Expression(tuple(choices))


def _condition(text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None or match[1] not in _HOLDS:
        raise DependencyError(text)
    return Condition(match[1], int(match[2]))
