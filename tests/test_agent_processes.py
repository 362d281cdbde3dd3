"""How the supervisor holds the commands that start agents: one that does not read, one for many hosts, their ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from zlaunch import Launcher, LaunchError
from zlaunch.model import AgentCommand
from zlaunch.supervisor.agents import AgentProcess, Start


def command(*argv: str, hosts: tuple[int, ...] = (0,)) -> AgentCommand:
    return AgentCommand(hosts=hosts, argv=argv, env=None, cwd=None, stdin_is_link=True)


def explain(status: int | None, said: str) -> str:
    return f"{status}: {said}"


@contextmanager
def running(*argv: str, line: bytes = b"", hosts: tuple[int, ...] = (0,)) -> Iterator[AgentProcess]:
    process = AgentProcess.start(Start(command(*argv, hosts=hosts), line, explain))
    try:
        yield process
    finally:
        process.end()


def test_a_line_that_no_pipe_holds_waits_for_who_reads_it_and_for_nobody_else(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    line = os.urandom(4 << 20)  # a pipe holds 64 KiB, and less for who has many
    script = f"read word <{tmp_path}/go; cat >{tmp_path}/got"
    begun = time.monotonic()
    with running("sh", "-c", script, line=line) as process:
        assert time.monotonic() - begun < 5.0  # for ever, if we wrote it here
        (tmp_path / "go").write_text("word\n")
        got = tmp_path / "got"
        while not got.exists() or got.stat().st_size < len(line):
            assert process.process.poll() is None
        assert got.read_bytes() == line


def test_a_command_that_has_ended_is_not_waited_for_because_its_stderr_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the helper of a ProxyCommand: nobody's end-of-file comes, and the start must fail all the same."""
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f"#!/bin/sh\nsleep 600 </dev/null >/dev/null & echo $! >{tmp_path}/held; echo refused >&2; exit 255\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    try:
        with pytest.raises(LaunchError, match="refused"):
            Launcher(hostnames=["192.0.2.1"], workers_per_host=1, preload=(), log_dir=None, agent_timeout=600).start()
        assert psutil.pid_exists(int((tmp_path / "held").read_text()))
    finally:
        os.kill(int((tmp_path / "held").read_text()), signal.SIGKILL)


def test_how_a_far_agent_ended_is_told_with_the_last_words() -> None:
    with running("sh", "-c", "echo oh dear >&2; kill -9 $$") as process:
        process.joined.add(0)
        process.connection_left(0, "the connection to its agent broke", silent=False)
        assert process.overdue(time.monotonic() + 0.2) == []  # ssh needs a moment to tell
        process.process.wait()
        while process.read():
            pass
        assert "oh dear" in process.reason(0)


def test_a_silent_host_is_not_waited_for() -> None:
    with running("cat") as process:
        process.joined.add(0)
        process.connection_left(0, "no heartbeat", silent=True)
        process.overdue(time.monotonic() + 0.2)
        assert process.process.wait(5) == -signal.SIGKILL
        assert process.reason(0) == "no heartbeat"


def test_of_a_command_for_many_hosts_one_may_go_without_the_others() -> None:
    with running("cat", hosts=(0, 1)) as process:
        process.connection_left(0, "gone", silent=False)
        assert process.overdue(time.monotonic() + 2) == [0]
        process.end(0)
        assert process.process.poll() is None
        process.hang_up(1)
        assert process.process.wait(5) == 0  # its stdin has ended
        process.end(1)
        assert not process.open


def test_what_is_held_are_three_descriptors_and_they_are_given_back() -> None:
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import test_agent_processes as t\n"
        "before = os.listdir('/proc/self/fd')\n"
        "with t.running('true') as p: p.process.wait(); held = os.listdir('/proc/self/fd')\n"
        "print(len(held) - len(before), len(os.listdir('/proc/self/fd')) - len(before))"
    )
    argv = [sys.executable, "-c", script, str(Path(__file__).parent)]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "3 0\n"
