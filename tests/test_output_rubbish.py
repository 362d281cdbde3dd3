"""Ranks that print what no terminal should be given: files have it as it was, a pipe too, and a terminal stays one."""

from __future__ import annotations

import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import IO

import psutil
import pytest
from live_rig import HAS_TMUX, Tmux, tmux
from out_rig import PATIENCE, PROGRAMS, QUICK, environment, lines_of, program, rank_file, until, zrun

LOGS = Path("logs")
RUDE = [
    b"\x1b[2J\x1b[H\x1b[3Jcleared",
    b"\x1b[5A\x1b[10Cmoved\x1b[s\x1b[u\x1b[6n",
    b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[5;9rmodes",
    b"\x1b]0;title\x07\x1b]52;c;aGk=\x07\x1bP+q\x1b\\clipboard",
    b"\x1b(0\x0ecsets\x0f\x1bc\x08\x08\x07\x0b\x0c",
    b"\x1b[1;31mred \x1b[38;5;208mand orange",
    b"wide \xe6\xbc\xa2\xe5\xad\x97 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9 e\xcc\x81 \xe2\x80\xae",
    b"broken \xff\xfe \xe6\xbc \xc3( \xed\xa0\x80 \xf5\x80",
    b"C1 \xc2\x9b2J\x9b2J",
    b"no end of codes \x1b[",
    b"nul \x00 end",
]
TAMED = [
    b"cleared",
    b"moved",
    b"modes",
    b"clipboard",
    b"csets",
    b"\x1b[1;31mred \x1b[38;5;208mand orange\x1b[0m",
    RUDE[6],
    RUDE[7],
    b"C1 \x9b2J",
    b"no end of codes ",
    b"nul  end",
]


def rude() -> str:
    text = f"""
import sys
for line in {RUDE!r}:
    for to in (sys.stdout, sys.stderr):
        to.buffer.write(line + b"\\n")
        to.flush()
"""
    return program(Path(), text)


@contextmanager
def terminal(*words: str, stdout: IO[bytes] | None = None) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``zlaunch WORDS`` on a terminal of its own, which hangs up when our end is closed; the process, and our end."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    run = subprocess.Popen(
        [sys.executable, "-m", "zlaunch", *words],
        env=environment(TERM="xterm"),
        stdin=theirs,
        stdout=stdout or theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no other threads matter here
    )
    os.close(theirs)
    try:
        yield run, ours
    finally:
        run.kill()
        run.wait()


def read_all(fd: int) -> bytes:
    """What is shown, until nobody has the terminal any more."""
    shown = b""
    while True:
        try:
            chunk = os.read(fd, 1 << 16)
        except OSError:
            return shown
        shown += chunk


def test_a_pipe_and_the_files_get_it_as_it_was() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "zlaunch", *QUICK, "-n", "1", rude()],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    expected = b"".join(b"[rank 0] " + line + b"\n" for line in RUDE)
    assert ran.stdout == expected
    assert ran.stderr == expected
    assert sorted(rank_file(LOGS, 0).read_bytes().splitlines()) == sorted(RUDE * 2)


def test_a_terminal_gets_lines_and_their_colours() -> None:
    """Whatever a rank prints, the lines of others are still there, and the shell behind it is as it was."""
    with terminal(*QUICK, "--view", "plain", "-n", "1", rude()) as (run, ours):
        shown = read_all(ours)
        assert run.wait(PATIENCE) == 0
    os.close(ours)
    lines = [line.removesuffix(b"\r") for line in shown.split(b"\n") if line]
    assert sorted(lines) == sorted(b"[rank 0] " + line for line in TAMED * 2)
    assert sorted(rank_file(LOGS, 0).read_bytes().splitlines()) == sorted(RUDE * 2)


def test_only_the_stream_that_is_a_terminal_is_cleaned() -> None:
    with open("kept", "wb") as kept, terminal(*QUICK, "-n", "1", rude(), stdout=kept) as (run, ours):
        shown = read_all(ours)
        assert run.wait(PATIENCE) == 0
    os.close(ours)
    assert Path("kept").read_bytes() == b"".join(b"[rank 0] " + line + b"\n" for line in RUDE)
    assert b"\x1b[2J" not in shown
    assert b"[rank 0] cleared\r\n" in shown


def test_lines_of_10_megabytes() -> None:
    """Whole on the console and in the files; the lines of another rank are between them, not in them."""
    text = (
        "import os\nfor i in range(3):\n"
        "    print(os.environ['RANK'] * 10_000_000)\n    print('short', i, os.environ['RANK'])\n"
    )
    ran = zrun(*QUICK, "-n", "2", program(Path(), text))
    assert ran.status == 0
    for rank in range(2):
        long = str(rank) * 10_000_000
        expected = [line for i in range(3) for line in (long, f"short {i} {rank}")]
        assert lines_of(ran.out, rank) == expected
        assert rank_file(LOGS, rank).read_text().splitlines() == expected


# --- with the live view -----------------------------------------------------------------------------------------------


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Tmux]:
    if not HAS_TMUX:
        pytest.skip("a terminal whose screen can be read is tmux, which is not there")
    with tmux(tmp_path) as terminal:
        yield terminal


def live(screen: Tmux, words: str) -> list[str]:
    """All that was ever on the screen of a run with the live view."""
    screen.type(f"clear; {sys.executable} -m zlaunch {' '.join(QUICK[:2])} '' {words}; echo status $?")
    screen.until(lambda lines: "status 0" in lines)
    return screen.history()


def test_100000_lines_a_second_in_the_live_view(screen: Tmux, tmp_path: Path) -> None:
    """Two ranks at full speed: all lines are in the files, and the shell is as it was."""
    count = 100_000
    told = live(screen, f"-n 2 --log-dir kept {PROGRAMS / 'out_lines.py'} {count}")
    assert any(" out " in line for line in told)
    for rank in range(2):
        lines = rank_file(tmp_path / "kept", rank).read_text().splitlines()
        assert [line for line in lines if " out " in line] == [f"{rank} out {i}" for i in range(count)]
    assert not any("last line" in line for line in screen.screen()), "nothing is left of the table"


def test_a_bar_and_lines_of_10_megabytes_in_the_live_view(screen: Tmux, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    text = (
        "import sys\nprint('x' * 10_000_000)\nfor i in range(1000):\n"
        "    sys.stdout.write('\\r%3d%%|####' % (i / 10))\n    sys.stdout.flush()\n"
        "open('gate').read()\nsys.stdout.write('\\r100% done\\n')\n"
    )
    (tmp_path / "bar.py").write_text(text)
    words = "--view live -n 1 --log-dir kept bar.py; echo status $?"
    screen.type(f"clear; {sys.executable} -m zlaunch {QUICK[0]} {QUICK[1]} '' {words}")
    lines = screen.until(lambda lines: any(" 99%|####" in line for line in lines))
    row = next(line for line in lines if " 99%|####" in line)
    assert row.split()[0] == "0", "in the row of its rank, redrawn in place"
    (tmp_path / "gate").write_text("")
    screen.until(lambda lines: "status 0" in lines)
    assert rank_file(tmp_path / "kept", 0).read_text() == "x" * 10_000_000 + "\n100% done\n"
    assert sum("%|" in line for line in screen.history()) < 10


# --- a terminal that goes away ----------------------------------------------------------------------------------------

STAYS = """
import os, signal, subprocess, sys, time
def leave(*_):
    print("asked to end")
    open("asked." + os.environ["RANK"], "w")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
open("pid." + os.environ["RANK"], "w").write(str(os.getpid()))
while True:
    print("line after line")
    time.sleep(0.01)
"""


@pytest.mark.parametrize("view", ["plain", "live"])
def test_a_terminal_that_goes_away_ends_the_ranks(view: str) -> None:
    """They are asked to end, the lines until then are in their files, the status is SIGHUP's, and nothing is left."""
    with terminal(*QUICK, "--view", view, "--grace", "5", "-n", "2", program(Path(), STAYS)) as (run, ours):
        until(lambda: os.read(ours, 1 << 16) and all(Path(f"pid.{rank}").exists() for rank in range(2)))
        below = psutil.Process(run.pid).children(recursive=True)
        os.close(ours)
        assert run.wait(PATIENCE) == 128 + signal.SIGHUP
        _gone, alive = psutil.wait_procs(below, timeout=5)
        assert not alive
    for rank in range(2):
        assert Path(f"asked.{rank}").exists(), "SIGTERM, and time to do what it asks for"
        assert rank_file(LOGS, rank).read_text().endswith("line after line\nasked to end\n")
