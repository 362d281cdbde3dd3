"""Benchmarks: printed lines, counted one by one. Pure but for reading files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(rb"<rank (\d+) line (\d+)>\r?\n?$")


@dataclass
class Count:
    """What was found of ``ranks`` times ``lines`` lines."""

    expected: int
    whole: int = 0
    """Different lines that are there, each alone on its line (after a launcher's own prefix)."""
    torn: int = 0
    """Lines that hold a part of one of ours, or parts of several."""
    again: int = 0
    unordered: int = 0
    """Lines that came before one of the same rank with a lower number."""

    @property
    def lost(self) -> int:
        """Lines that are not there."""
        return self.expected - self.whole


def count(files: Iterable[Path], ranks: int, lines: int) -> Count:
    """Count the lines of all these files together; each must be there once."""
    found = Count(ranks * lines)
    seen = [bytearray(lines) for _ in range(ranks)]
    for file in files:
        last = [-1] * ranks
        with file.open("rb") as content:
            for line in content:
                match = _LINE.search(line)
                if match is None or line.count(b"<rank ") != 1:
                    found.torn += b"<rank" in line or match is not None
                    continue
                rank, number = int(match[1]), int(match[2])
                if rank >= ranks or number >= lines:
                    found.torn += 1
                    continue
                if seen[rank][number]:
                    found.again += 1
                seen[rank][number] = 1
                found.unordered += number < last[rank]
                last[rank] = number
    found.whole = sum(sum(numbers) for numbers in seen)
    return found
