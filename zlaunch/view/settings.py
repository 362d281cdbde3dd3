"""Level 4, view: what the user chose to see and to keep. Values; loads only the standard library."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

ViewName = Literal["auto", "live", "plain", "json", "none"]
HandlerFactory: TypeAlias = Callable[[], list[logging.Handler]]

ALL_RANKS_UP_TO = 64
"""The largest world of which the console shows every rank where the user chose none."""


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How a launcher's output is shown and kept.

    Attributes:
        view: ``plain`` lines, ``live`` (lines, and a table of the ranks below them), ``json`` (one event per line on
            stdout), ``none``; ``auto`` is ``live`` on a terminal, else ``plain``.
        log_dir: where the files per rank go; ``None`` writes none.
        ranks: whose lines the console shows: ``"0,4-7"``, ``"all"``, ``"none"`` or a set of numbers.
            ``None``: all ranks up to a world of 64, above that rank 0.
        out, err: files that get all ranks' raw stdout and stderr, as the console does; they may be one file.
        color_stderr: stderr lines are red on the console.
        handlers: makes logging handlers that replace the plain console; the files stay.
        log_level: from which level logging records are shown where the program has no handler for them.
        verbose: zlaunch says more of what it does.
        report: whether a failed run is reported on stderr when it has ended; for the command line.
        keys: whether the live view reads keys from its terminal; for the command line, where nobody else reads there.
        leave: what the key ``q`` does, in the desk's thread; ``None``: it says that it can do nothing.

    Raises:
        ValueError: for a view that does not exist, or for ``ranks`` that cannot be read.
    """

    view: ViewName = "auto"
    log_dir: str | None = None
    ranks: str | frozenset[int] | None = None
    out: str | None = None
    err: str | None = None
    color_stderr: bool = False
    handlers: HandlerFactory | None = None
    log_level: int = logging.INFO
    verbose: bool = False
    report: bool = False
    keys: bool = False
    leave: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if self.view not in get_args(ViewName):
            raise ValueError(f"no view is called {self.view!r}; there are {', '.join(get_args(ViewName))}")
        if isinstance(self.ranks, str):
            parse_ranks(self.ranks)

    def shown(self, world_size: int) -> frozenset[int]:
        """The ranks of a world that the console shows."""
        if self.ranks is None:
            return frozenset(range(world_size if world_size <= ALL_RANKS_UP_TO else 1))
        if isinstance(self.ranks, frozenset):
            return frozenset(rank for rank in self.ranks if 0 <= rank < world_size)
        spans = parse_ranks(self.ranks)
        if spans is None:
            return frozenset(range(world_size))
        return frozenset(rank for rank in range(world_size) if any(rank in span for span in spans))


def parse_ranks(text: str) -> tuple[range, ...] | None:
    """Reads ``0,4-7``: spans of ranks, ``()`` for ``none``, ``None`` for ``all``.

    Raises:
        ValueError: says which part could not be read, and what could be.
    """
    word = text.strip().lower()
    if word == "all":
        return None
    if word == "none":
        return ()
    spans = []
    for part in word.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise ValueError(f"ranks {text!r}: cannot read {part!r}; use numbers and spans (0,4-7), all or none")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise ValueError(f"ranks {text!r}: {part!r} runs backwards; write the smaller number first")
        spans.append(span)
    return tuple(spans)


def log_level(environ: Mapping[str, str], default: int = logging.INFO) -> int:
    """The level that ``ZLAUNCH_LOG_LEVEL`` names, by name in any case or as a number.

    Raises:
        ValueError: where it is neither; the message has the names that there are.
    """
    word = environ.get("ZLAUNCH_LOG_LEVEL", "").strip()
    if not word:
        return default
    if word.isdecimal():
        return int(word)
    names = logging.getLevelNamesMapping()
    if word.upper() in names:
        return names[word.upper()]
    raise ValueError(f"ZLAUNCH_LOG_LEVEL={word!r} is no level: give a number or one of {', '.join(names)}")
