"""Docs: the README's table of numbers, from ``docs/benchmarks.json``. Run: python docs/benchmarks.py

That file is what ``python tests/benchmarks/run.py --json docs/benchmarks.json`` writes; without it the README's block
stays empty. Only what stands between the two marks is changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prose import DOCS, ROOT, cell, table, write

BEGIN, END = "<!-- numbers -->\n", "<!-- /numbers -->\n"
SOURCE = DOCS / "benchmarks.json"
COLUMNS = ("zlaunch", "torchrun", "torchrunx", "floor")


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
    return render(json.loads(SOURCE.read_text())) if SOURCE.exists() else ""


def render(found: dict[str, Any]) -> str:
    """Medians: a row per measurement (one more for each further way of ours), a column per program."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    rows: list[tuple[str, ...]] = []
    for row in found["rows"]:
        rows += _rows(row)
    return (
        f"Medians, measured on {machine['date'][:10]} in one run on {machine['cores']} cores "
        f"(Python {machine['python']}, {versions}); *floor* is what the machine itself needs.\n\n"
        + table(("what", *COLUMNS), rows)
        + "\n"
    )


def _rows(row: dict[str, Any]) -> list[tuple[str, ...]]:
    cells: dict[str, str] = {}
    more: list[tuple[str, ...]] = []
    for contestant in row["contestants"]:
        name, shown = contestant["name"], _shown(contestant, row["unit"])
        if contestant["kind"] == "zlaunch" and "zlaunch" in cells:
            more.append((f"… {cell(name.removeprefix('zlaunch, '))}", shown, "", "", ""))
            continue
        column = contestant["kind"] if contestant["kind"] == "zlaunch" else name.partition(",")[0]
        column, note = (column, name.partition(", ")[2]) if column in COLUMNS else ("floor", name)
        cells[column] = f"{shown} ({note})" if note else shown
    return [(cell(row["title"]), *(cells.get(column, "-") for column in COLUMNS)), *more]


def _shown(contestant: dict[str, Any], unit: str) -> str:
    """Three digits that count. Lines that were lost belong to the number."""
    value = contestant["median"]
    if value is None:
        return "failed"
    text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    defects = [key for once in contestant["rounds"] for key, count in once.items() if key.endswith("_lost") and count]
    return f"{text} {unit}" + (", lines lost" if defects else "")


if __name__ == "__main__":
    write(pages())
