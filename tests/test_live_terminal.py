"""The live view where people see it: in a terminal (tmux), with a shell that comes back afterwards."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from live_rig import PATIENCE, ROOT, ZLAUNCH, Tmux, pause, table, tmux

from zlaunch.view.guests import Guests
from zlaunch.view.sinks import Outlet, Patience
from zlaunch.view.terminal import Terminal

PROGRAMS = Path(__file__).parent / "programs"
RUN = f'{ZLAUNCH} run --preload "" --log-dir none'
TALK = """\
import os, sys, time
rank, gate = os.environ["RANK"], sys.argv[1]
for number in range(int(sys.argv[2])):
    print(f"rank {rank} says {number}")
while not os.path.exists(gate):
    time.sleep(0.02)
"""


def clean(terminal: Tmux) -> None:
    """The shell is back on a terminal that nobody has been at."""
    before = terminal.prompt()
    assert not [line for line in before if "\x1b" in line or "last line" in line or "▸" in line], before
    assert [terminal.ask(flag) for flag in ("cursor_flag", "wrap_flag", "alternate_on", "insert_flag")] == list("1100")
    terminal.type("stty -a | grep -o -w -e -icanon -e icanon -e -echo -e echo; printf 'a\\tb\\n'")
    lines = [line for line in terminal.until(lambda lines: "a       b" in lines) if line]
    end = lines.index("a       b")
    assert lines[end - 2 : end] == ["icanon", "echo"], "settings are restored, what is typed is seen"


def pids(folder: Path, count: int) -> list[int]:
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.glob("pid.*"))) < count:
        assert time.monotonic() < deadline, "ranks did not start"
        pause()
    return [int((folder / f"pid.{rank}").read_text()) for rank in range(count)]


def test_8_ranks_train_the_digits_and_one_is_killed_from_outside(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    script = ROOT / "examples" / "train_digits.py"
    with tmux(tmp_path, 100, 30) as terminal:
        preload = "--preload torch,sklearn.datasets,torch.utils.data"
        run = f"{ZLAUNCH} run -n 8 {preload} -J digits {PROGRAMS / 'live_pid.py'} . {script} --epochs 500"
        terminal.type(f"clear; {run}; echo status $?")
        lines = terminal.until(
            lambda lines: sum("▸ running" in line for line in lines) == 8 and "epoch 2" in str(lines)
        )
        rows = table(lines)
        assert [row.split()[0] for row in rows] == list("01234567")
        assert re.search(r"^digits  1 host \u00d7 8 ranks  \d:\d\d  8 running$", "\n".join(lines), re.MULTILINE)
        assert [line for line in lines if line.startswith("  logs: zlaunch_logs/")]
        assert re.search(r"\[rank 0\] epoch \d+: loss", "\n".join(lines)), "log lines scroll above"
        terminal.until(lambda lines: all(re.search(r" \d+%  +\d+M", row) for row in table(lines)))
        os.kill(pids(tmp_path, 8)[3], signal.SIGKILL)
        lines = terminal.shows("status 137")
        told = [line for line in lines if line.startswith("zlaunch: ")]
        assert told[0].startswith("zlaunch: rank 3 (localhost"), told
        assert "SIGKILL" in told[0]
        clean(terminal)


def test_a_death_is_told_at_once(tmp_path: Path) -> None:
    """From kill(2) to the report on the terminal: 0.2 s, in the best of three, for the machine may be busy."""
    (tmp_path / "wait.py").write_text("import time\ntime.sleep(1000)\n")
    taken = []
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        argv = ["run", "--preload", "", "-n", "8", str(PROGRAMS / "live_pid.py"), str(folder), "wait.py"]
        with Pty(tmp_path, *argv) as terminal:
            terminal.read_until(lambda text: text.count("▸ running") >= 8)
            victim = pids(folder, 8)[3]
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            terminal.read_until(lambda text: "zlaunch: rank 3 (localhost" in text)
            taken.append(time.monotonic() - killed)
            assert terminal.end() == 137
        if taken[-1] < 0.2:
            break
    assert min(taken) < 0.2, taken


def test_the_window_is_resized(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    with tmux(tmp_path, 100, 40) as terminal:
        terminal.type(f"clear; {RUN} -n 8 talk.py gate 3; echo status $?")
        lines = terminal.until(lambda lines: str(lines).count("says 2") >= 16)
        assert len(table(lines)) == 8
        terminal.resize(60, 15)
        lines = terminal.until(lambda lines: any(line.startswith("localhost  ▸▸▸▸▸▸▸▸") for line in lines))
        (head,) = [place for place, line in enumerate(lines) if line.startswith("talk.py  1 host \u00d7 8 ranks")]
        assert 15 - head <= 7, "half of the window is for lines"
        assert len(table(lines)) == 3, "the ranks for which there is room"
        assert re.fullmatch(r"\[rank \d\] rank \d says 2", lines[head - 2])
        terminal.resize(120, 30)
        assert len(table(terminal.until(lambda lines: str(lines).count("▸ running") == 8))) == 8
        (tmp_path / "gate").touch()
        terminal.shows("status 0")
        assert not [line for line in terminal.history() if "last line" in line], "\n".join(terminal.history())
        said = re.findall(r"^\[rank (\d)\] rank \1 says (\d)$", "\n".join(terminal.history()), re.MULTILINE)
        assert sorted(said) == sorted((str(rank), str(n)) for rank in range(8) for n in range(3))
        clean(terminal)


def test_keys(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    with tmux(tmp_path) as terminal:
        terminal.type(f"clear; {RUN} -n 4 talk.py gate 1; echo status $?")
        terminal.until(lambda lines: "▸ running" in str(lines) and len(table(lines)) == 4)
        terminal.press("?")
        terminal.shows("choose the ranks", "▪ stopped")
        terminal.press("?")
        terminal.until(lambda lines: "choose the ranks" not in str(lines))
        terminal.press("r")
        terminal.shows("show which ranks")
        terminal.press("1", "-", "9", "BSpace", "x", "Enter")
        terminal.shows("cannot read '1-x'")
        terminal.press("r", "1", "-", "2", "Enter")
        lines = terminal.until(lambda lines: "only ranks 1-2" in str(lines) and "cannot" not in str(lines))
        assert [row.split()[0] for row in table(lines)][:2] == ["1", "2"]
        terminal.press("r", "a", "l", "l", "Enter")
        terminal.until(lambda lines: "only ranks" not in str(lines) and len(table(lines)) == 4)
        terminal.press("q")
        terminal.shows("this run ends with its terminal")
        terminal.resize(60, 24)
        terminal.until(lambda lines: "localhost:" not in str(lines) and len(table(lines)) >= 4)
        terminal.press("C-c")
        terminal.shows("status 130")
        said = "zlaunch: Ctrl-C: ending the ranks, with SIGKILL after 30 s; once more to kill them now"
        assert said in [line.rstrip() for line in terminal.history()], "longer than the window, and above the table"
        clean(terminal)


def test_the_terminal_goes_away(tmp_path: Path) -> None:
    """Its window is closed, or its connection breaks: all that it started ends, and the log files have the lines."""
    (tmp_path / "talk.py").write_text(TALK)
    with tmux(tmp_path) as terminal:
        terminal.type(f'{ZLAUNCH} run --preload "" --log-dir kept -n 2 talk.py gate 1')
        terminal.until(lambda lines: len(table(lines)) == 2 if "last line" in str(lines) else False)
        terminal.shows("says 0")
        started = psutil.Process(terminal.pid).children(recursive=True)
        assert len(started) >= 5, "a shell, zlaunch, its agent, two ranks"
        terminal.kill()
        assert not psutil.wait_procs(started, timeout=PATIENCE)[1]
    assert sorted(path.read_text() for path in tmp_path.glob("kept/*/*[[]?].log")) == [
        f"rank {r} says 0\n" for r in "01"
    ]


def test_what_was_typed_ahead_is_for_the_shell(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    (tmp_path / "gate").touch()
    with tmux(tmp_path) as terminal:
        terminal.type(f"clear; sleep 0.3; {RUN} -n 1 talk.py gate 1; echo status $?")
        terminal.type("echo typed $((20 + 1))")
        lines = terminal.shows("typed 21")
        assert "status 0" in lines
        clean(terminal)


def test_a_background_job_of_a_shell_prints_plain_lines(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    with tmux(tmp_path) as terminal:
        terminal.type(f"clear; {RUN} -n 1 talk.py gate 2 &")
        terminal.shows("[rank 0] rank 0 says 1")
        terminal.type("stty -a | grep -o -w -e -icanon -e icanon; echo here I am")
        lines = terminal.until(lambda lines: "here I am" in lines)
        assert lines[lines.index("here I am") - 1] == "icanon"
        (tmp_path / "gate").touch()
        terminal.type("wait $!; echo status $?")
        terminal.shows("status 0")
        assert "last line" not in "\n".join(terminal.history())


def test_what_ranks_print_does_not_hurt_the_terminal(tmp_path: Path) -> None:
    """Cleared screens, moved cursors, other character sets, hidden cursors, wide and broken characters."""
    (tmp_path / "rude.py").write_text(
        "import os, sys, time\n"
        "out = sys.stdout.buffer\n"
        "wide = '日本語 👨‍👩‍👧‍👦 end'.encode()\n"
        "for n in range(40):\n"
        "    out.write(b'\\x1b[2J\\x1b[H\\x1b[?25l\\x1b[?1049h\\x1b[5;9r\\x1b(0\\x1b[31mred \\xff\\xe2\\x82 '\n"
        "              + wide * (n % 9) + b' \\x1b]0;title\\x07\\x9b2J\\x0e\\x08\\x07 %d\\n' % n)\n"
        "    out.flush()\n"
        "print('as ever')\n"
        "print('🇩🇪👍🏽☁️é' * 40)\n"
        "while not os.path.exists('gate'): time.sleep(0.02)\n"
    )
    with tmux(tmp_path, 80, 24) as terminal:
        title = terminal.ask("pane_title")
        terminal.type(f"clear; {RUN} -n 2 rude.py; echo status $?")
        lines = terminal.until(lambda lines: "[ranks 0-1] as ever" in str(lines) and "🇩" in table(lines)[-1])
        assert re.search(r"end .*2J 3\d$", "\n".join(lines), re.MULTILINE), "the screen is full of lines"
        assert len(table(lines)) == 2
        assert terminal.ask("pane_title") == title
        (tmp_path / "gate").touch()
        terminal.shows("status 0")
        clean(terminal)


def test_a_program_prints_between_its_steps_and_its_handlers_write_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import logging, os, time, zlaunch\n"
        "def step():\n"
        "    logging.getLogger('mine').warning('a record of %s', os.environ['RANK'])\n"
        "    while not os.path.exists('gate'): time.sleep(0.02)\n"
        "    return 7\n"
        "if __name__ == '__main__':\n"
        "    logging.basicConfig(format='handler: %(message)s')\n"
        "    with zlaunch.Launcher(workers_per_host=2, backend=None, preload=(), log_dir=None) as launcher:\n"
        "        running = launcher.submit(step)\n"
        "        while running.status() != 'running': time.sleep(0.02)\n"
        "        while not os.path.exists('table'): time.sleep(0.02)\n"
        "        for word in ('printed', 'meanwhile'): print(word, 'without', 'haste')\n"
        "        print('half', end=' ', flush=True)\n"
        "        while not os.path.exists('gate'): time.sleep(0.02)\n"
        "        print('a line')\n"
        "        print('the results are', list(running.result()))\n"
    )
    with tmux(tmp_path, 80, 24) as terminal:
        terminal.type(f"clear; {sys.executable} program.py")
        terminal.until(
            lambda lines: "record of 0" in str(lines) and "record of 1" in str(lines) and len(table(lines)) == 2
        )
        (tmp_path / "table").touch()
        lines = terminal.until(lambda lines: "half" in lines and len(table(lines)) == 2)
        assert (
            lines.index("half")
            == lines.index("meanwhile without haste") + 1
            == lines.index("printed without haste") + 2
        )
        (tmp_path / "gate").touch()
        lines = [line for line in terminal.shows("the results are [7, 7]") if line]
        assert sorted(lines[:2]) == ["handler: mine: a record of 0", "handler: mine: a record of 1"]
        assert lines[2:5] == ["printed without haste", "meanwhile without haste", "half a line"]
        assert lines[5:] in (["the results are [7, 7]"], ["the results are [7, 7]", "prompt>"])
        clean(terminal)


def test_who_draws_on_one_terminal_and_who_prints_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables are one below the other; the program's streams are themselves, and as they were in the end."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with os.fdopen(ours, "rb", 0) as screen, os.fdopen(theirs, "w", 1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", None)
        outlets = [Outlet(lambda: stream, Patience(), lambda: None) for _ in range(2)]
        first, second = (Terminal(theirs, outlet) for outlet in outlets)
        guests, others = Guests(theirs), Guests(theirs)
        guests.welcome()
        others.welcome()

        def shown(end: bytes) -> bytes:
            data = b""
            while not data.endswith(end):
                assert select.select([screen], [], [], PATIENCE)[0], data
                data += screen.read(65536)
            return data

        stream.write("nothing is drawn\n")
        assert shown(b"drawn\n") == b"nothing is drawn\n"
        first.show(["", "one"])
        second.show(["", "two"])
        assert (first.shared_by, second.shared_by) == (2, 2)
        both = b"\x1b[?7l\x1b[K\r\none\x1b[K\r\n\x1b[K\r\ntwo\x1b[K\x1b[J\r\x1b[3A"
        end = b"\x1b[?7h\x1b[?25h\x1b[?2026l"
        shown(both + end)
        print("a", "word\nand", end=" ")
        assert b"a word\n\x1b[" in shown(both + b"and " + end), "the cursor stands behind what has begun"
        second.hide()
        second.show(["", "two"])
        shown(both + b"and " + end)
        first.hide(for_good=True)
        guests.see_off()
        one = b"\x1b[?7l\x1b[K\r\ntwo\x1b[K\x1b[J\r\x1b[1A"
        shown(one + b"and " + end)
        another = threading.Thread(target=print, args=("another", "thread"))
        another.start()
        another.join()
        assert b"another thread\n\x1b[" in shown(one + end), "it does not go on with our line"
        print("\r10%\r20%", end="")
        assert b"10%" not in shown(one + b"20%" + end)
        os._exit(stream.write("a child's\n") != 10) if (child := os.fork()) == 0 else os.waitpid(child, 0)
        assert b"two" not in shown(b"a child's\n").rpartition(end)[2]
        second.hide(for_good=True)
        others.see_off()
        shown(b"20%")
        assert "write" not in vars(stream)
        for outlet in outlets:
            outlet.close()


def test_where_it_cannot_be_there_are_plain_lines(tmp_path: Path) -> None:
    """And it is said why, where it was asked for by name."""
    (tmp_path / "gate").touch()
    (tmp_path / "talk.py").write_text(TALK)
    run, program = f"{RUN} -n 1 --err notes", "talk.py gate 2"
    with tmux(tmp_path) as terminal:
        for number, (words, note) in enumerate(
            (
                (f"TERM=dumb {run} --view live {program}", "TERM says"),
                (f"{run} --view live {program} | cat", "stdout is no terminal"),
                (f"{run} --view live {program} 2> said; cat said", "stderr is no terminal"),
                (f"{run} {program} | cat", ""),
            )
        ):
            terminal.type(f"clear; {words}; echo $? of {number}")
            lines = terminal.shows(f"0 of {number}")
            assert "[rank 0] rank 0 says 1" in lines
            assert "last line" not in str(lines)
            assert str(lines).count("no live view, but plain lines: " + note) == bool(note)
        terminal.resize(59, 30)
        terminal.type(f"clear; {run} --view live {program}; echo $? of 9")
        assert "the window has 59 x 30 characters" in "".join(terminal.shows("0 of 9"))


class Pty:
    """``zlaunch`` on a terminal whose other end we are, where moments count."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._fd, screen = pty.openpty()
        termios.tcsetwinsize(screen, (30, 100))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zlaunch", *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=screen,
            stderr=screen,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        )
        os.close(screen)
        self._shown = b""

    def __enter__(self) -> Pty:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def read_until(self, true: Callable[[str], bool]) -> str:
        """Wait until what was written since the last time is so."""
        deadline = time.monotonic() + PATIENCE
        while not true(text := re.sub(r"\x1b\[[0-9;]*m", "", self._shown.decode(errors="replace"))):
            assert select.select([self._fd], [], [], deadline - time.monotonic())[0], text
            self._shown += os.read(self._fd, 65536)
        self._shown = b""
        return text

    def end(self) -> int:
        """Read to the end; the exit status."""
        try:
            while os.read(self._fd, 65536):
                pass
        except OSError:  # nobody has the terminal any more
            return self._process.wait(PATIENCE)
        return -1
