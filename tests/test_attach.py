"""Runs that are watched, and stopped, from elsewhere: what the registry says of them, what observers see and may."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from bed.programs import until
from watch_rig import ZLAUNCH, Shell

import zlaunch
from zlaunch.cli.attach import attach
from zlaunch.cli.grammar import UsageError
from zlaunch.cli.main import main
from zlaunch.cli.stop import stop_run
from zlaunch.cli.which import the_run
from zlaunch.events import Event, Output, RankEnded, RankStarted, Record, RunEnded, RunStarted
from zlaunch.link.gallery import Asked, Came, Gallery
from zlaunch.link.ticket import Ticket
from zlaunch.link.visitor import Turned, Visitor
from zlaunch.link.words import LinkError
from zlaunch.model import Fate, FateKind, HostPlan
from zlaunch.protocol import gallery as words
from zlaunch.registry import files, runs
from zlaunch.registry.story import ALL, LINES, TAIL, Story


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_two_watch_at_once_and_a_third_stops_it(shell: Shell) -> None:
    with shell.runs() as (running, entry):
        (row,) = shell.ps().values()
        assert (row["run"], row["state"], row["hosts"]) == (entry.run, "running", [["localhost", 2]])
        assert row["name"] == "prog.py"
        table = shell.types("ps").stdout.splitlines()
        assert table[0].split() == ["RUN", "WHERE", "STATE", "HOSTS", "x", "RANKS", "ELAPSED", "NAME"]
        assert table[1].split()[:4] == [entry.run, os.uname().nodename, "running", "1"]
        with shell.starts("attach", entry.run) as all_ranks, shell.starts("attach", "last", "--ranks", "1") as one:
            shell.has_ranks_say("before")
            one.sees("[rank 1] 1 before")
            all_ranks.sees("[rank 1] 1 before")
            shell.has_ranks_say("after")
            assert not [line for line in one.sees("[rank 1] 1 after") if "rank 0" in line]
            all_ranks.process.send_signal(signal.SIGTSTP)
            assert "Ctrl-Z is ignored" in all_ranks.err.readline()
            all_ranks.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, all_ranks.process.pid, os.WSTOPPED | os.WNOWAIT)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):  # whatever else comes while it leaves
                all_ranks.process.send_signal(number)
            status, _, said = all_ranks.finish()
            assert (status, said) == (130, f"zlaunch: left; run {entry.run} goes on (zlaunch attach {entry.run})\n")
            shell.has_ranks_say("later")
            one.sees("[rank 1] 1 later")
            stopped = shell.types("stop", entry.run[:6])
            assert (stopped.returncode, stopped.stdout) == (0, "")
            assert f"run {entry.run} has ended: cancelled" in stopped.stderr
            assert one.finish()[0] == 130
        status, out, err = running.finish()
        assert status == 130
        assert "[rank 0] 0 later" in out
        assert "stopped by " in err
    assert runs.look() == ((), ())


def test_who_attaches_has_the_end_of_the_run(shell: Shell) -> None:
    with shell.runs() as (running, entry), shell.starts("attach", "prog.py") as watching:
        watching.sees("[rank 0] rank 0 is ready")
        shell.has_ranks_say("exit 3")
        status, _, err = watching.finish()
        assert status == 3
        assert "rank 1 (localhost" in err
        status, _, own = running.finish()
        assert status == 3
        assert err.splitlines()[0] == own.splitlines()[0]
    done = shell.types("attach", entry.run)
    assert done.returncode == 2
    assert f"no run {entry.run} is known here" in done.stderr


def test_events_of_a_run_as_json(shell: Shell) -> None:
    with shell.runs() as (_, entry), shell.starts("attach", entry.run, "--view", "json") as watching:
        first = watching.out.readline()
        shell.has_ranks_say("exit 0")
        status, out, _ = watching.finish()
        out = first + out
    told = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    kinds = [one["event"] for one in told]
    assert kinds.index("run-started") < kinds.index("rank-started") < kinds.index("rank-ended")
    assert kinds[-1] == "run-ended"
    assert {one["text"] for one in told if one["event"] == "output"} >= {"rank 0 is ready", "rank 1 is ready"}


def test_what_a_run_has_printed(shell: Shell) -> None:
    with shell.runs() as (running, entry):
        running.sees("[rank 0] rank 0 is ready")
        logs = Path(entry.log_folder)
        until(lambda: len(list(logs.glob("localhost[[]*.log"))) == 2, "the ranks' files")
        lines = shell.types("logs", "last").stdout.splitlines()
        assert lines == ["[rank 0] rank 0 is ready", "[rank 1] rank 1 is ready"]
        for name in ("1", "localhost:1"):
            assert shell.types("logs", "last", "--rank", name).stdout == "rank 1 is ready\n"
        wrong = shell.types("logs", "last", "--rank", "2")
        assert wrong.returncode == 2
        assert "has no rank 2: there are 2" in wrong.stderr
        with (
            shell.starts("logs", entry.run, "-f", "--rank", "1") as file,
            shell.starts("logs", entry.run, "-f") as all_,
        ):
            file.sees("rank 1 is ready")
            shell.has_ranks_say("more")
            file.sees("1 more")
            all_.sees("[rank 0] 0 more")
            shell.has_ranks_say("exit 0")
            assert file.finish()[0] == all_.finish()[0] == 0


def test_a_second_stop_kills(shell: Shell) -> None:
    shell.folder.joinpath("prog.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: print('no', flush=True))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(60)\n"
    )
    with shell.runs("--grace", "300") as (running, entry):
        running.out.readline()
        with shell.starts("stop", entry.run) as first:
            while "no" not in running.out.readline():
                pass
            second = shell.types("stop", entry.run)
            assert (second.returncode, first.finish()[0]) == (0, 0), second.stderr
        assert running.finish()[0] == 130


# --- keys and words -------------------------------------------------------------------------------------------------


@contextmanager
def gallery() -> Iterator[Gallery]:
    opened = Gallery()
    try:
        yield opened
    finally:
        opened.close()


def visit(opened: Gallery, run: str = "r") -> Visitor:
    """An observer that has been let in: both ends are in this thread, and take turns."""
    visitor = Visitor(opened.admit(run))
    came: list[object] = []
    calling = threading.Thread(target=lambda: visitor.connect(10))
    calling.start()
    while calling.is_alive() or not came:
        came.extend(opened.poll(0.05, ())[0])
    calling.join()
    assert isinstance(came[0], Came)
    return visitor


def heard(opened: Gallery, visitor: Visitor, last: type) -> list[words.ToVisitor]:
    told: list[words.ToVisitor] = []
    while not any(isinstance(message, last) for message in told) and not visitor.gone:
        opened.poll(0.0, ())
        told += visitor.poll(0.01)[0]
    return told


def output(data: bytes, run: str = "r", rank: int = 0, at: float = 1.0) -> Output:
    return Output(at, run, rank, rank, "h", "out", data)


def test_a_wrong_key_opens_nothing(shell: Shell) -> None:
    with shell.runs() as (_, entry):
        public, secret = (key.decode() for key in zmq.curve_keypair())
        assert entry.ticket is not None
        for wrong in (
            msgspec.structs.replace(entry.ticket, public_key=public, secret_key=secret),
            msgspec.structs.replace(entry.ticket, server_key=public),
        ):
            began = time.monotonic()
            runs.enter(msgspec.structs.replace(entry, ticket=wrong))
            for command in ("attach", "stop"):
                done = shell.types(command, entry.run)
                assert (done.returncode, done.stdout) == (125, "")
                assert f"run {entry.run} on {os.uname().nodename}: " in done.stderr
                assert "Traceback" not in done.stderr
            assert time.monotonic() - began < 10
        runs.enter(entry)
        assert shell.types("stop", entry.run).returncode == 0


def test_the_key_of_one_run_is_none_of_another() -> None:
    with gallery() as opened, closing(visit(opened, "mine")) as visitor:
        other = visit(opened, "other")
        opened.tell("mine", words.Told(output(b"mine\n", "mine")))
        opened.tell("other", words.Told(output(b"other\n", "other")))
        (told,) = heard(opened, visitor, words.Told)
        assert isinstance(told, words.Told)
        assert told.event == output(b"mine\n", "mine")
        other.say(words.Stop("me", 0.0))
        asked: list[object] = []
        while not asked:
            asked += opened.poll(0.05, ())[0]
        assert asked == [Asked("other", words.Stop("me", 0.0))]
        other.close()


def test_who_is_over_lets_nobody_in() -> None:
    with gallery() as opened:
        ticket = opened.admit("r")
        opened.dismiss("r")
        visitor = Visitor(ticket)
        failed: list[BaseException] = []

        def connect() -> None:
            try:
                visitor.connect(10)
            except Turned as error:
                failed.append(error)

        thread = threading.Thread(target=connect)
        thread.start()
        while thread.is_alive():
            opened.poll(0.05, ())
        visitor.close()
        assert "not any more, one that it lets in" in str(failed[0])


@pytest.mark.parametrize("change", [{"secret_key": "x"}, {"public_key": "\ud800"}, {"endpoints": ("tcp://\ud800:1",)}])
def test_a_ticket_that_cannot_be_read(change: dict[str, Any]) -> None:
    ticket = Ticket(("tcp://127.0.0.1:9",), *(key.decode() for key in (zmq.curve_keypair()[0], *zmq.curve_keypair())))
    with closing(Visitor(msgspec.structs.replace(ticket, **change))) as visitor, pytest.raises(LinkError):
        visitor.connect(5)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(os.getcwd),
        b"",
        b"\xff" * 5000,
        msgspec.msgpack.encode((b"zlw", words.WATCHING, {"type": "start", "step": "s"})),
        msgspec.msgpack.encode((b"zlw", 99, {"type": "hello", "version": "9.9"})),
    ],
    ids=["pickle", "nothing", "much", "a task", "another version"],
)
def test_an_observer_has_three_words(data: bytes) -> None:
    with gallery() as opened, closing(visit(opened)) as visitor, closing(visit(opened)) as good:
        assert visitor._line is not None
        visitor._line.socket.send(data)
        while not visitor.gone and not opened.refused:
            assert opened.poll(0.02, ())[0] == []
            visitor.poll(0.02)
        if b"hello" in data:
            until(lambda: (opened.poll(0.0, ()), visitor.poll(0.02)) and visitor.gone != "", "its answer")
            assert "zlaunch 9.9" in visitor.gone
        opened.tell("r", words.Told(output(b"x\n")))
        assert heard(opened, good, words.Told)


def test_a_slow_observer_loses_lines_and_slows_nobody() -> None:
    data, count = b"x" * 1023 + b"\n", 40_000
    piece = output(data * 64)
    with gallery() as opened, closing(visit(opened)) as slow:
        began = time.monotonic()
        for _ in range(count // 64):
            opened.tell("r", words.Told(piece))
        assert time.monotonic() - began < 5
        opened.tell("r", words.Told(RunEnded(2.0, "r", "succeeded", None, ())))
        told: list[words.ToVisitor] = []
        while not any(isinstance(one, words.Told) and isinstance(one.event, RunEnded) for one in told):
            opened.poll(0.0, ())
            told += slow.poll(0.01)[0]
    seen = sum(64 for one in told if isinstance(one, words.Told) and isinstance(one.event, Output))
    missed = sum(one.lines for one in told if isinstance(one, words.Missed))
    assert seen + missed == count
    assert missed > 0


# --- functions ------------------------------------------------------------------------------------------------------


def waits(folder: str) -> str:
    logging.getLogger("mine").warning("a record")
    print("a line")
    until(lambda: Path(folder, "go").exists(), "the word to go")
    return "done"


def test_a_function_of_a_notebook_is_watched_too(tmp_path: Path, cluster: zlaunch.Launcher) -> None:
    running = cluster.submit(waits, str(tmp_path))
    until(lambda: any(entry.run == running.id for entry in runs.look().runs), "the run to be written down")
    entry = next(entry for entry in runs.look().runs if entry.run == running.id)
    assert entry.ticket is not None
    with closing(Visitor(entry.ticket)) as visitor:
        visitor.connect(10)
        told: list[Event] = []
        while not visitor.gone and not any(isinstance(event, RunEnded) for event in told):
            told += [message.event for message in visitor.poll(1.0)[0] if isinstance(message, words.Told)]
            if sum(isinstance(event, Record) for event in told) == 2:
                (tmp_path / "go").touch()
    assert list(running.result()) == ["done", "done"]
    assert [event.log_token for event in told if isinstance(event, RunStarted)] == [""]
    assert {event.message for event in told if isinstance(event, Record)} == {"a record"}
    assert not [event for event in told if isinstance(event, Output) and b"\x1e" in event.data]
    assert isinstance(told[-1], RunEnded)
    until(lambda: running.id not in [entry.run for entry in runs.look().runs], "the end of its entry")


def returns() -> int:
    return 1


def test_a_short_step_is_not_written_down(cluster: zlaunch.Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.run(returns)
    until(lambda: runs.look().runs == (), "the end of the entry of a step that may have been long")
    monkeypatch.setattr("zlaunch.registry.watching.UNSEEN", 60.0)  # on a busy machine no step is short
    runs.enter(entry_of("other"))
    before = Path(files.folder()).stat().st_mtime_ns
    assert list(cluster.run(returns)) == [1, 1]
    assert Path(files.folder()).stat().st_mtime_ns == before


# --- the registry ---------------------------------------------------------------------------------------------------


def entry_of(run: str, **changes: object) -> runs.RunEntry:
    entry = runs.RunEntry(
        run=run,
        name="a.py",
        argv=("zlaunch", "\udcff"),
        place=runs.here(),
        started=1.0,
        hosts=(("h", 2),),
        state="running",
    )
    return msgspec.structs.replace(entry, **changes)


def place(**changes: object) -> runs.Place:
    return msgspec.structs.replace(runs.here(), **changes)


def test_only_its_own_host_forgets_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = place(boot="another", machine="another", hostname="faraway")
    for entry in (
        entry_of("alive"),
        entry_of("dead", place=place(pid=2**22 + 1)),
        entry_of("cameagain", place=place(started=1)),
        entry_of("rebooted", place=place(boot="before")),
        entry_of("container", place=place(boot=f"{runs.here().boot.split()[0]} pid:[1]", pid=2**22 + 1)),
        entry_of("elsewhere", place=elsewhere),
    ):
        runs.enter(entry)
    assert {entry.run for entry in runs.look().runs} == {"alive", "container", "elsewhere"}
    assert main(["ps"]) == 0
    said = capsys.readouterr()
    states = {line.split()[0]: line.split()[2] for line in said.out.splitlines()[1:]}
    assert states == {"alive": "running", "container": "unreachable", "elsewhere": "unreachable"}
    assert "run elsewhere on faraway does not answer" in said.err
    assert main(["attach", "elsewhere"]) == 125
    assert "cannot be reached from here" in capsys.readouterr().err
    assert len(list(Path(files.folder()).iterdir())) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a pid namespace")
def test_a_container_of_this_machine_with_our_home(shell: Shell) -> None:
    with shell.runs() as (_, entry):
        for words, there in ((["ps"], " running "), (["stop", entry.run], "")):
            inside = ["unshare", "--pid", "--fork", "--mount-proc", *ZLAUNCH, *words]
            done = subprocess.run(inside, env=shell.env, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, done.stderr
            assert there in done.stdout


def test_files_that_nobody_wrote_for_us(capsys: pytest.CaptureFixture[str]) -> None:
    runs.enter(entry_of("good"))
    good = Path(runs.path("good"))
    assert good.stat().st_mode & 0o777 == 0o600
    folder = good.parent
    (folder / "run-rubbish.json").write_text("{")
    (folder / "run-other.json").write_bytes(good.read_bytes())  # not its own name
    (folder / "run-link.json").symlink_to(good)
    os.mkfifo(folder / "run-pipe.json")
    foreign = folder / "run-foreign.json"
    foreign.write_text(good.read_text().replace('"good"', '"foreign"'))
    aside = {"rubbish", "other", "link", "pipe"}
    if os.geteuid() == 0:
        os.chown(foreign, 12345, 12345)
        aside.add("foreign")
    found = runs.look()
    assert {Path(path).stem.removeprefix("run-") for path in found.odd} == aside
    assert main(["ps"]) == 0
    said = capsys.readouterr()
    assert said.err.count("left aside") == len(aside)
    assert "good" in said.out


@pytest.mark.parametrize(("state", "verbose"), [("/dev/null", []), ("/proc/1/nowhere", ["-v"])])
def test_a_registry_that_cannot_be_written_costs_no_run(shell: Shell, state: str, verbose: list[str]) -> None:
    shell.folder.joinpath("prog.py").write_text("import time; time.sleep(0.5); print('there')")
    done = shell.types("run", "-n", "1", "--preload", "", *verbose, "prog.py", XDG_STATE_HOME=state)
    assert (done.returncode, done.stdout) == (0, "[rank 0] there\n"), done.stderr
    assert done.stderr.count("other terminals will not know of run") == len(verbose)


def test_our_loopback_is_none_of_another_machine() -> None:
    ticket = Ticket(("tcp://127.0.0.1:4", "tcp://10.0.0.1:5"), "s", "p", "k")
    assert runs.ticket(entry_of("here", ticket=ticket)) == ticket
    elsewhere = runs.ticket(entry_of("there", ticket=ticket, place=place(boot="another")))
    assert elsewhere is not None
    assert elsewhere.endpoints == ("tcp://10.0.0.1:5",)
    assert "k" not in repr(ticket).split()


def test_a_run_that_ends_while_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    """We have read its entry, and it has ended before we come."""
    keys = [key.decode() for key in (zmq.curve_keypair()[0], *zmq.curve_keypair())]
    entry = entry_of("r", detached=True, ticket=Ticket(("tcp://127.0.0.1:9",), *keys))
    runs.enter(entry)
    for command in (lambda: attach(entry, "plain", None), lambda: stop_run(entry, None)):
        with pytest.raises(LinkError, match="no answer from the run"):
            command()
    runs.end(entry, "failed", 3)
    assert (attach(entry, "plain", None), stop_run(entry, None)) == (3, 0)
    assert "run r has ended: failed, exit status 3\nzlaunch: run r has ended already: failed" in capsys.readouterr().err
    runs.remove("r")
    assert (attach(entry, "plain", None), stop_run(entry, None)) == (125, 0)
    assert "run r has ended; how is not written down" in capsys.readouterr().err


def test_which_run_is_meant() -> None:
    for number, (run, name) in enumerate([("aa11", "x.py"), ("aa22", "y.py"), ("bb33", "y.py")]):
        runs.enter(entry_of(run, name=name, started=float(number)))
    runs.enter(entry_of("cc44", name="x.py", started=9.0, ended=10.0, detached=True))
    assert the_run("last").run == "bb33"
    assert the_run("x.py").run == "aa11"  # the other one has ended
    assert the_run("b").run == "bb33"
    assert the_run("cc").run == "cc44"
    for several in ("y.py", "aa"):
        with pytest.raises(UsageError, match="may be any of these runs"):
            the_run(several)
    with pytest.raises(UsageError, match="no run zz"):
        the_run("zz")


# --- the story ------------------------------------------------------------------------------------------------------


def started(restart: int = 0) -> RunStarted:
    return RunStarted(0.5 + restart, "r", "n", (HostPlan(0, "h", 2),), restart, "")


def test_who_comes_late_hears_what_counts() -> None:
    story = Story()
    for event in (started(), RankStarted(0.6, "r", 0, 0, "h", 41), started(1), RankStarted(1.6, "r", 0, 0, "h", 42)):
        story.hear(event)
    for number in range(200):
        story.hear(output(b"%d\n" % number, at=2.0 + number))
    fate = Fate(rank=0, local_rank=0, hostname="h", pid=42, kind=FateKind.RETURNED, at=300.0, exit_code=0)
    story.hear(RankEnded(300.0, "r", fate))
    told = story.tell({})
    assert told[:2] == [started(1), RankStarted(1.6, "r", 0, 0, "h", 42)]
    lines = [event.data for event in told if isinstance(event, Output)]
    assert lines == [b"%d\n" % number for number in range(200 - LINES, 200)]
    assert told[-1] == RankEnded(300.0, "r", fate)


def test_a_story_has_a_bound() -> None:
    story = Story()
    story.hear(started())
    for rank in range(600):
        story.hear(output(b"y" * (1 << 20) + b"\n" + b"z" * 5000 + b"\n", rank=rank))
    told = [event.data for event in story.tell({}) if isinstance(event, Output)]
    assert max(map(len, told)) <= TAIL
    assert sum(map(len, told)) <= ALL
