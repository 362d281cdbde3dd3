"""Nodes that are asked for: the wait, who interrupts it, and a scheduler whose commands are slow, wrong, or away.

The commands are shell scripts that do what a real salloc and scancel were seen to do on a bad day.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import zlaunch
from zlaunch import asking

START = "import sys, zlaunch\nzlaunch.Launcher(hostnames='slurm', preload=(), log_dir=None, view='none').start()\n"
Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes a command of the scheduler's, found before any other."""
    (tmp_path / "bin").mkdir()
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def make(name: str, text: str) -> None:
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    make("squeue", "echo 'PENDING|Resources'")
    make("scancel", f"echo $1 >>{tmp_path}/cancelled")
    return make


def start() -> zlaunch.Launcher:
    return zlaunch.Launcher(hostnames="slurm", preload=(), log_dir=None, view="none").start()


def started(tmp_path: Path, program: Program, salloc: str) -> subprocess.Popen[str]:
    """A program that waits for nodes: its salloc has begun."""
    os.mkfifo(tmp_path / "begun")
    program("salloc", f"echo $$ >{tmp_path}/begun; {salloc}")
    waits = subprocess.Popen([sys.executable, "-c", START], stderr=subprocess.PIPE, text=True)
    (tmp_path / "begun").read_text()
    return waits


WAITS = "echo 'salloc: Pending job allocation 12' >&2; trap 'exit 1' TERM; cat; while :; do sleep 1; done"


def test_who_is_interrupted_again_while_giving_up_has_given_up(tmp_path: Path, program: Program) -> None:
    os.mkfifo(tmp_path / "asked")
    program("scancel", f"echo >{tmp_path}/asked; sleep 0.5; echo $1 >>{tmp_path}/cancelled")
    waits = started(tmp_path, program, WAITS)
    waits.send_signal(signal.SIGINT)
    (tmp_path / "asked").read_text()
    waits.send_signal(signal.SIGINT)
    _, error = waits.communicate(timeout=20)
    assert "KeyboardInterrupt" in error
    assert (tmp_path / "cancelled").read_text() == "12\n"


def test_a_job_that_is_told_of_after_we_gave_up_is_cancelled_too(tmp_path: Path, program: Program) -> None:
    waits = started(tmp_path, program, f"trap '' TERM; sleep 0.5; {WAITS}")
    waits.send_signal(signal.SIGINT)
    waits.communicate(timeout=20)
    assert (tmp_path / "cancelled").read_text() == "12\n"


def test_that_a_job_may_still_be_there_is_said(tmp_path: Path, program: Program) -> None:
    program("scancel", "echo no controller >&2; exit 1")
    waits = started(tmp_path, program, WAITS)
    waits.send_signal(signal.SIGINT)
    _, error = waits.communicate(timeout=20)
    assert "Slurm's job 12 may still be there: scancel ended with status 1: no controller; try scancel 12" in error


def test_a_controller_that_does_not_answer_is_told_of(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(asking, "ASK_EVERY", 0.05)
    program("squeue", "echo no controller >&2; exit 1")
    program("salloc", "echo 'salloc: Pending job allocation 12' >&2; sleep 0.5; echo refused >&2; exit 1")
    with pytest.raises(zlaunch.LaunchError, match="Slurm gave no nodes \\(salloc ended with status 1\\):\nrefused"):
        start()
    assert capsys.readouterr().err.count("squeue ended with status 1: no controller") == 1


@pytest.mark.parametrize("line", ["zlaunch-nodes 12", "noise\\nzlaunch-nodes 12"])
def test_nodes_without_names_are_given_back(tmp_path: Path, program: Program, line: str) -> None:
    program("salloc", f"echo 'salloc: Granted job allocation 12' >&2; printf '{line}\\n'; exec cat")
    with pytest.raises(zlaunch.LaunchError, match="Slurm has granted job 12, and named no nodes"):
        start()
    assert (tmp_path / "cancelled").read_text() == "12\n"


def test_a_command_that_has_ended_is_not_waited_for_because_its_pipes_are_held(
    tmp_path: Path, program: Program
) -> None:
    program("salloc", f"sleep 600 & echo $! >{tmp_path}/held; echo refused >&2; exit 3")
    try:
        with pytest.raises(zlaunch.LaunchError, match="ended with status 3"):
            start()
    finally:
        os.kill(int((tmp_path / "held").read_text()), signal.SIGKILL)


def test_a_stop_ends_the_wait(tmp_path: Path, program: Program) -> None:
    os.mkfifo(tmp_path / "begun")
    program("salloc", f"echo >{tmp_path}/begun; sleep 0.2; echo 'salloc: Pending job allocation 12' >&2; exec cat")
    launcher = zlaunch.Launcher(hostnames="slurm", preload=(), log_dir=None, view="none")
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            launcher.start()
        except zlaunch.LaunchError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    (tmp_path / "begun").read_text()
    launcher.stop()
    thread.join(20)
    assert [str(error) for error in raised] == ["it was stopped before there were nodes"]
    assert (tmp_path / "cancelled").read_text() == "12\n"


def test_an_agent_does_not_wait_for_ever_for_its_line() -> None:
    code = "import zlaunch.agent.main as m; m.FIRST_LINE = 0.2; m.main()"
    agent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert agent.stderr is not None
    assert b"no keys came on stdin" in agent.stderr.read()  # while its stdin is open
    agent.communicate(timeout=20)
    assert agent.returncode == 1


def test_agents_are_chosen_among_those_that_are_there() -> None:
    with pytest.raises(zlaunch.LaunchError, match="with Launcher"):
        zlaunch.Launcher(hostnames="slurm").on(hosts=1)
