"""What is said when something dies: the cause first, what became of the others, what to do next, where to read on."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from out_rig import PATIENCE, QUICK, environment, program, rank_file, zrun

import zlaunch
from zlaunch.errors import RemoteTraceback, WorkerFailedError
from zlaunch.events import RunEnded
from zlaunch.failure import heading, last_words, others, seconds, without_our_frames
from zlaunch.model import Fate, FateKind, Survivor
from zlaunch.printable import harmless, printable
from zlaunch.view.report import report

TERM, KILL, SEGV, ABRT = signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT
SIGNALED, RAISED, EXITED, RETURNED, LOST = (
    FateKind.SIGNALED,
    FateKind.RAISED,
    FateKind.EXITED,
    FateKind.RETURNED,
    FateKind.LOST,
)
TRACE = 'Traceback (most recent call last):\n  File "train.py", line 4, in <module>\n    step()\nValueError: bad\n'


def fate(rank: int, kind: FateKind = SIGNALED, at: float = 10.0, **more: object) -> Fate:
    place = {"rank": rank, "local_rank": rank, "hostname": "node", "pid": 100 + rank}
    return Fate(**{**place, "kind": kind, "at": at, **more})  # type: ignore[arg-type]


def stopped(rank: int, number: int = TERM) -> Fate:
    return fate(rank, SIGNALED, 10.1, signal=int(number), stopped=True)


def told(cause: Fate | None, *rest: Fate, outcome: str = "failed", log: str | None = "/logs/x", **more: object) -> str:
    fates = (*([cause] if cause else []), *rest)
    ended = RunEnded(20.0, "run", outcome, cause, fates, more.pop("survivors", ()))  # type: ignore[arg-type]
    return "\n".join(line.text for line in report(ended, log, began=8.76, **more))  # type: ignore[arg-type]


# --- the whole of it --------------------------------------------------------------------------------------------------


def test_a_run_that_succeeded_has_no_report() -> None:
    assert told(None, fate(0, RETURNED), outcome="succeeded") == ""
    survivors = (Survivor("node", 77, "sleep"),)
    assert told(None, fate(0, RETURNED), outcome="succeeded", survivors=survivors) == (
        "still alive: pid 77 on node (sleep)"
    )


def test_the_cause_is_first_and_the_last_lines_say_it_with_the_file() -> None:
    cause = fate(2, signal=9)
    rest = [stopped(0), fate(1, SIGNALED, 10.04, signal=int(ABRT)), stopped(3), fate(4, RETURNED, 9.0)]
    text = told(cause, *rest, last_output=["one", "two"], survivors=(Survivor("node", 77, "sleep"),))
    assert text.splitlines() == [
        "rank 2 (node, local rank 2, pid 102) killed by SIGKILL, 1.24 s after the start",
        "its last lines:",
        "  one",
        "  two",
        "rank 1 was killed by SIGABRT, 40 ms later",
        "2 ranks were ended by zlaunch with SIGTERM",
        "1 rank had done its part",
        "not zlaunch but something else on node sent that signal: a person, a scheduler, or a limit of its container",
        "still alive: pid 77 on node (sleep)",
        "exit status 137: rank 2 on node killed by SIGKILL",
        "its whole output: /logs/x",
    ]


def test_an_exception_is_told_with_its_traceback_once() -> None:
    """It is among the last lines, too, as Python has printed it there."""
    printed = ["loading", *TRACE.splitlines(), "printed at exit"]
    cause = fate(0, RAISED, text=TRACE, exit_code=1)
    assert told(cause, stopped(1), last_output=printed).splitlines() == [
        "rank 0 (node, local rank 0, pid 100) raised ValueError: bad, 1.24 s after the start",
        "its last lines:",
        "  loading",
        "  printed at exit",
        *(f"  {line}" for line in TRACE.splitlines()),
        "1 rank was ended by zlaunch with SIGTERM",
        "exit status 1: rank 0 on node raised ValueError: bad",
        "its whole output: /logs/x",
    ]


@pytest.mark.parametrize(
    ("outcome", "lines"),
    [
        ("cancelled", ["cancelled, 11.2 s after the start", "2 ranks were ended by zlaunch with SIGTERM"]),
        (
            "timed out",
            [
                "the time limit has passed, 11.2 s after the start",
                "2 ranks were ended by zlaunch with SIGTERM",
                "exit status 124: the time limit has passed",
            ],
        ),
    ],
)
def test_an_end_that_was_asked_for(outcome: str, lines: list[str]) -> None:
    assert told(None, stopped(0), stopped(1), outcome=outcome, log=None).splitlines() == lines


def test_a_lost_host_is_told_with_all_its_ranks_at_once() -> None:
    gone = [fate(rank, LOST, text="no sign of life for 4.5 s") for rank in (4, 5, 6)]
    text = told(gone[0], *gone[1:], stopped(0), outcome="lost", log=None)
    assert text.splitlines() == [
        "ranks 4-6 (node) lost: no sign of life for 4.5 s, 1.24 s after the start",
        "1 rank was ended by zlaunch with SIGTERM",
        "see whether node is up and can be reached; a run can go on without it (--hosts, hostnames)",
        "exit status 125: node was lost: no sign of life for 4.5 s",
    ]


def test_a_loss_that_was_told_in_many_lines() -> None:
    """As ssh does, and with whatever colours its site has."""
    cause = fate(0, LOST, text="ssh has ended (255):\n\x1b[31mConnection closed\x1b[0m")
    ended = RunEnded(20.0, "run", "lost", cause, (cause,), unasked=("node",))
    assert [line.text for line in report(ended, began=8.0)] == [
        "rank 0 (node, local rank 0, pid 100) lost: ssh has ended (255):, 2.00 s after the start",
        "  Connection closed",
        "see whether node is up and can be reached; a run can go on without it (--hosts, hostnames)",
        "not to be asked what is alive there: node; agents that hear no more of us end by themselves",
        "exit status 125: node was lost: ssh has ended (255):",
    ]


# --- the others -------------------------------------------------------------------------------------------------------


def test_the_others_are_a_line_per_kind() -> None:
    cause = fate(0, signal=9)
    rest = [
        *(stopped(rank) for rank in range(1, 7)),
        stopped(7, KILL),
        *(fate(rank, RAISED, 10.01, symptom=True, text="RuntimeError: Connection closed by peer") for rank in (8, 9)),
        *(fate(rank, EXITED, 10.2 + rank / 1000, exit_code=3) for rank in (10, 11)),
        fate(12, RAISED, 10.5, text=TRACE),
        fate(13, EXITED, 11.0, exit_code=143, stopped=True),
        fate(14, SIGNALED, 10.6, pid=0, signal=9, stopped=True),
        fate(15, LOST, 10.6, pid=0, text="it was stopped before it started", stopped=True),
    ]
    assert others(cause, rest) == [
        "ranks 10, 11 exited with status 3, the first 0.21 s later",
        "rank 12 raised ValueError: bad, 0.50 s later",
        "2 ranks failed because a peer was gone",
        "6 ranks were ended by zlaunch with SIGTERM",
        "1 rank was ended by zlaunch with SIGKILL",
        "1 rank exited with status 143 when zlaunch ended it",
        "2 ranks had not started",
    ]


def test_a_thousand_ways_to_fail_are_few_lines() -> None:
    rest = [fate(rank, RAISED, 10 + rank / 1000, text=f"KeyError: {rank}") for rank in range(1, 1001)]
    same = [fate(rank, RAISED, 12, text="KeyError: 'same'") for rank in range(1001, 2001)]
    lines = others(fate(0, signal=9), [*same, *rest])
    assert len(lines) == 7
    assert lines[0] == "rank 1 raised KeyError: 1, 1 ms later"
    assert lines[-1] == "1994 more ranks failed in other ways"
    (line,) = others(fate(0, signal=9), same)
    assert line == (
        "ranks 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008 and 992 more raised KeyError: 'same', "
        "the first 2.00 s later"
    )


# --- tracebacks -------------------------------------------------------------------------------------------------------

OURS = '/opt/x/zlaunch/worker/program.py"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ValueError: x", "ValueError: x"),
        (TRACE, "ValueError: bad"),
        (TRACE + "a note\n", "ValueError: bad"),
        (TRACE.replace("bad", "bad\nsecond line\n  third"), "ValueError: bad"),
        (
            f"KeyError: 1\n\nDuring handling of the above exception, another exception occurred:\n\n{TRACE}",
            "ValueError: bad",
        ),
        (
            '  File "a.py", line 1\n    def f(:\n          ^\nSyntaxError: invalid syntax\n',
            "SyntaxError: invalid syntax",
        ),
        (
            '  + Exception Group Traceback (most recent call last):\n  |   File "a.py", line 1, in <module>\n'
            "  |     raise\n  | ExceptionGroup: two (2 sub-exceptions)\n  +-+---------------- 1 ----------------\n"
            "    | ValueError: 1\n    +------------------------------------\n",
            "ExceptionGroup: two (2 sub-exceptions)",
        ),
        ("", "an exception"),
        ("ValueError: " + "x" * 1000, "ValueError: " + "x" * 288 + " …"),
        ("ValueError: \x1b[31mred\x07", "ValueError: red\ufffd"),
    ],
)
def test_the_heading_of_a_traceback(text: str, expected: str) -> None:
    assert heading(text) == expected


def test_the_frames_of_zlaunch_are_left_out_and_the_users_whole() -> None:
    text = f"""Traceback (most recent call last):
  File "{OURS}, line 53, in _run_script
    exec(code)
    ^^^^^^^^^^
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/home/ada/zlaunch/worker.py", line 5, in main
    importlib.import_module("x")
  File "<frozen importlib._bootstrap>", line 1204, in _gcd_import
  File "x.py", line 1, in <module>
    raise ValueError('  File "/opt/x/zlaunch/worker/no.py", line 3, in f')
ValueError: bad"""
    assert without_our_frames(text.splitlines()) == [
        "Traceback (most recent call last):",
        '  File "/home/ada/zlaunch/worker.py", line 5, in main',
        '    importlib.import_module("x")',
        '  File "x.py", line 1, in <module>',
        "    raise ValueError('  File \"/opt/x/zlaunch/worker/no.py\", line 3, in f')",
        "ValueError: bad",
    ]
    only_ours = f'Traceback (most recent call last):\n  File "{OURS}, line 3, in f\n    x()\nOSError: no'
    assert without_our_frames(only_ours.splitlines()) == ["OSError: no"]
    group = f'  + Exception Group Traceback\n  |   File "{OURS}, line 3, in f\n  |     x()\n  | G: 1'
    assert without_our_frames(group.splitlines())[1:] == ["  | G: 1"]
    assert without_our_frames([]) == []


def test_a_crash_shows_pythons_whole_stack_and_none_of_ours() -> None:
    stack = [f'  File "deep.py", line {n} in f' for n in range(40)]
    ours = [f'  File "{OURS}, line 3 in live', '  File "<string>", line 1 in <module>']
    printed = [
        *map(str, range(9)),
        "Fatal Python error: Segmentation fault",
        "",
        "Current thread 0x1 (most recent call first):",
    ]
    shown = last_words(fate(0, signal=11), [*printed, *stack, *ours, "", "Extension modules: a, b (total: 2)"])
    assert shown[:2] == ["4", "5"]
    assert shown[5:] == [*printed[9:], *stack]
    assert len(last_words(fate(0, signal=9), [str(n) for n in range(60)])) == 20


def test_a_traceback_whose_beginning_is_kept_no_more_is_not_told_twice() -> None:
    deep = (
        "Traceback (most recent call last):\n" + '  File "a.py", line 1, in f\n    f()\n' * 80 + "RecursionError: deep"
    )
    shown = last_words(fate(0, RAISED, text=deep), deep.splitlines()[-60:])
    assert shown == deep.splitlines()


def test_an_endless_message_is_not_told_to_its_end() -> None:
    text = TRACE + "\n".join(f"row {n}" for n in range(5000)) + "x" * 100_000
    shown = last_words(fate(0, RAISED, text=text), text.splitlines()[-60:])
    assert len(shown) == 201
    assert shown[:4] == TRACE.splitlines()
    assert shown[100] == "… (4804 lines)"
    assert shown[-2] == "row 4998"
    assert shown[-1].endswith("x … (100008 characters)")


# --- on a terminal that others share ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plain \ttext é 漢字 👩‍👩‍👧", "plain \ttext é 漢字 👩‍👩‍👧"),
        ("\x1b[31mred\x1b[0m \x1b[2J\x1b[H\x1b[?25l\x1b[>1u\x1b[1 qgone", "red gone"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x1bPq#0\x1b\\b\x1bc\x1b(0c\x1b", "alink bc"),
        (" 10%\r 50%\r100%\r\n", "100%"),
        ("a\x00b\x07c\x08d\x0be\x7ff", "a\ufffdb\ufffdc\ufffdd\ufffde\ufffdf"),
        ("\x9b2Ja\x85b\u202egnp.exe\u2028c", "a\ufffdb\ufffdgnp.exe\ufffdc"),
    ],
)
def test_a_line_in_our_own_text_is_a_line_and_no_more(line: str, expected: str) -> None:
    assert printable(line) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"plain \xff\xc3\xa9\r\n", b"plain \xff\xc3\xa9\r\n"),
        (b"\x1b[1;31mred\nmore\x1b[0m\nend\n", b"\x1b[1;31mred\x1b[0m\nmore\x1b[0m\x1b[0m\nend\n"),
        (b"\x1b[2J\x1b[Ha\x1b[?1049hb\x1bc\x1b]0;t\x07c\x0e\x07\x08d\xc2\x9b2Je\n", b"abcde\n"),
        (b"\x1b]52;c;cut short\nnext\n", b"\nnext\n"),
        (b"\x1b", b""),
    ],
)
def test_bytes_for_a_terminal_keep_their_colours_only(data: bytes, expected: bytes) -> None:
    assert harmless(data) == expected


def test_spans_of_time() -> None:
    assert [seconds(t) for t in (0.0, 0.0404, 0.5, 1.239, 12.34, 61, 3599.9, 7384)] == (
        ["0 ms", "40 ms", "0.50 s", "1.24 s", "12.3 s", "1 min 01 s", "1 h 00 min", "2 h 03 min"]
    )


# --- real runs --------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, time
print("epoch 1")
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


def own_words(err: str) -> list[str]:
    return [line.removeprefix("zlaunch: ") for line in err.splitlines() if line.startswith("zlaunch: ")]


def test_a_killed_rank_on_the_command_line() -> None:
    ran = zrun(*QUICK, "-n", "3", program(Path(), KILLED))
    assert ran.status == 137
    said = own_words(ran.err)
    assert re.fullmatch(
        r"rank 1 \(localhost, local rank 1, pid \d+\) killed by SIGKILL, [\d.]+ m?s after the start", said[0]
    )
    assert said[1:3] == ["its last lines:", "  epoch 1"]
    assert "2 ranks were ended by zlaunch with SIGTERM" in said
    assert said[-2:] == [
        "exit status 137: rank 1 on localhost killed by SIGKILL",
        f"its whole output: {rank_file(Path('logs').absolute(), 1)}",
    ]
    assert ran.err.splitlines()[-1] == f"zlaunch: {said[-1]}"
    assert "\x1b" not in ran.err


@pytest.mark.parametrize("words", [("prog.py",), ("-m", "prog")], ids=["script", "module"])
def test_an_exception_on_the_command_line_has_the_users_frames_only(words: tuple[str, ...]) -> None:
    text = "import importlib, inner\ndef run():\n    importlib.import_module('other')\nrun()\n"
    program(Path(), text)
    program(Path(), "", "inner.py")
    program(Path(), "def f():\n    raise KeyError('deep')\nf()\n", "other.py")
    ran = zrun(*QUICK, "-n", "1", *words)
    assert ran.status == 1
    said = own_words(ran.err)
    assert "raised KeyError: 'deep', " in said[0]
    frames = [line.rsplit("/", 1)[-1] for line in said if line.startswith("    File ")]
    assert [frame for frame in frames if not frame.startswith("__init__.py")] == [
        'prog.py", line 4, in <module>',
        'prog.py", line 3, in run',
        'other.py", line 3, in <module>',
        'other.py", line 2, in f',
    ]
    assert not re.search(r"zlaunch/worker|frozen", "\n".join(said))


def test_a_crash_on_the_command_line() -> None:
    ran = zrun(*QUICK, "-n", "1", program(Path(), "import ctypes\nctypes.string_at(0)\n"))
    said = own_words(ran.err)
    assert "killed by SIGSEGV" in said[0]
    assert any('prog.py", line 2 in <module>' in line for line in said)
    assert not any("zlaunch/worker" in line for line in said)
    assert any("native code" in line for line in said)


@pytest.mark.parametrize(
    ("terminal", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_the_report_has_colour_on_a_terminal_that_shows_it(terminal: dict[str, str], coloured: bool) -> None:
    """And nothing else that a terminal obeys."""
    ours, theirs = pty.openpty()
    words = [
        sys.executable,
        "-m",
        "zlaunch",
        *QUICK,
        "--view",
        "plain",
        "-n",
        "1",
        program(Path(), "raise SystemExit(3)\n"),
    ]
    run = subprocess.Popen(words, env=environment(**terminal), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while chunk := read(ours):
        shown += chunk
    os.close(ours)
    assert run.wait(PATIENCE) == 3
    assert (b"\x1b[1;31mrank 0 (localhost" in shown) == coloured
    assert (b"\x1b" in shown) == coloured


def read(fd: int) -> bytes:
    """What a pty has; nothing where its other end has been closed."""
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


# --- in Python --------------------------------------------------------------------------------------------------------


def test_the_error_has_the_words_of_the_report() -> None:
    cause, rest = fate(2, signal=9), [stopped(0), stopped(1)]
    error = WorkerFailedError(cause, failures=[cause, *rest], last_output=["one", "\x1b[2Jtwo"], log_file="/logs/x")
    assert str(error).splitlines() == [
        "rank 2 (node, local rank 2, pid 102) killed by SIGKILL",
        "its last lines:",
        "  one",
        "  two",
        "2 ranks were ended by zlaunch with SIGTERM",
        "not zlaunch but something else on node sent that signal: a person, a scheduler, or a limit of its container",
        "its whole output: /logs/x",
    ]
    assert error.last_output == ["one", "\x1b[2Jtwo"], "for a program they are as they were printed"
    starved = WorkerFailedError(fate(0, signal=9, out_of_memory=True))
    assert "fewer ranks" in str(starved)


def test_a_remote_traceback_has_the_users_frames_only(cluster: zlaunch.Launcher, tmp_path: Path) -> None:
    def step() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        cluster.run(step)
    remote = caught.value.__cause__
    assert isinstance(remote, RemoteTraceback)
    assert "in step" in str(remote)
    assert "zlaunch/worker" not in str(remote)

    program(tmp_path, "import json\njson.loads('{')\n")
    with pytest.raises(WorkerFailedError) as failed:
        cluster.run_script(str(tmp_path / "prog.py"))
    text = str(failed.value)
    assert text.count("Traceback (most recent call last)") == 1
    assert "prog.py" in text
    assert "zlaunch/worker" not in text
    assert "raised json.decoder.JSONDecodeError: Expecting property name" in text.splitlines()[0]
    assert text.splitlines()[-1].startswith("its whole output: ")
