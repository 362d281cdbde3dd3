"""The desk with real descriptors: pipes, terminals, files, full disks. Nothing here sleeps: it waits for the desk."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
import tty
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from msgspec.structs import replace

from zlaunch.events import AgentLost, Event, Notice, Output, RankEnded, Redrawn, RunEnded, RunRestarting, RunStarted
from zlaunch.model import Fate, FateKind, HostPlan
from zlaunch.view.desk import Desk
from zlaunch.view.settings import ViewSettings

WAIT = 10.0


class Office:
    """A desk, its console in memory unless given, and the credit that it gave back."""

    def __init__(self, settings: ViewSettings, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.credit: Counter[str] = Counter()
        self.lost = threading.Event()
        self.out, self.err = io.BytesIO(), io.BytesIO()
        self.desk = Desk(
            settings,
            lambda host, size: self.credit.update({host: size}),
            stdout or io.TextIOWrapper(self.out, write_through=True),
            stderr or io.TextIOWrapper(self.err, write_through=True),
            self.lost.set,
        )

    def tell(self, *events: Event) -> None:
        for event in events:
            if isinstance(event, RunStarted):  # as whoever starts a run tells it
                folder = event.log_folder or self.desk.log_folder(event.run, time.time())
                self.desk.put(replace(event, log_folder=folder))
            else:
                self.desk.put(event)

    def settled(self, timeout: float = WAIT) -> bool:
        done = threading.Event()
        self.desk.call(done.set)
        return done.wait(timeout)


@contextlib.contextmanager
def office(settings: ViewSettings, stdout: TextIO | None = None, stderr: TextIO | None = None) -> Iterator[Office]:
    made = Office(settings, stdout, stderr)
    try:
        yield made
    finally:
        made.desk.close(1.0)


def started(workers: int = 2, run: str = "r1", token: str = "tok", restart: int = 0) -> RunStarted:
    return RunStarted(0.0, run, "train", (HostPlan(0, "node", workers),), restart, token)


def output(data: bytes, rank: int = 0, stream: str = "out", *, run: str = "r1", piece: bool = False) -> Output:
    return Output(0.0, run, rank, rank, "node", stream, data, piece)  # type: ignore[arg-type]


def ended(rank: int, kind: FateKind = FateKind.RETURNED, run: str = "r1", **more: object) -> RankEnded:
    fate = Fate(rank=rank, local_rank=rank, hostname="node", pid=9, kind=kind, at=0.0, **more)  # type: ignore[arg-type]
    return RankEnded(0.0, run, fate)


def over(*fates: Fate, run: str = "r1") -> RunEnded:
    cause = next((fate for fate in fates if not fate.ok), None)
    return RunEnded(0.0, run, "failed" if cause else "succeeded", cause, fates)


def record(message: str, rank: int = 0, **more: object) -> bytes:
    fields = {"name": "my_app", "level": 20, "created": 1000.25, "message": message, **more}
    return b"\x1etok" + json.dumps(fields).encode() + b"\n"


@contextlib.contextmanager
def no_handlers() -> Iterator[None]:
    """As in a program without logging configuration; pytest's own handlers are on the root logger.

    Not a fixture: before a test's body begins, pytest hangs its handlers on loggers that do not propagate too.
    """
    logger = logging.getLogger("zlaunch")
    logger.propagate = False
    yield
    logger.propagate = True


def read_all(fd: int) -> bytes:
    parts = []
    with contextlib.suppress(OSError):  # a terminal's EIO
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    return b"".join(parts)


# --- console --------------------------------------------------------------------------------------------------


def test_streams_go_to_their_streams_and_credit_comes_back() -> None:
    with office(ViewSettings()) as here:
        here.tell(started(1), output(b"a\n"), output(b"warn\n", stream="err"), output(b"b"))
        assert here.settled()
        assert here.out.getvalue() == b"[rank 0] a\n[rank 0] b\n"
        assert here.err.getvalue() == b"[rank 0] warn\n"
        assert here.credit == {"node": 8}


def test_a_line_that_redraws_itself_is_for_eyes_only(tmp_path: Path) -> None:
    with office(ViewSettings(log_dir=str(tmp_path))) as here:
        here.tell(started(1))
        for at, text in ((0.5, "5%"), (3.0, "25%"), (5.5, "45%"), (6.0, "50%")):
            here.tell(Redrawn(at, "r1", 0, 0, "node", "err", text))
        here.tell(output(b"100%\n", stream="err"), ended(0))
        assert here.settled()
        assert here.err.getvalue() == b"[rank 0] 45%\n[rank 0] 100%\n"
        (file,) = tmp_path.glob("*/node[[]0].log")
        assert file.read_bytes() == b"100%\n"
        assert here.desk.last_output("r1", 0) == ["100%"]


def test_a_lonely_line_is_shown_without_anything_else_happening() -> None:
    read, write = os.pipe()
    with open(write, "w") as stdout, office(ViewSettings(), stdout) as here:
        here.tell(started(2), output(b"a\n"))
        assert select.select([read], [], [], WAIT)[0], "the desk wakes for it by itself"
        assert os.read(read, 100) == b"[rank 0] a\n"
    os.close(read)


def test_calls_come_after_what_was_put_before_them() -> None:
    with office(ViewSettings()) as here:
        seen: list[bytes] = []
        here.tell(started(2))
        done = threading.Event()
        for number in range(50):
            here.tell(output(b"%d\n" % number))
            here.desk.call(lambda: seen.append(here.out.getvalue()))
        here.desk.call(done.set)
        assert done.wait(WAIT)
        assert [text.count(b"\n") for text in seen] == list(range(1, 51))


def test_calls_after_close_run_at_once() -> None:
    with office(ViewSettings()) as here:
        here.desk.close()
        assert here.settled(0)


def test_a_call_that_raises_does_not_stop_the_desk() -> None:
    with office(ViewSettings()) as here:
        here.desk.call(lambda: 1 // 0)
        assert here.settled()
        assert b"ZeroDivisionError" in here.err.getvalue()


def test_a_reader_that_is_gone_is_told_once_and_the_files_go_on(tmp_path: Path) -> None:
    read, write = os.pipe()
    with open(write, "w") as stdout, office(ViewSettings(log_dir=str(tmp_path)), stdout) as here:
        here.tell(started(1), output(b"a\n"))
        assert here.settled()
        os.close(read)
        here.tell(output(b"b\n"), output(b"c\n"))
        assert here.lost.wait(WAIT)
        assert here.settled()
        assert here.credit == {"node": 6}
        assert Path(here.desk.log_file("r1", 0) or "").read_bytes() == b"a\nb\nc\n"


def test_a_pipe_that_nobody_reads_holds_the_credit_back_until_someone_is_in_a_hurry(tmp_path: Path) -> None:
    read, write = os.pipe()
    lines = b"x" * 99 + b"\n"
    with open(write, "w") as stdout, office(ViewSettings(log_dir=str(tmp_path)), stdout) as here:
        here.tell(started(1), output(lines * 5000))
        assert not here.settled(0.2), "it cannot have been written"
        assert not here.credit
        assert not fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK, "the descriptor is the program's"
        here.desk.hurry(0.1)
        assert here.settled()
        assert here.credit == {"node": 500_000}
        assert Path(here.desk.log_file("r1", 0) or "").stat().st_size == 500_000
    os.close(read)


def test_close_does_not_wait_for_ever_for_a_stopped_console() -> None:
    read, write = os.pipe()
    with open(write, "w") as stdout, office(ViewSettings(), stdout) as here:
        here.tell(started(1), output(b"x\n" * 500_000))
        here.desk.close(0.1)
        assert here.settled(0)
        assert b"could not be written to stdout" in here.err.getvalue()
    os.close(read)


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_a_slow_reader_gets_every_line_whole(kind: str) -> None:
    read, write = _pair(kind)
    expected = b"".join(b"[rank 0] %06d %s\n" % (number, b"y" * 60) for number in range(20_000))
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_all(read)))
    with open(write, "w") as stdout, office(ViewSettings(), stdout) as here:
        here.tell(started(1))
        here.tell(*(output(line[9:] + b"\n") for line in expected.splitlines()))
        assert not here.settled(0.1)
        reader.start()
        assert here.settled()
        here.desk.close()
    reader.join(WAIT)
    assert b"".join(got) == expected
    os.close(read)


def _pair(kind: str) -> tuple[int, int]:
    if kind == "pipe":
        return os.pipe()
    if kind == "terminal":
        master, slave = pty.openpty()
        tty.setraw(slave)
        return master, slave
    import socket

    ends = socket.socketpair()
    return ends[0].detach(), ends[1].detach()


def test_stdout_and_stderr_of_one_terminal_keep_their_order() -> None:
    read, write = _pair("pipe")
    with open(write, "w") as stream, office(ViewSettings(), stream, stream) as here:
        here.tell(started(1), output(b"1\n"), output(b"2\n", stream="err"), output(b"3\n"))
        assert here.settled()
        assert os.read(read, 1000) == b"[rank 0] 1\n[rank 0] 2\n[rank 0] 3\n"
    os.close(read)


def test_what_the_program_printed_before_comes_first() -> None:
    read, write = os.pipe()
    with open(write, "w") as stdout, office(ViewSettings(), stdout) as here:
        stdout.write("before\n")  # in its buffer
        here.tell(started(1), output(b"after\n"))
        assert here.settled()
        assert os.read(read, 100) == b"before\n[rank 0] after\n"
    os.close(read)


def test_a_console_without_bytes_gets_text() -> None:
    stdout = io.StringIO()
    with office(ViewSettings(), stdout) as here:
        here.tell(started(1), output(b"caf\xc3\xa9 \xff\n"))
        assert here.settled()
        assert stdout.getvalue() == "[rank 0] caf\u00e9 \ufffd\n"


def test_the_console_is_what_sys_stdout_is_when_a_run_starts(capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk(ViewSettings(), lambda host, size: None)
    try:
        done = threading.Event()
        desk.put(started(1))
        desk.put(output(b"a\n"))
        desk.call(done.set)
        assert done.wait(WAIT)
        assert capsys.readouterr() == ("[rank 0] a\n", "")
    finally:
        desk.close()


def test_a_stopped_console_does_not_keep_the_program_from_ending() -> None:
    code = (
        "import zlaunch.view.desk as d, zlaunch.view.settings as s, zlaunch.events as e, zlaunch.model as m\n"
        "desk = d.Desk(s.ViewSettings(), lambda *a: None)\n"
        "desk.put(e.RunStarted(0., 'r', 'f', (m.HostPlan(0, 'h', 1),), 0, ''))\n"
        "desk.put(e.Output(0., 'r', 0, 0, 'h', 'out', b'x\\n' * 500000))\n"
        "desk.close(0.2)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.wait(WAIT) == 0, "nobody reads its stdout"
        assert child.stderr is not None
        assert b"could not be written" in child.stderr.read()
    finally:
        child.kill()
        child.communicate()


def test_notices_and_restarts_are_zlaunchs_own_words() -> None:
    cause = ended(1, FateKind.EXITED, exit_code=3).fate
    with office(ViewSettings()) as here:
        here.tell(
            Notice(0.0, "info", "nobody asked"),
            Notice(0.0, "warning", "disk is slow", "node"),
            RunRestarting(0.0, "r1", cause, 1, 2),
        )
        assert here.settled()
        assert here.err.getvalue().decode().splitlines() == [
            "zlaunch: node: disk is slow",
            "zlaunch: rank 1 (node, local rank 1, pid 9) exited with status 3: restart 1 of 2",
        ]
    with office(ViewSettings(verbose=True, view="none")) as here:
        here.tell(Notice(0.0, "debug", "asked"), started(1), output(b"unseen\n"))
        assert here.settled()
        assert b"zlaunch: asked\n" in here.err.getvalue()
        assert here.out.getvalue() == b""


def test_a_failed_run_is_reported_with_its_file(tmp_path: Path) -> None:
    death = ended(1, FateKind.SIGNALED, signal=9)
    with office(ViewSettings(report=True, log_dir=str(tmp_path))) as here:
        here.tell(started(2), output(b"fine\n", 0), ended(0), death, over(ended(0).fate, death.fate))
        assert here.settled()
        path = here.desk.log_file("r1", 1)
        assert here.err.getvalue().decode().splitlines() == [
            "zlaunch: rank 1 (node, local rank 1, pid 9) killed by SIGKILL, 0 ms after the start",
            "zlaunch: 1 rank had done its part",
            "zlaunch: not zlaunch but something else on node sent that signal: "
            "a person, a scheduler, or a limit of its container",
            "zlaunch: exit status 137: rank 1 on node killed by SIGKILL",
            f"zlaunch: its whole output: {path}",
        ]
        assert Path(path or "").read_bytes() == b"", "it printed nothing, but its file is there to be read"
        agent = Path(path or "").with_name("node.log").read_text()
        assert "ERROR agent: rank 1 (local rank 1, pid 9) killed by SIGKILL" in agent
        here.tell(started(1, "r2"), ended(0, run="r2"), over(ended(0).fate, run="r2"))
        assert here.settled()
        assert here.desk.log_file("r2", 0) is None, "a silent success leaves no files"


def test_who_only_watches_is_told_of_the_failed_ranks_file(tmp_path: Path) -> None:
    """It is where the run was started, and may be seen from here."""
    (tmp_path / "node[1].log").touch()
    for folder, told in ((tmp_path, True), (tmp_path / "elsewhere", False)):
        with office(ViewSettings(report=True)) as here:
            death = ended(1, FateKind.SIGNALED, signal=9)
            here.tell(replace(started(2), log_folder=str(folder)), ended(0), death, over(ended(0).fate, death.fate))
            assert here.settled()
            last = here.err.getvalue().decode().splitlines()[-1]
            assert (last == f"zlaunch: its whole output: {folder}/node[1].log") is told
    assert [path.name for path in tmp_path.iterdir()] == ["node[1].log"], "and nothing is written there"


def test_a_hosts_file_has_the_first_line_of_an_exception(tmp_path: Path) -> None:
    trace = 'Traceback (most recent call last):\n  File "t.py", line 1, in <module>\nValueError: it is so\nand so\n'
    failure = ended(0, FateKind.RAISED, text=trace)
    with office(ViewSettings(log_dir=str(tmp_path))) as here:
        here.tell(started(1), failure, over(failure.fate))
        assert here.settled()
        (file,) = tmp_path.glob("*/node.log")
        assert "raised ValueError: it is so\n" in file.read_text()


# --- files ----------------------------------------------------------------------------------------------------


def test_a_ranks_file_has_its_own_bytes_and_its_records_in_their_place(tmp_path: Path) -> None:
    with no_handlers(), office(ViewSettings(log_dir=str(tmp_path))) as here:
        here.tell(
            started(2),
            output(b"a\xff\n", 1),
            output(b"warn\n", 1, "err"),
            output(record("hello", exc_text="Traceback\nboom") + record("printed already", handled=True) + b"half", 1),
            output(b"from 0\n", 0),
            ended(1),
        )
        assert here.settled()
        path = Path(here.desk.log_file("r1", 1) or "")
        assert re.fullmatch(r"\d{8}-\d{6}-r1", path.parent.name)
        assert path.name == "node[1].log"
        assert re.fullmatch(
            rb"a\xff\nwarn\n\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,250 INFO my_app: hello\nTraceback\nboom\nhalf\n",
            path.read_bytes(),
        )
        assert here.desk.last_output("r1", 1) == ["a\ufffd", "warn", "INFO my_app: hello", "Traceback", "boom", "half"]
        assert b"[rank 1] INFO my_app: hello\n[rank 1] Traceback\n[rank 1] boom\n" in here.err.getvalue()
        assert b"printed already" not in here.err.getvalue()


def test_a_restart_goes_on_in_the_same_file(tmp_path: Path) -> None:
    with office(ViewSettings(log_dir=str(tmp_path))) as here:
        here.tell(started(1), output(b"one"), ended(0, FateKind.EXITED, exit_code=1))
        here.tell(started(1, restart=1), output(b"two\n"), ended(0))
        assert here.settled()
        assert Path(here.desk.log_file("r1", 0) or "").read_bytes() == b"one\ntwo\n"


def test_an_unfinished_line_is_not_run_together_with_another_stream(tmp_path: Path) -> None:
    with office(ViewSettings(log_dir=str(tmp_path))) as here:
        here.tell(started(1), output(b"x" * 10, piece=True), output(b"warn\n", stream="err"), output(b"y\n"))
        here.tell(output(b"no end"), output(b"fatal", stream="err"))
        assert here.settled()
        expected = b"xxxxxxxxxx\nwarn\ny\nno end\nfatal"
        assert Path(here.desk.log_file("r1", 0) or "").read_bytes() == expected


def test_hosts_cannot_write_elsewhere(tmp_path: Path) -> None:
    started = RunStarted(0.0, "r1", "f", (HostPlan(0, "../../x", 1), HostPlan(1, ".", 1)), 0, "")
    with office(ViewSettings(log_dir=str(tmp_path / "logs"))) as here:
        here.tell(
            started, Output(0.0, "r1", 0, 0, "../../x", "out", b"a\n"), Output(0.0, "r1", 1, 0, ".", "out", b"b\n")
        )
        assert here.settled()
        found = sorted(path.name for path in tmp_path.rglob("*.log"))
        assert found == ["%2E.%2F..%2Fx[0].log", "%2E[0].log"]
        assert {path.parent.parent for path in tmp_path.rglob("*.log")} == {tmp_path / "logs"}


def test_agents_words_are_in_their_hosts_file_even_those_before_the_run(tmp_path: Path) -> None:
    with office(ViewSettings(log_dir=str(tmp_path))) as here:
        here.tell(Notice(0.0, "info", "early", "node"), Notice(0.0, "info", "else", "other"), started(1))
        here.tell(Notice(0.0, "info", "late", "node"), output(b"a\n"), AgentLost(0.0, "node", "cut"))
        assert here.settled()
        path = Path(here.desk.log_file("r1", 0) or "").with_name("node.log")
        assert [line.split(" ", 2)[2] for line in path.read_text().splitlines()] == [
            "INFO agent: early",
            "INFO agent: late",
            "ERROR agent: lost: cut",
        ]


def test_many_ranks_need_few_descriptors(tmp_path: Path) -> None:
    ranks = 700
    with office(ViewSettings(log_dir=str(tmp_path), ranks="none")) as here:
        here.tell(started(ranks))
        for round_ in range(2):
            here.tell(*(output(b"%d\n" % round_, rank) for rank in range(ranks)))
        assert here.settled()
        ours = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
        assert sum(name.startswith(str(tmp_path)) for name in ours) <= 256
        for rank in range(ranks):
            assert Path(here.desk.log_file("r1", rank) or "").read_bytes() == b"0\n1\n"


def _is_link(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def test_out_and_err_have_raw_lines_and_may_be_one(tmp_path: Path) -> None:
    both = tmp_path / "new" / "both.log"
    both.parent.mkdir()
    both.write_text("of yesterday\n")
    deep = tmp_path / "a" / "b" / "out.log"
    history = [
        output(b"zero\n", 0),
        output(b"cut", 0, piece=True),
        output(b"one\n", 1),
        output(b"warn\n", 1, "err"),
        output(b"off\n", 0),
        output(b"no end", 1),
        output(b"last\n", 0),
    ]
    for settings, path, expected in (
        (
            ViewSettings(out=str(both), err=str(both)),
            both,
            b"zero\ncut\none\nwarn\n(line continues) off\nno end\nlast\n",
        ),
        (ViewSettings(out=str(deep), color_stderr=True), deep, b"zero\ncut\none\n(line continues) off\nno end\nlast\n"),
    ):
        with office(settings) as here:
            here.tell(started(2), *history)
            assert here.settled()
            assert path.read_bytes() == expected
            assert b"[rank 1] one\n" in here.out.getvalue()


def test_a_full_disk_is_said_once_and_everything_else_goes_on(tmp_path: Path) -> None:
    with office(ViewSettings(out="/dev/full", log_dir=str(tmp_path))) as here:
        here.tell(started(1))
        for _ in range(3):
            here.tell(output(b"a\n"))
            assert here.settled()
        said = here.err.getvalue().decode()
        assert said.count("/dev/full") == 1
        assert "No space left on device" in said
        assert here.out.getvalue() == b"[rank 0] a\n" * 3
        assert Path(here.desk.log_file("r1", 0) or "").read_bytes() == b"a\n" * 3
        assert here.credit == {"node": 6}


def test_a_disk_that_is_full_under_the_log_directory(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here: needs root")
    try:
        with office(ViewSettings(log_dir=str(tmp_path), ranks="none")) as here:
            line = b"z" * 999 + b"\n"
            filler = tmp_path / "filler"
            filler.write_bytes(b"f" * 65_536)
            here.tell(started(1), output(line * 300))
            assert here.settled()
            filler.unlink()
            here.tell(output(b"after\n"), ended(0), over())
            assert here.settled()
            path = Path(here.desk.log_file("r1", 0) or "")
            *whole, torn, after = path.read_bytes().splitlines(keepends=True)
            assert set(whole) <= {line}
            assert len(torn) <= len(line)
            assert after == b"after\n", "a line that came when there was room again is not glued to a torn one"
            kept = len(whole) * len(line) + len(torn.rstrip(b"\n")) + len(after)
            said = here.err.getvalue().decode()
            assert 0 < kept < 300_000
            assert said.count("No space left on device") == 1
            assert f"{300_006 - kept} bytes could not be written to 1 log file" in said
            assert here.credit == {"node": 300_006}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with office(ViewSettings(log_dir=str(tmp_path / "file" / "logs"))) as here:
        here.tell(started(1), output(b"a\n"))
        assert here.settled()
        assert "Not a directory" in here.err.getvalue().decode()
        assert here.out.getvalue() == b"[rank 0] a\n"
        assert here.desk.log_file("r1", 0) is None


def test_a_full_disk_under_the_console_is_survived() -> None:
    with open("/dev/full", "w") as full, office(ViewSettings(), full) as here:
        here.tell(started(1), output(b"a\n"))
        assert here.settled()
        here.desk.close()
        assert "could not be written to stdout: No space left on device" in here.err.getvalue().decode()
        with contextlib.suppress(OSError):
            full.flush()


# --- json, loggers, handlers ----------------------------------------------------------------------------------


def test_json_is_one_object_a_line() -> None:
    with office(ViewSettings(view="json")) as here:
        here.tell(started(1), output(b"a\nb\xff\n"), output(record("hi")), ended(0), over(ended(0).fate))
        assert here.settled()
        objects = [json.loads(line) for line in here.out.getvalue().splitlines()]
        assert [each["event"] for each in objects] == [
            "run-started",
            "output",
            "output",
            "record",
            "rank-ended",
            "run-ended",
        ]
        assert all(each["v"] == 1 for each in objects)
        assert [each["text"] for each in objects[1:3]] == ["a", "b\ufffd"]
        assert (objects[1]["rank"], objects[1]["stream"]) == (0, "out")
        assert objects[3]["message"] == "hi"
        assert objects[5]["outcome"] == "succeeded"
        assert "tok" not in here.out.getvalue().decode()
        assert here.err.getvalue() == b""


def test_records_go_to_the_programs_loggers_by_rank(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("zlaunch.node.1").setLevel(logging.ERROR)
    caplog.set_level(logging.DEBUG)
    try:
        with office(ViewSettings()) as here:
            here.tell(started(2), output(record("from 0", lineno=3, pathname="/a/b.py")), output(record("from 1"), 1))
            here.tell(output(record("at the root", name="root")))
            assert here.settled()
            assert here.err.getvalue() == b"", "who has a handler is not told twice"
    finally:
        logging.getLogger("zlaunch.node.1").setLevel(logging.NOTSET)
    first, second = caplog.records
    assert (first.name, first.getMessage(), first.levelno) == ("zlaunch.node.0", "my_app: from 0", 20)
    assert (first.created, first.lineno, first.filename) == (1000.25, 3, "b.py")
    assert (first.hostname, first.local_rank, first.rank, first.origin) == ("node", 0, 0, "my_app")  # type: ignore[attr-defined]
    assert second.getMessage() == "at the root"


def test_without_handlers_records_are_shown_from_the_level_up() -> None:
    with no_handlers(), office(ViewSettings(log_level=logging.WARNING)) as here:
        here.tell(started(1), output(record("quiet")), output(record("loud", level=30)))
        assert here.settled()
        assert here.err.getvalue() == b"[rank 0] WARNING my_app: loud\n"
        assert here.out.getvalue() == b""


class Shelf(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.flushed = self.closed_ = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.closed_ += 1
        super().close()


class Bad(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError("no")


def factory(*handlers: logging.Handler) -> Callable[[], list[logging.Handler]]:
    return lambda: list(handlers)


def test_handlers_get_everything_in_the_place_of_the_console(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf, errors_only, filtered = Shelf(), Shelf(), Shelf()
    errors_only.setLevel(logging.ERROR)
    filtered.addFilter(lambda record: record.local_rank is None)  # type: ignore[attr-defined]
    settings = ViewSettings(handlers=factory(Bad(), shelf, errors_only, filtered), log_dir=str(tmp_path))
    with office(settings) as here:
        here.tell(started(1), output(b"a\nb\n"), output(b"warn\n", stream="err"), output(record("hi", level=10)))
        here.tell(Notice(0.0, "warning", "slow", "node"))
        assert here.settled()
        facts = [(r.levelname, r.getMessage(), r.name, r.local_rank) for r in shelf.records]  # type: ignore[attr-defined]
        assert facts == [
            ("INFO", "a", "zlaunch.node.0", 0),
            ("INFO", "b", "zlaunch.node.0", 0),
            ("ERROR", "warn", "zlaunch.node.0", 0),
            ("DEBUG", "my_app: hi", "zlaunch.node.0", 0),
            ("WARNING", "slow", "zlaunch.node", None),
        ]
        assert [r.getMessage() for r in errors_only.records] == ["warn"]
        assert [r.getMessage() for r in filtered.records] == ["slow"]
        assert shelf.flushed
        assert not shelf.closed_
        assert here.out.getvalue() == b""
        assert here.err.getvalue().count(b"failed: ValueError: no") == 1
        assert Path(here.desk.log_file("r1", 0) or "").read_bytes().startswith(b"a\nb\nwarn\n")
        assert not caplog.records, "only the handlers that were asked for"
    assert shelf.closed_ == 1


def test_a_handlers_factory_that_fails_is_the_callers_error() -> None:
    with pytest.raises(ZeroDivisionError):
        Desk(ViewSettings(handlers=lambda: [1 // 0]), lambda host, size: None)  # type: ignore[list-item]


def test_handlers_can_be_set_later() -> None:
    shelf = Shelf()
    with office(ViewSettings()) as here:
        here.tell(started(1), output(b"a\n"))
        here.desk.set_handlers(factory(shelf))
        here.tell(started(1, "r2"), output(b"b\n", run="r2"))
        assert here.settled()
        assert here.out.getvalue() == b"[rank 0] a\n"
        assert [r.getMessage() for r in shelf.records] == ["b"]


def test_a_redrawn_line_stays_the_one_line_that_came() -> None:
    with office(ViewSettings()) as here:
        here.tell(started(1), output(b"100%\n"), output(b"dos\r\n"))
        assert here.settled()
        assert here.out.getvalue() == b"[rank 0] 100%\n[rank 0] dos\r\n"
