"""Benchmarks: what was measured, as a table and as JSON. Measures nothing."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from terms import Contestant, Row, Sample

VERSIONS = ("zlaunch", "torch", "torchrunx", "pyzmq", "msgspec", "numpy")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    models = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[0] if models else platform.machine(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONS},
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class Result:
    """All rounds of one contestant of one row."""

    def __init__(self, row: Row, contestant: Contestant) -> None:
        self.row = row
        self.contestant = contestant
        self.samples: list[Sample] = []
        self.failures: list[str] = []
        self.left_behind = 0
        self.floor: Result | None = None

    @property
    def values(self) -> list[float]:
        """The numbers of all rounds."""
        return [value for sample in self.samples for value in sample.values]

    @property
    def median(self) -> float | None:
        """The number that is quoted; ``None`` where every round failed."""
        return statistics.median(self.values) if self.values else None

    @property
    def times_floor(self) -> float | None:
        """How many times the floor it is: the median over the rounds in which both were measured."""
        if self.floor is None:
            return None
        floors = {sample.turn: statistics.median(sample.values) for sample in self.floor.samples if sample.values}
        ratios = [statistics.median(s.values) / floors[s.turn] for s in self.samples if s.values and s.turn in floors]
        return statistics.median(ratios) if ratios else None

    @property
    def whole(self) -> bool:
        """Whether no line was lost or torn in any round."""
        return all(not value for sample in self.samples for key, value in sample.facts.items() if _is_defect(key))

    @property
    def reached(self) -> bool | None:
        """Whether it holds the contract's number, with nothing lost; ``None`` where there is none."""
        target, median, limit = self.contestant.target, self.median, self.contestant.times_floor
        if limit is not None:
            return None if self.floor is None else self.times_floor is not None and self.times_floor <= limit
        if target is None:
            return None
        if median is None:
            return False
        return self.whole and (median >= target if self.row.higher_is_better else median <= target)

    def as_json(self) -> dict[str, Any]:
        """Everything that is known of it."""
        return {
            "name": self.contestant.name,
            "kind": self.contestant.kind,
            "median": self.median,
            "min": min(self.values, default=None),
            "max": max(self.values, default=None),
            "rounds": [{"values": sample.values, **sample.facts} for sample in self.samples],
            "target": self.contestant.target,
            "target_times_floor": self.contestant.times_floor,
            "times_floor": self.times_floor,
            "reached": self.reached,
            "left_behind": self.left_behind,
            "failures": self.failures,
        }


def _is_defect(key: str) -> bool:
    return key.endswith(("_lost", "_torn", "_again", "_unordered"))


def as_json(machine_facts: dict[str, Any], results: dict[str, list[Result]], skipped: dict[str, str]) -> dict[str, Any]:
    """The whole run."""
    rows = []
    for found in results.values():
        row = found[0].row
        rows.append(
            {
                "name": row.name,
                "title": row.title,
                "counted": row.counted,
                "unit": row.unit,
                "higher_is_better": row.higher_is_better,
                "ratios": {r.contestant.name: ratio(found, r) for r in found if r.contestant.kind != "zlaunch"},
                "contestants": [result.as_json() for result in found],
            }
        )
    after = [round(load, 2) for load in os.getloadavg()]
    return {"machine": {**machine_facts, "load_after": after}, "rows": rows, "skipped": skipped}


def ratio(found: list[Result], other: Result) -> float | None:
    """How many times better zlaunch is than another, by the medians; below 1 it is worse."""
    ours = next((result.median for result in found if result.contestant.kind == "zlaunch"), None)
    theirs = other.median
    if not ours or not theirs:
        return None
    return ours / theirs if other.row.higher_is_better else theirs / ours


def show(
    machine_facts: dict[str, Any], results: dict[str, list[Result]], skipped: dict[str, str], console: Console
) -> None:
    """The table."""
    versions = ", ".join(f"{name} {v}" for name, v in machine_facts["versions"].items() if v)
    console.print(
        f"{machine_facts['cores']} cores, Python {machine_facts['python']}, {versions}, {machine_facts['date']}"
    )
    table = Table(show_lines=False)
    for heading, justify in (("what", "left"), ("who", "left"), ("median", "right"), ("min - max", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("n", justify="right")
    table.add_column("zlaunch is better", justify="right")
    table.add_column("promised", justify="right")
    table.add_column("reached")
    for found in results.values():
        for place, result in enumerate(found):
            table.add_row(*_cells(found, result, first=place == 0), end_section=place == len(found) - 1)
    console.print(table)
    for found in results.values():
        for result in found:
            _show_notes(result, console)
    for name, why in skipped.items():
        console.print(f"{name}: skipped: {why}", markup=False)


def _cells(found: list[Result], result: Result, first: bool) -> tuple[str, ...]:
    contestant, values, unit = result.contestant, result.values, result.row.unit
    times = None if contestant.kind == "zlaunch" else ratio(found, result)
    promised = "" if contestant.target is None else number(contestant.target, unit)
    if contestant.times_floor is not None:
        promised = f"{contestant.times_floor:g} x the floor"
    return (
        result.row.title if first else "",
        contestant.name,
        "failed" if result.median is None else number(result.median, unit),
        f"{number(min(values), '')} - {number(max(values), '')}" if values else "",
        str(len(values)),
        "" if times is None else f"{times:.3g} x",
        promised,
        {None: "", True: "yes", False: "NO"}[result.reached],
    )


def number(value: float, unit: str) -> str:
    """A number for people: three digits that count, and its unit."""
    text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def _show_notes(result: Result, console: Console) -> None:
    """What else was seen and should not be overlooked."""
    who = f"{result.row.name}, {result.contestant.name}"
    for key in dict.fromkeys(key for sample in result.samples for key in sample.facts):
        values = [sample.facts.get(key, 0) for sample in result.samples]
        bad = (_is_defect(key) or key == "left_on_hosts") and any(values)
        if bad or key in ("error", "reading_seconds"):
            console.print(f"{who}: {key.replace('_', ' ')}: {', '.join(str(value) for value in values)}")
    if result.row.unit == "lines/s" and result.samples and result.whole:
        console.print(f"{who}: no line lost, torn, doubled or out of order, in the console's file and in the log files")
    if result.contestant.times_floor is not None and result.times_floor is not None:
        console.print(f"{who}: {result.times_floor:.3g} times the floor, round by round")
    if result.left_behind:
        console.print(f"{who}: {result.left_behind} processes were left behind, and ended by the benchmark")
    for failure in result.failures:
        console.print(f"{who}: FAILED: {failure}", markup=False)
