"""For the tests of the live view: boards made of events, and a real terminal, tmux, whose screen is read as text."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from zlaunch.events import Event, Output, RankEnded, RankStarted, RunStarted, Usage
from zlaunch.model import Fate, FateKind, HostPlan, RankUsage
from zlaunch.view.board import Board

ROOT = Path(__file__).parent.parent
PATIENCE = 40.0
PROMPT = "prompt> "


# --- events -----------------------------------------------------------------------------------------------------------


def started(hosts: int, ranks: int, **more: object) -> RunStarted:
    plans = tuple(HostPlan(i, f"node{i + 1}" if hosts > 1 else "localhost", ranks) for i in range(hosts))
    return RunStarted(0.0, "r1", "train.py", plans, 0, "", "/somewhere/zlaunch_logs/20260101-120000-r1", **more)  # type: ignore[arg-type]


def all_started(event: RunStarted, at: float = 1.0) -> list[Event]:
    seats = [(plan, local) for plan in event.hosts for local in range(plan.workers)]
    return [RankStarted(at, "r1", rank, local, plan.name, 1000 + rank) for rank, (plan, local) in enumerate(seats)]


def said(rank: int, text: bytes, at: float = 2.0) -> Output:
    return Output(at, "r1", rank, rank, "localhost", "out", text)


def used(event: RunStarted, at: float, cpu: float = 98.0, **more: object) -> list[Event]:
    found: list[Event] = []
    first = 0
    for plan in event.hosts:
        ranks = range(first, first + plan.workers)
        samples = tuple(RankUsage(rank, cpu, 300 << 20, **more) for rank in ranks)  # type: ignore[arg-type]
        found.append(Usage(at, "r1", plan.name, samples))
        first += plan.workers
    return found


def ended(rank: int, kind: FateKind, at: float = 60.0, **more: object) -> RankEnded:
    fate = Fate(rank=rank, local_rank=rank, hostname="localhost", pid=9, kind=kind, at=at, **more)  # type: ignore[arg-type]
    return RankEnded(at, "r1", fate)


def board(*events: Event) -> Board:
    made = Board()
    for event in events:
        made.handle(event)
    return made


# --- a terminal -------------------------------------------------------------------------------------------------------


class Tmux:
    """A shell in a terminal of its own, on a server of its own."""

    def __init__(self, folder: Path, columns: int, rows: int, **environ: str) -> None:
        self._server = f"zlaunch-{uuid.uuid4().hex[:8]}"
        given = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TERM": "screen-256color",
            "LANG": "C.UTF-8",
            "PS1": PROMPT,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_STATE_HOME": str(folder / "state"),
            **environ,
        }
        shell = ["env", "-i", *(f"{name}={value}" for name, value in given.items()), "bash", "--norc", "--noprofile"]
        size = ["-x", str(columns), "-y", str(rows)]
        self._tmux("-u", "-f", "/dev/null", "new-session", "-d", *size, "-c", str(folder), *shell)
        self.pid = int(self.ask("pid"))
        self.until(lambda lines: PROMPT.strip() in lines[0])

    def _tmux(self, *words: str) -> str:
        argv = ["tmux", "-L", self._server, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, what: str) -> str:
        """One of tmux's own variables."""
        return self._tmux("display-message", "-p", f"#{{{what}}}").strip()

    def type(self, text: str) -> None:
        """Text, and Enter."""
        self._tmux("send-keys", "-l", text)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self) -> list[str]:
        return self._tmux("capture-pane", "-p").split("\n")[:-1]

    def history(self) -> list[str]:
        """All that was ever shown, with what has scrolled away; lines that were wrapped are joined."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-").split("\n")[:-1]

    def until(self, true: Callable[[list[str]], object]) -> list[str]:
        """Wait until the screen is so."""
        deadline = time.monotonic() + PATIENCE
        while not true(lines := self.screen()):
            assert time.monotonic() < deadline, "waited in vain; the screen is:\n" + "\n".join(lines)
            pause()
        return lines

    def shows(self, *words: str) -> list[str]:
        """Wait until all these words are on the screen."""
        return self.until(lambda lines: all(word in "\n".join(lines) for word in words))

    def prompt(self) -> list[str]:
        """Wait until the shell is back."""
        return self.until(lambda lines: [line for line in lines if line][-1:] == [PROMPT.strip()])

    def kill(self) -> None:
        """Take the terminal away from whoever is there."""
        self._tmux("kill-server")

    def close(self) -> None:
        if not psutil.pid_exists(self.pid):
            return
        server = psutil.Process(self.pid)
        there = [server, *server.children(recursive=True)]
        self.kill()
        for process in psutil.wait_procs(there, timeout=5)[1]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@contextmanager
def tmux(folder: Path, columns: int = 100, rows: int = 30, **environ: str) -> Iterator[Tmux]:
    if not HAS_TMUX:
        pytest.skip("tmux is not installed")
    terminal = Tmux(folder, columns, rows, **environ)
    try:
        yield terminal
    finally:
        terminal.close()


def pause() -> None:
    """A moment, where nothing tells of what is polled for."""
    threading.Event().wait(0.02)


def table(lines: list[str]) -> list[str]:
    """The rows of the table of ranks that is on the screen."""
    titles = [place for place, line in enumerate(lines) if line.startswith("rank ") and line.endswith("last line")]
    assert len(titles) == 1, "\n".join(lines)
    return [line for line in lines[titles[0] + 1 :] if line.strip()]


ZLAUNCH = f"{sys.executable} -m zlaunch"
HAS_TMUX = shutil.which("tmux") is not None
