"""Docs: the pictures of the live view, ``images/live-*.svg``. Run: python docs/pictures.py

Nothing in them is drawn by hand. A real run of 8 ranks that train on the digits tells its events (``--view json``);
they go through the view's own board, lines and report; Rich writes what would stand on a terminal as SVG. The folders
of the machine that it ran on get other names, and nothing else is changed.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import chdir
from pathlib import Path

from prose import DOCS, ROOT
from rich.console import Console
from rich.text import Text

from zlaunch.events import Event, Output, RankEnded, RankStarted, RunEnded, RunStarted, Usage
from zlaunch.view.board import Board
from zlaunch.view.jsonlines import read_line
from zlaunch.view.live import Line, Paper, frame
from zlaunch.view.ranklines import RankLines
from zlaunch.view.report import COLOURS, report

PAPER = Paper(100, 26)
COMMAND = ("run", "-n", "8", "-J", "digits", "--preload", "torch,sklearn.datasets,torch.utils.data")
SCRIPT = Path("examples", "train_digits.py")
TITLE = f"zlaunch run -n 8 {SCRIPT}"
HOME = "/home/ada/digits"
LEAST_EPOCH = 12
"""When the ranks have trained for so long, the first picture is taken and one of them is killed."""
VICTIM = 5


def events(folder: Path) -> Iterator[Event]:
    """What a run tells from start to end."""
    (folder / SCRIPT.parent).mkdir()
    shutil.copy(ROOT / SCRIPT, folder / SCRIPT)
    python = [(sys.prefix, "/home/ada/venv"), (sys.base_prefix, "/usr")]
    argv = [sys.executable, "-m", "zlaunch", *COMMAND, "--view", "json", str(SCRIPT), "--epochs", "1000"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ.pop("ZLAUNCH_LOG_DIR", None)
    with subprocess.Popen(argv, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        for line in running.stdout:
            text = line.decode()
            for real, shown in python:
                text = text.replace(real, shown)
            event = read_line(text)
            if event is not None:
                yield event


class Screen:
    """A terminal's lines: those of the ranks, and the table below them."""

    def __init__(self) -> None:
        self.board = Board()
        self.lines: list[str] = []
        self.words: dict[int, list[str]] = {}
        self._ranks = RankLines(frozenset(range(8)))

    def take(self, event: Event) -> None:
        """One event more."""
        self.board.handle(event)
        if isinstance(event, Output):
            shown = self._ranks.output(event, event.at) + self._ranks.render(self._ranks.folder.drain())
            self.lines += [line for _, data in shown for line in data.decode().splitlines()]
            self.words.setdefault(event.rank, []).append(event.data.decode().rstrip("\n"))

    def picture(self, now: float) -> list[Line]:
        """What there is to be seen."""
        table = frame(self.board, now, PAPER)
        return [((line, ""),) for line in self.lines[-(PAPER.height - len(table)) :]] + table


def pictures(folder: Path) -> dict[str, list[Line]]:
    """All of them, by name."""
    screen, found = Screen(), dict[str, list[Line]]()
    pids: dict[int, int] = {}
    began, sampled = 0.0, 0
    for event in events(folder):
        screen.take(event)
        match event:
            case RunStarted():
                began = event.at
            case RankStarted():
                pids[event.rank] = event.pid
            case Usage():
                sampled += 1
                if "training" not in found and sampled > 2 and len(screen.lines) >= LEAST_EPOCH:
                    found["training"] = screen.picture(event.at)
                    os.kill(pids[VICTIM], signal.SIGKILL)
            case RankEnded() if event.fate.rank == VICTIM:
                found["killed"] = screen.picture(event.at)
            case RunEnded():
                log_file = f"{screen_folder(folder)}/localhost[{VICTIM}].log"
                told = report(event, log_file, began=began, last_output=screen.words.get(VICTIM, []))
                lines = [((line, ""),) for line in screen.lines[-4:]]
                styles = {"1;31": "bold red", "33": "yellow"}
                said = [(("zlaunch: ", ""), (line.text, styles.get(COLOURS.get(line.tone, ""), ""))) for line in told]
                found["report"] = [*lines, *said, (("$ ", ""),)]
            case _:
                pass
    return found


def screen_folder(folder: Path) -> str:
    """The run's folder of log files."""
    (found,) = (folder / "zlaunch_logs").iterdir()
    return str(found)


def svg(lines: Iterable[Line], name: str) -> str:
    """As a terminal would show them."""
    console = Console(record=True, width=PAPER.width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        text = Text.assemble(*line)
        for row in text.divide(range(PAPER.width, len(text), PAPER.width)):  # as a terminal wraps it
            console.print(row, soft_wrap=True)
    return console.export_svg(title=TITLE, unique_id=f"zlaunch-{name}")


def main() -> None:
    """Take the pictures and write them."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        found = pictures(Path(folder))
        missing = {"training", "killed", "report"} - found.keys()
        if missing:
            raise SystemExit(f"the run gave no occasion for {', '.join(missing)}")
        for name, lines in found.items():
            hidden = [tuple((text.replace(folder, HOME), style) for text, style in line) for line in lines]
            path = DOCS / "images" / f"live-{name}.svg"
            path.write_text(svg(hidden, name))
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
