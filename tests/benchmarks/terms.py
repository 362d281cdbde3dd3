"""Benchmarks: the words of the table: a row has contestants, a contestant has samples. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from processes import Workshop

LIMIT = 120.0
"""Seconds that any one measurement may take."""


@dataclass
class Sample:
    """One round of one contestant: its numbers, and what else was seen."""

    values: list[float]
    facts: dict[str, Any] = field(default_factory=dict)
    turn: int = 0
    """Which round it was."""


@dataclass(frozen=True)
class Contestant:
    """Who is measured. ``target`` is the number that zlaunch has promised; a floor is what physics allows."""

    name: str
    measure: Callable[[Workshop], Sample]
    kind: Literal["zlaunch", "peer", "floor"]
    target: float | None = None
    times_floor: float | None = None
    """What zlaunch has promised as a multiple of the row's floor in the same rounds."""
    rounds: int | None = None
    """It takes minutes, and so no more rounds than these."""


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    title: str
    counted: str
    """What exactly the number is."""
    contestants: tuple[Contestant, ...]
    unit: str = "s"
    higher_is_better: bool = False
    missing: Callable[[], str | None] = lambda: None
    """Why this machine cannot measure it."""
