"""For the tests of output and scripts: the real command line, its files, and how large its processes have grown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = 60.0
"""Seconds after which a run that has not ended has failed its test."""

QUICK = ("run", "--preload", "")
"""Without torch a run starts in no time."""


@dataclass(frozen=True)
class Ran:
    """What a shell sees of a program that has ended."""

    status: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    """Ours, with zlaunch as it lies here."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def zrun(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, **options: Any) -> Ran:
    """``zlaunch WORDS`` to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "zlaunch", *words],
        cwd=cwd,
        env=environment(**(env or {})),
        timeout=PATIENCE,
        check=False,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )
    return Ran(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())


def popen(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    """``zlaunch WORDS``, running; in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "zlaunch", *words],
        env=environment(),
        start_new_session=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def program(folder: Path, text: str, name: str = "prog.py") -> str:
    """Writes a script; its name, for a command line that runs in ``folder``."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return name


def rank_file(logs: Path, rank: int) -> Path:
    """The only run's file of a rank."""
    (found,) = logs.glob(f"*/localhost[[]{rank}].log")
    return found


def lines_of(out: str, rank: int) -> list[str]:
    """A rank's lines on the console, however those that are alike were folded."""
    lines = []
    for line in out.splitlines():
        label = re.match(r"\[ranks? ([\d,-]+)\] ", line)
        assert label, f"no line of a rank: {line[:200]!r}"
        if any(rank in range(int(a), int(b or a) + 1) for a, _, b in (s.partition("-") for s in label[1].split(","))):
            lines.append(line[label.end() :])
    return lines


def until(done: Callable[[], object]) -> None:
    """Poll for what no descriptor tells of."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.01)


def peaks(pid: int) -> dict[str, int]:
    """The largest resident size so far, in MB, of the supervisor and of its agent."""
    supervisor = psutil.Process(pid)
    (agent,) = [child for child in supervisor.children() if "zlaunch-agent" in " ".join(child.cmdline())]
    return {"supervisor": _peak(pid), "agent": _peak(agent.pid)}


def _peak(pid: int) -> int:
    (size,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(size) // 1024
