"""``zlaunch run --detach``: a run that outlives its terminal, and is found, watched and stopped from others."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from bed import Bed
from bed.programs import until
from watch_rig import ZLAUNCH, Shell, gone

from zlaunch.cli.detach import CONSOLE
from zlaunch.registry import files, runs

PATIENCE = 30.0


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    yield Shell(tmp_path)
    for entry in runs.look().runs:  # of tests that failed: such a run is nobody's child
        if not entry.ended:
            with suppress(ProcessLookupError):
                os.kill(entry.place.pid, signal.SIGKILL)


def detached(shell: Shell, *words: str) -> runs.RunEntry:
    done = shell.types("run", "--detach", "-n", "2", "--preload", "", *words, "prog.py")
    assert (done.returncode, done.stderr) == (0, "")
    (entry,) = [entry for entry in runs.look().runs if entry.run == done.stdout.strip()]
    assert done.stdout == f"{entry.run}\n"
    return entry


def read(master: int, words: str) -> str:
    """What a terminal shows, until it has these words."""
    seen = b""
    while words.encode() not in seen:
        assert select.select([master], [], [], PATIENCE)[0], seen
        seen += os.read(master, 4096)
    return seen.decode(errors="replace")


def test_it_outlives_the_terminal(shell: Shell) -> None:
    master, slave = pty.openpty()
    line = f"{' '.join(ZLAUNCH)} run --detach -n 2 --preload '' prog.py; echo status $?\n"
    argv = ["setsid", "--ctty", "sh"]
    with subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, cwd=shell.folder, env=shell.env) as terminal:
        os.close(slave)
        os.write(master, line.encode())
        read(master, "status 0")
        (entry,) = runs.look().runs
        assert os.getsid(entry.place.pid) == entry.place.pid
        os.close(master)  # the terminal is gone, and its session gets SIGHUP
        terminal.wait(PATIENCE)
    os.kill(entry.place.pid, signal.SIGHUP)  # as some shells send it to all that they have started
    for fd in (0, 1, 2):
        assert not os.readlink(f"/proc/{entry.place.pid}/fd/{fd}").startswith(("/dev/pts", "/dev/tty"))
    assert os.readlink(f"/proc/{entry.place.pid}/cwd") == str(shell.folder)
    (row,) = shell.ps().values()
    assert (row["run"], row["detached"], row["pid"]) == (entry.run, True, entry.place.pid)
    with shell.starts("attach", entry.run) as one, shell.starts("attach", "last", "--ranks", "0") as other:
        shell.has_ranks_say("hello")
        one.sees("[rank 1] 1 hello")
        other.sees("[rank 0] 0 hello")
        assert shell.types("stop", entry.run).returncode == 0
        assert one.finish()[0] == other.finish()[0] == 130
    until(lambda: gone(entry.place.pid), "the end of its supervisor")


def test_how_it_ended_is_told_later(shell: Shell) -> None:
    entry = detached(shell)
    console = Path(entry.log_folder) / CONSOLE
    assert str(console) == entry.console
    with shell.starts("logs", "-f", entry.run) as following:
        following.sees("[rank 0] rank 0 is ready")
        shell.has_ranks_say("exit 3")
        assert following.finish()[0] == 0
    until(lambda: gone(entry.place.pid), "the end of its supervisor")
    assert "rank 1 (localhost" in console.read_text()
    assert shell.ps() == {}
    row = shell.ps("-a")[entry.run]
    assert (row["state"], row["status"], row["over"]) == ("failed", 3, True)
    later = shell.types("attach", entry.run)
    assert later.returncode == 3
    assert f"run {entry.run} has ended: failed, exit status 3" in later.stderr
    assert "[rank 1] rank 1 is ready" in shell.types("logs", entry.run).stdout
    assert shell.types("stop", entry.run).returncode == 0
    (kept,) = runs.look().runs
    assert kept.ticket is None


def untimed(said: str) -> list[str]:
    return re.sub(r"[0-9.]+ m?s after", "... after", said).splitlines()


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["nothing.py"], 2, "there is no script nothing.py"),
        (["--hosts", "nobody.invalid", "prog.py"], 125, "nobody.invalid: ssh does not know this host:\n  ssh: Could"),
        (["--preload", "bad", "prog.py"], 125, "this module is no good"),
        (["--dry-run", "prog.py"], 2, "--detach starts a run, and --dry-run does not"),
    ],
)
def test_what_does_not_start_is_told_as_ever(shell: Shell, words: list[str], status: int, why: str) -> None:
    (shell.folder / "bad.py").write_text("raise RuntimeError('this module is no good')\n")
    done = shell.types("run", "--detach", *words)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert why in done.stderr
    if status == 125:
        as_ever = shell.types("run", *words).stderr
        assert untimed(done.stderr)[:3] == untimed(as_ever)[:3]
    assert runs.look().runs == ()
    assert not list(shell.folder.glob("logs/.console*"))


def test_ctrl_c_while_it_starts_ends_it(shell: Shell) -> None:
    (shell.folder / "slow.py").write_text("import pathlib, time\npathlib.Path('here').touch()\ntime.sleep(600)\n")
    with shell.starts("run", "--detach", "-n", "1", "--preload", "slow", "prog.py") as starting:
        until((shell.folder / "here").exists, "its template")
        starting.process.send_signal(signal.SIGINT)
        status, out, err = starting.finish()
    assert (status, out) == (130, "")
    assert "Ctrl-C" in err
    assert "Traceback" not in err
    assert runs.look().runs == ()


def test_without_files(shell: Shell) -> None:
    entry = detached(shell, "--log-dir", "none")
    assert (entry.console, entry.log_folder) == ("", "")
    with shell.starts("logs", "-f", "--rank", "1", entry.run) as following:
        shell.has_ranks_say("word")
        assert "[rank 0] 0 word" not in following.sees("[rank 1] 1 word")
        shell.has_ranks_say("exit 0")
        assert following.finish()[0] == 0
    until(lambda: gone(entry.place.pid), "the end of its supervisor")
    done = shell.types("logs", entry.run)
    assert done.returncode == 2
    assert "wrote no log files" in done.stderr


def test_two_of_one_second(shell: Shell) -> None:
    with (
        shell.starts("run", "--detach", "-n", "1", "--preload", "", "prog.py") as one,
        shell.starts("run", "--detach", "-n", "1", "--preload", "", "prog.py") as other,
    ):
        ids = {one.finish()[1].strip(), other.finish()[1].strip()}
    assert set(shell.ps()) == ids
    assert len(ids) == 2
    assert len(list(Path(files.folder()).iterdir())) == 2
    for run in ids:
        assert shell.types("stop", run).returncode == 0


def test_one_that_is_killed_leaves_nothing_that_counts(shell: Shell) -> None:
    entry = detached(shell)
    with shell.starts("attach", entry.run) as watching:
        shell.has_ranks_say("word")
        watching.sees("[rank 0] 0 word")
        os.kill(entry.place.pid, signal.SIGKILL)
        status, _, err = watching.finish()
        assert status == 125
        assert f"run {entry.run}: the connection to the run broke" in err
    until(lambda: gone(entry.place.pid), "its end")
    assert shell.ps() == {}
    assert not Path(runs.path(entry.run)).exists()


def test_a_run_of_another_machine(fresh_bed: Bed, shell: Shell) -> None:
    """It shares the home with us, as a second login node does; we see its files, too."""
    env = {**shell.env, "PATH": os.environ["PATH"]}
    argv = [*ZLAUNCH, "run", "--detach", "--local", "-n", "2", "--preload", "", "prog.py"]
    begun = fresh_bed.run("node1", argv, cwd=str(shell.folder), env=env)
    assert begun.returncode == 0, begun.stderr
    run = begun.stdout.strip()
    (row,) = shell.ps().values()
    assert (row["run"], row["state"], row["hostname"]) == (run, "running", "node1")
    with shell.starts("attach", run) as watching:
        shell.has_ranks_say("word")
        watching.sees("[rank 1] 1 word")
        fresh_bed.kill("node1")
        assert watching.finish()[0] == 125
    lost = shell.types("ps")
    assert lost.stdout.splitlines()[1].split()[:3] == [run, "node1", "unreachable"]
    assert f"run {run} on node1 does not answer" in lost.stderr
    assert Path(runs.path(run)).exists()
    assert shell.types("stop", run).returncode == 125
    Path(runs.path(run)).unlink()
