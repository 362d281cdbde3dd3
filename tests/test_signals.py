"""Signals to ``zlaunch run``: from a terminal of its own, and from whoever knows its pid."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import survival_rig as rig
from survival_rig import Roll

RUN = ("run", "-n", "2", "--preload", "", "--log-dir", "none")
CTRL_C, CTRL_Z = b"\x03", b"\x1a"

SIGN = "import survival_rig as rig, signal, sys, os\n"
SLEEP = SIGN + "rig.sign_rank(sys.argv[1])\nrig.sleep_for_ever()\n"
POLITE = SIGN + (
    "def leave(*_):\n    print('asked to end', os.environ['RANK'], flush=True)\n    sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, leave)\nrig.daemonise(sys.argv[1])\n"
    "rig.sign_rank(sys.argv[1])\nrig.sleep_for_ever()\n"
)
DEAF = SIGN + "rig.be_deaf()\nrig.sign_rank(sys.argv[1])\nrig.sleep_for_ever()\n"
GATE = SIGN + "rig.sign_rank(sys.argv[1])\nopen(sys.argv[2]).read()\nprint('on we go', flush=True)\n"


class Terminal:
    """``zlaunch`` as the foreground job of a terminal, whose keyboard and screen we are."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.keyboard, screen = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zlaunch", *words],
            cwd=folder,
            env=rig.environment(),
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no other threads matter here
        )
        os.close(screen)
        self.shown = ""

    def press(self, key: bytes) -> None:
        os.write(self.keyboard, key)

    def until(self, words: str) -> None:
        """Read the screen until these words are on it."""
        deadline = time.monotonic() + rig.PATIENCE
        while words not in self.shown:
            assert self._read(deadline), f"the screen ended without {words!r}:\n{self.shown}"

    def end(self) -> int:
        """Read until nobody writes any more; the exit status."""
        deadline = time.monotonic() + rig.PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(rig.PATIENCE)

    def _read(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        assert left > 0, f"too long; on the screen:\n{self.shown}"
        if select.select([self.keyboard], [], [], left)[0]:
            try:
                self.shown += os.read(self.keyboard, 4096).decode().replace("\r\n", "\n")
            except OSError:  # the last process has closed its side
                return False
        return True

    def close(self) -> None:
        """As when the window is closed."""
        if self.keyboard >= 0:
            os.close(self.keyboard)
        self.keyboard = -1


@pytest.fixture
def roll(tmp_path: Path) -> Iterator[Roll]:
    made = Roll(tmp_path)
    yield made
    made.close()


@pytest.fixture
def terminal(tmp_path: Path, roll: Roll) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(program: str, *arguments: str, options: tuple[str, ...] = ()) -> Terminal:
        (tmp_path / "prog.py").write_text(program)
        opened.append(Terminal(tmp_path, *RUN, *options, "prog.py", roll.path, *arguments))
        return opened[-1]

    yield start
    for one in opened:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        one.close()


def test_ctrl_c_once(terminal: Callable[..., Terminal], roll: Roll) -> None:
    run = terminal(POLITE)
    roll.expect(agent=1, template=1, rank=2, daemon=2)
    run.press(CTRL_C)
    assert run.end() == 130, run.shown
    assert roll.alive() == []
    assert "Ctrl-C" in run.shown
    for rank in "01":
        assert f"[rank {rank}] asked to end {rank}\n" in run.shown
    assert "Traceback" not in run.shown


def test_ctrl_c_twice(terminal: Callable[..., Terminal], roll: Roll) -> None:
    run = terminal(DEAF, options=("--grace", "600"))
    roll.expect(agent=1, template=1, rank=2)
    run.press(CTRL_C)
    run.until("ending the ranks")
    assert len(roll.alive()) == 4
    run.press(CTRL_C)
    assert run.end() == 130, run.shown
    assert roll.alive() == []


def test_ctrl_z(terminal: Callable[..., Terminal], roll: Roll, tmp_path: Path) -> None:
    gates = tmp_path / "gate"
    os.mkfifo(gates)
    run = terminal(GATE, str(gates), options=("-n", "1"))
    roll.expect(agent=1, template=1, rank=1)
    run.press(CTRL_Z)
    run.until("Ctrl-Z is ignored")
    assert len(roll.alive()) == 3
    gates.write_text("go")
    assert run.end() == 0, run.shown
    assert "on we go" in run.shown
    assert roll.alive() == []


def test_the_terminal_is_closed(terminal: Callable[..., Terminal], roll: Roll) -> None:
    run = terminal(POLITE)
    roll.expect(agent=1, template=1, rank=2, daemon=2)
    run.close()
    assert run.process.wait(rig.PATIENCE) == 129
    assert roll.alive() == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_without_a_terminal(roll: Roll, tmp_path: Path, number: signal.Signals, status: int) -> None:
    """As ``kill PID`` does: to that process alone."""
    (tmp_path / "prog.py").write_text(POLITE)
    process = subprocess.Popen(
        [sys.executable, "-m", "zlaunch", *RUN, "prog.py", roll.path],
        cwd=tmp_path,
        env=rig.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    roll.expect(agent=1, template=1, rank=2, daemon=2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=rig.PATIENCE)
    assert process.returncode == status, out
    assert roll.alive() == []
    assert out.count("asked to end") == 2


def test_sigkill_follows_when_a_program_is_deaf(roll: Roll, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(DEAF)
    process = subprocess.Popen(
        [sys.executable, "-m", "zlaunch", *RUN, "--grace", "0.3", "prog.py", roll.path],
        cwd=tmp_path,
        env=rig.environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    roll.expect(agent=1, template=1, rank=2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(rig.PATIENCE) == 143
    assert roll.alive() == []
