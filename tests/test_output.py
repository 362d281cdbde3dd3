"""Output from end to end: what ranks print, on the console and in files. Nothing torn, nothing lost, nothing late."""

from __future__ import annotations

import os
import re
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from out_rig import PATIENCE, PROGRAMS, QUICK, environment, lines_of, peaks, popen, program, rank_file, until, zrun

LOGS = Path("logs")


def prog(text: str) -> str:
    """A script in the test's own folder, where we are."""
    return program(Path(), text)


# --- whole lines ----------------------------------------------------------------------------------------------------


def test_every_line_is_there_once_and_in_order(tmp_path: Path) -> None:
    count = 50_000
    with open("console", "wb") as console:
        ran = zrun(*QUICK, "-n", "4", str(PROGRAMS / "out_lines.py"), str(count), stdout=console)
    assert ran.status == 0, ran.err
    shown: dict[str, list[str]] = {str(rank): [] for rank in range(4)}
    for line in Path("console").read_text().splitlines():
        assert (line[:6], line[7:9]) == ("[rank ", "] "), line
        shown[line[6]].append(line[9:])
    errors = {str(rank): lines_of(ran.err, rank) for rank in range(4)}
    for rank in range(4):
        out = [f"{rank} out {i}" for i in range(count)]
        err = [f"{rank} err {i}" for i in range(9, count, 10)]
        assert shown[str(rank)] == out
        assert errors[str(rank)] == err
        kept = rank_file(LOGS, rank).read_text().splitlines()
        assert [line for line in kept if " out " in line] == out
        assert [line for line in kept if " err " in line] == err
        assert len(kept) == len(out) + len(err)


def test_one_rank_has_the_prefix_too() -> None:
    assert zrun(*QUICK, "-n", "1", prog("print('a')\nprint()\nprint('b')")).out == "[rank 0] a\n[rank 0] \n[rank 0] b\n"


def test_a_line_shows_at_once() -> None:
    """The rank writes the time; we read ours. Each is a line of its own, with no flush and no likes."""
    text = "import os, time\nfor i in range(20):\n    print(time.monotonic())\n    time.sleep(0.02)\n"
    with popen(*QUICK, "-n", "2", prog(text)) as run:
        assert run.stdout
        late = [time.monotonic() - float(line.split()[-1]) for line in run.stdout]
    assert len(late) == 40
    assert statistics.median(late) < 0.3, late
    assert min(late) < 0.1, late


def test_a_command_written_in_python_shows_its_lines_at_once() -> None:
    os.mkfifo("gate")
    text = "print('here')\nopen('gate').read()\n"
    with popen(*QUICK, "-n", "1", sys.executable, prog(text)) as run:
        assert run.stdout
        assert run.stdout.readline() == b"[rank 0] here\n"
        Path("gate").write_text("go")


def test_a_last_line_without_an_end_is_not_lost() -> None:
    ran = zrun(*QUICK, "-n", "1", prog("import sys\nprint('a', end='')\nsys.stderr.write('b')\n"))
    assert (ran.out, ran.err) == ("[rank 0] a\n", "[rank 0] b\n")
    assert sorted(rank_file(LOGS, 0).read_text().split()) == ["a", "b"]


def test_a_last_line_before_a_sudden_end_is_not_lost() -> None:
    text = "import os, sys\nsys.stdout.write('a' * 200_000 + '\\nend')\nsys.stdout.flush()\nos.kill(os.getpid(), 9)\n"
    ran = zrun(*QUICK, "-n", "1", prog(text))
    assert ran.status == 137
    assert ran.out == f"[rank 0] {'a' * 200_000}\n[rank 0] end\n"


def test_every_way_to_write_is_caught() -> None:
    text = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
print("print")
os.write(1, b"os.write\\n")
libc.printf(b"printf\\n")
libc.puts(b"not flushed")
subprocess.run(["sh", "-c", "echo child; echo its stderr >&2"])
os.system("echo system")
sys.__stdout__.write("__stdout__\\n")
sys.stdout.buffer.write(b"buffer\\n")
libc.printf(b"no end")
"""
    ran = zrun(*QUICK, "-n", "1", prog(text))
    words = "print|os.write|printf|not flushed|child|system|__stdout__|buffer|no end"
    assert sorted(lines_of(ran.out, 0)) == sorted(words.split("|"))
    assert ran.err == "[rank 0] its stderr\n"
    assert len(rank_file(LOGS, 0).read_text().splitlines()) == len(words.split("|")) + 1


def test_what_a_process_left_behind_prints_before_it_is_ended_is_kept() -> None:
    """A child outlives its rank and prints on; the line that it printed before the rank's end is there."""
    text = """
import os, sys, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    print("orphan", flush=True)
    os.write(write, b"x")
    time.sleep(600)
os.read(read, 1)
os._exit(0)
"""
    ran = zrun(*QUICK, "-n", "1", sys.executable, prog(text))
    assert (ran.status, ran.out) == (0, "[rank 0] orphan\n")


# --- what is shown, and where ---------------------------------------------------------------------------------------


def test_alike_lines_are_shown_once_and_kept_by_all() -> None:
    text = """
import os, time
for i in range(40):
    print("same", i)
    time.sleep(0.02)
print("the others" if os.environ["RANK"] != "1" else "odd one")
"""
    ran = zrun(*QUICK, "-n", "4", prog(text))
    shown = ran.out.splitlines()
    assert any(line.startswith("[ranks 0-3] same ") for line in shown)
    assert len(shown) < 120, "most of 160 lines are folded"
    assert "[rank 1] odd one" in shown
    for rank in range(4):
        mine = [f"same {i}" for i in range(40)] + ["odd one" if rank == 1 else "the others"]
        assert lines_of(ran.out, rank) == mine
        assert rank_file(LOGS, rank).read_text().splitlines() == mine


def test_the_two_streams_are_not_alike() -> None:
    text = "import os, sys\nprint('x', file=sys.stderr if os.environ['RANK'] == '1' else sys.stdout)\n"
    ran = zrun(*QUICK, "-n", "2", prog(text))
    assert (ran.out, ran.err) == ("[rank 0] x\n", "[rank 1] x\n")


@pytest.mark.parametrize(("ranks", "shown"), [("0,2", [0, 2]), ("2,3", [2]), ("3-9", []), ("none", [])])
def test_ranks_filters_the_console_only(ranks: str, shown: list[int]) -> None:
    text = "import os, sys\nprint('out', os.environ['RANK'])\nprint('err', os.environ['RANK'], file=sys.stderr)\n"
    ran = zrun(*QUICK, "-n", "3", "--ranks", ranks, "--out", "out", prog(text))
    assert sorted(ran.out.splitlines()) == [f"[rank {rank}] out {rank}" for rank in shown]
    note = "zlaunch: --ranks 3-9: the ranks are 0 to 2, so the console shows none of them"
    assert sorted(ran.err.splitlines()) == [f"[rank {rank}] err {rank}" for rank in shown] + [note] * (ranks == "3-9")
    assert sorted(Path("out").read_text().splitlines()) == [f"out {rank}" for rank in range(3)]
    for rank in range(3):
        assert sorted(rank_file(LOGS, rank).read_text().splitlines()) == [f"err {rank}", f"out {rank}"]


def test_out_and_err_get_raw_lines_as_well() -> None:
    text = "import os, sys\nprint('out', os.environ['RANK'])\nprint('err', os.environ['RANK'], file=sys.stderr)\n"
    ran = zrun(*QUICK, "-n", "2", "--out", "a/b/out", "--err", "a/c/err", "--color-stderr", prog(text))
    assert sorted(ran.out.splitlines()) == [f"[rank {rank}] out {rank}" for rank in range(2)]
    assert sorted(ran.err.splitlines()) == [f"[rank {rank}] \x1b[31merr {rank}\x1b[0m" for rank in range(2)]
    assert sorted(Path("a/b/out").read_text().splitlines()) == ["out 0", "out 1"]
    assert sorted(Path("a/c/err").read_text().splitlines()) == ["err 0", "err 1"]
    assert "\x1b" not in rank_file(LOGS, 0).read_text()


def test_out_and_err_may_be_one_file() -> None:
    text = "import sys\nfor i in range(500):\n    print('out', i)\n    print('err', i, file=sys.stderr)\n"
    assert zrun(*QUICK, "-n", "1", "--out", "both", "--err", "./both", prog(text)).status == 0
    lines = Path("both").read_text().splitlines()
    for stream in ("out", "err"):
        assert [line for line in lines if line.startswith(stream)] == [f"{stream} {i}" for i in range(500)]
    assert len(lines) == 1000


@pytest.mark.parametrize(("words", "env"), [(("--log-dir", "none"), {}), ((), {"ZLAUNCH_LOG_DIR": ""})])
def test_no_logs_are_no_files(tmp_path: Path, words: tuple[str, ...], env: dict[str, str]) -> None:
    ran = zrun(*QUICK, "-n", "1", *words, prog("print('a')"), env=env)
    assert (ran.status, ran.out) == (0, "[rank 0] a\n")
    assert {path.name for path in tmp_path.iterdir()} - {"state"} == {"prog.py"}, "but for what remembers runs"


def test_the_names_of_the_files() -> None:
    ran = zrun(*QUICK, "-n", "2", "--log-dir", "kept/here", prog("print('a')"))
    assert ran.status == 0
    (folder,) = Path("kept/here").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-\w+", folder.name)
    assert (
        {"localhost[0].log", "localhost[1].log"}
        <= {path.name for path in folder.iterdir()}
        <= {
            "localhost[0].log",
            "localhost[1].log",
            "localhost.log",
        }
    )


# --- much of it -----------------------------------------------------------------------------------------------------


def test_a_hundred_megabytes_without_a_line_end() -> None:
    os.mkfifo("gate")
    size = 100_000_000
    text = f"""
import os
piece = (b"0123456789" * 100_000)
for _ in range({size} // len(piece)):
    left = memoryview(piece)
    while left:
        left = left[os.write(1, left):]
print("\\nthen a line", flush=True)
open("gate").read()
"""
    with open("console", "wb") as console:
        run = popen(*QUICK, "-n", "1", prog(text), stdout=console)
    with run:
        until(lambda: b"then a line" in _end_of(Path("console")) or run.poll() is not None)
        grown = peaks(run.pid)
        Path("gate").write_text("go")
    assert run.returncode == 0
    assert rank_file(LOGS, 0).read_bytes() == b"0123456789" * (size // 10) + b"\nthen a line\n"
    shown = Path("console").read_bytes().splitlines()
    assert shown[0].startswith(b"[rank 0] 0123")
    assert all(line.startswith(b"[rank 0] (line continues) ") for line in shown[1:-1])
    assert len(shown) == 1 + size // (16 << 20) + 1
    assert sum(line.count(b"0") for line in shown) == size // 10 + len(shown)
    assert grown["supervisor"] < 400, grown
    assert grown["agent"] < 300, grown


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100))
        return file.read()


@pytest.mark.parametrize("flag", ["1", "2"])
def test_binary_output_arrives_as_it_was(flag: str) -> None:
    """All 256 values, 4 MB, in both a pattern and at random; a carriage return among them is no progress bar."""
    text = f"""
import os, random
data = bytes(range(256)) * 8192 + random.Random(1).randbytes(2 << 20)
left = memoryview(data)
while left:
    left = left[os.write({flag}, left):]
open("given", "wb").write(data)
"""
    ran = zrun(*QUICK, "-n", "1", prog(text), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert ran.status == 0
    given, kept = Path("given").read_bytes(), rank_file(LOGS, 0).read_bytes()
    assert kept == given or kept == given + b"\n"


@pytest.mark.parametrize("end", ["import os; os.close(1); os.close(2)", "import sys; sys.stdout.close()"])
def test_a_rank_that_closes_its_output(end: str) -> None:
    text = f"print('before')\n{end}\nopen('after', 'w').write('x' * 100)\n"
    ran = zrun(*QUICK, "-n", "1", prog(text))
    assert (ran.status, ran.out) == (0, "[rank 0] before\n"), ran.err
    assert Path("after").read_text() == "x" * 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "zlaunch-test", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a full disk is a small tmpfs, and only root may mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_under_the_logs(small_disk: Path) -> None:
    count = 50_000
    ran = zrun(*QUICK, "-n", "2", "--log-dir", str(small_disk), str(PROGRAMS / "out_lines.py"), str(count))
    assert ran.status == 0
    for rank in range(2):
        assert lines_of(ran.out, rank) == [f"{rank} out {i}" for i in range(count)]
    said = [line for line in ran.err.splitlines() if line.startswith("zlaunch: ")]
    assert any(str(small_disk) in line and "No space left on device" in line for line in said), said
    refused = sum(int(found[1]) for line in said if (found := re.search(r"(\d+) bytes could not be written", line)))
    kept = sum(path.stat().st_size for path in small_disk.rglob("*].log"))  # the ranks, not the agent
    given = sum(
        len(f"{r} out {i}\n") + (len(f"{r} err {i}\n") if i % 10 == 9 else 0) for r in "01" for i in range(count)
    )
    assert kept <= 256 << 10
    assert given <= refused + kept <= given + 100, "what is lost is said to the byte; torn lines have got an end"


def test_a_full_disk_under_out() -> None:
    ran = zrun(*QUICK, "-n", "1", "--out", "/dev/full", prog("print('a')"))
    assert (ran.status, ran.out) == (0, "[rank 0] a\n")
    assert "cannot write /dev/full: No space left on device" in ran.err


def test_two_ranks_at_full_speed() -> None:
    with open("console", "wb") as console:
        run = popen(*QUICK, "-n", "2", str(PROGRAMS / "out_full_speed.py"), "1", "count", "gate", stdout=console)
    with run:
        until(lambda: all(Path(f"count.{rank}").exists() for rank in range(2)))
        grown = peaks(run.pid)
        Path("gate").touch()
    assert run.returncode == 0
    for rank in range(2):
        count = int(Path(f"count.{rank}").read_text())
        assert rank_file(LOGS, rank).read_text() == "".join(f"{rank} {i}\n" for i in range(count))
    assert grown["supervisor"] < 400, grown
    assert grown["agent"] < 300, grown


# --- a console that is slow, or gone --------------------------------------------------------------------------------

COUNTING = """
import mmap, os
with open("progress", "r+b") as file:
    progress = mmap.mmap(file.fileno(), 8)
for i in range(100_000):
    print("x" * 200, i)
    progress[:] = i.to_bytes(8, "little")
"""


def _stand_still() -> int:
    """Wait until the rank prints no further; how far it has come."""
    progress, since = -1, time.monotonic()
    deadline = since + PATIENCE
    while time.monotonic() < since + 0.7 or progress <= 0:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)
        now = int.from_bytes(Path("progress").read_bytes(), "little")
        if now != progress:
            progress, since = now, time.monotonic()
    return progress


def test_ranks_wait_for_a_console_that_is_not_read() -> None:
    Path("progress").write_bytes(bytes(8))
    with popen(*QUICK, "-n", "1", prog(COUNTING)) as run:
        assert _stand_still() < 60_000, "the rank has not been held up"
        grown = peaks(run.pid)
        assert run.stdout
        out = run.stdout.read().splitlines()
    assert run.returncode == 0
    assert out == [b"[rank 0] " + b"x" * 200 + b" %d" % i for i in range(100_000)]
    assert grown["supervisor"] < 300, grown
    assert grown["agent"] < 200, grown


def test_ctrl_c_while_the_console_is_not_read() -> None:
    Path("progress").write_bytes(bytes(8))
    with popen(*QUICK, "-n", "1", prog(COUNTING)) as run:
        _stand_still()
        ranks = [child.pid for child in psutil.Process(run.pid).children(recursive=True)]
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130
        assert not any(map(psutil.pid_exists, ranks))


def test_head_ends_it_quietly() -> None:
    text = "import itertools\nfor i in itertools.count():\n    print(i)\n"
    line = f"{sys.executable} -m zlaunch run --preload '' -n 2 {prog(text)} | head -1"
    done = subprocess.run(
        ["sh", "-c", line], env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert re.fullmatch(r"\[ranks? [01](-1)?\] 0\n", done.stdout)
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


# --- lines that redraw themselves -----------------------------------------------------------------------------------


def test_a_progress_bar_floods_neither_console_nor_file() -> None:
    ran = zrun(*QUICK, "-n", "1", str(PROGRAMS / "out_progress.py"), text=False)
    assert ran.status == 0
    bar = "100%|##########| 10000/10000"
    assert rank_file(LOGS, 0).read_bytes().decode() == f"before\n{bar}\ndos\r\nafter\n"
    assert ran.out.count("%|") < 100
    assert f"[rank 0] {bar}\n" in ran.out
    assert "[rank 0] dos\r\n" in ran.out
