"""Benchmarks: zlaunch beside torchrun and torchrunx, on this machine, in one go. See ``--help``.

Every row's contestants are measured in turn, round by round, so that what else the machine does hits all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from processes import Failed, Workshop, adopt_orphans
from report import Result, as_json, machine, show
from rich.console import Console
from rows import ROWS
from terms import Row


def options() -> argparse.Namespace:
    """What was asked for."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description="Measures zlaunch beside torchrun and torchrunx.")
    parser.add_argument("--only", action="append", choices=names, help="only this row; may be repeated")
    parser.add_argument("--who", action="append", help="only contestants whose name begins so; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each row (default 3)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), help="where the JSON goes")
    return parser.parse_args()


def measure(row: Row, rounds: int, who: list[str] | None, shop: Workshop, progress: Console) -> list[Result]:
    """All rounds of a row."""
    chosen = [c for c in row.contestants if who is None or c.name.startswith(tuple(who))]
    results = [Result(row, contestant) for contestant in chosen]
    for result in results:
        result.floor = next((other for other in results if other.contestant.kind == "floor"), None)
    for turn in range(rounds):
        for place in range(len(results)):
            result = results[(place + turn) % len(results)]
            if turn >= (result.contestant.rounds or rounds):
                continue
            began = time.monotonic()
            try:
                result.samples.append(replace(result.contestant.measure(shop), turn=turn))
            except (Failed, OSError, ValueError) as error:
                result.failures.append(str(error))
            result.left_behind += shop.sweep()
            took = time.monotonic() - began
            progress.print(f"{row.name} {turn + 1}/{rounds}: {result.contestant.name} ({took:.1f} s)", style="dim")
    shop.close_drivers()
    left = shop.sweep()
    if left:
        progress.print(f"{row.name}: {left} processes were left when the drivers had ended", style="red")
    return results


def main() -> int:
    """Measure, show, write; returns 1 where a promised number was not reached."""
    asked = options()
    adopt_orphans()
    progress = Console(stderr=True)
    facts = machine()
    results: dict[str, list[Result]] = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="zlaunch-benchmarks-") as folder:
        shop = Workshop(Path(folder))
        try:
            for row in ROWS:
                if asked.only is not None and row.name not in asked.only:
                    continue
                if why := row.missing():
                    skipped[row.name] = why
                    progress.print(f"{row.name}: skipped: {why}", style="yellow")
                elif found := measure(row, asked.rounds, asked.who, shop, progress):
                    results[row.name] = found
        except KeyboardInterrupt:
            progress.print("interrupted; here is what there is")
        finally:
            shop.close()
    show(facts, results, skipped, Console(width=None if sys.stdout.isatty() else 170))
    asked.json.write_text(json.dumps(as_json(facts, results, skipped), indent=2) + "\n")
    progress.print(f"written to {asked.json}")
    return 0 if all(r.reached is not False for found in results.values() for r in found) else 1


if __name__ == "__main__":
    sys.exit(main())
