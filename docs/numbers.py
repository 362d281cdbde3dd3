"""Docs: the README's table of numbers, from ``docs/benchmarks.json``. Run: python docs/numbers.py

The JSON is what the benchmarks wrote; where it does not exist the README's block is left empty. Only what stands
between the two marks is changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prose import DOCS, ROOT, cell, table, write

BEGIN, END = "<!-- numbers -->\n", "<!-- /numbers -->\n"
SOURCE = DOCS / "benchmarks.json"


def pages() -> dict[Path, str]:
    """The README with its numbers as they must be."""
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no block between {BEGIN.strip()} and {END.strip()}")
    return {readme: before + BEGIN + numbers() + END + after}


def numbers() -> str:
    """What stands between the marks."""
    if not SOURCE.exists():
        return ""
    return render(json.loads(SOURCE.read_text()))


def render(found: dict[str, Any]) -> str:
    """A row per measurement, a column per program.

    The JSON has ``machine`` (a sentence) and ``rows``; a row has ``what`` and ``values``: text by the program's name.
    """
    columns: list[str] = []
    for row in found["rows"]:
        columns += [name for name in row["values"] if name not in columns]
    rows = [(cell(row["what"]), *(cell(row["values"].get(name, "–")) for name in columns)) for row in found["rows"]]
    return f"{found['machine']}\n\n" + table(("what", *columns), rows)


if __name__ == "__main__":
    write(pages())
