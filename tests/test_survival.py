"""Nothing survives, and every death is noticed: with real processes, killed for real."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pytest
import survival_rig as rig
from conftest import _shared as kept  # what is in there is spared by the promise that nothing is left
from survival_rig import LEAVE, PROGRAMS, Roll

import zlaunch
from zlaunch.model import FateKind
from zlaunch.result import Run
from zlaunch.supervisor.loop import SupervisorLoop
from zlaunch.systems.processes import become_subreaper, kill_all

SOON = 5.0
"""Seconds after which nothing may be left of a program that was killed."""
LEAVING = 0.5
"""Seconds that the kernel may need to end a process that has closed all its files: that is how we see it end."""


@pytest.fixture
def roll(tmp_path: Path) -> Iterator[Roll]:
    made = Roll(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[zlaunch.Launcher]:
    """Agents that stay for this module; nothing is imported, so that ranks and templates are there at once."""
    launcher = new_launcher(log_dir=None)
    kept.append(launcher)
    with launcher:
        yield launcher
    kept.remove(launcher)


def new_launcher(**fields: object) -> zlaunch.Launcher:
    given = {"workers_per_host": 2, "backend": None, "preload": (), "grace_period": 5, "view": "plain", **fields}
    return zlaunch.Launcher(**given)  # type: ignore[arg-type]


def rank() -> int:
    return int(os.environ["RANK"])


def stay(roll: str) -> None:
    """A step that goes on until it is ended; its first rank has a daemon."""
    if rank() == 0:
        rig.daemonise(roll)
    rig.sign_rank(roll)
    rig.sleep_for_ever()


# --- the program that uses zlaunch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wishes", [[], ["fork", "deaf"]], ids=["plain", "with a forked child, and ranks that are deaf"]
)
def test_the_program_is_killed(roll: Roll, tmp_path: Path, wishes: list[str]) -> None:
    program = rig.start_program("sur_program.py", roll.path, *wishes, folder=tmp_path)
    roll.expect(program=1, agent=1, template=1, rank=2, daemon=1, forked="fork" in wishes)
    killed = roll.kill("program")
    assert roll.alive(SOON, but="forked") == []
    report(f"everything is gone after the program's SIGKILL {wishes}", killed)
    assert roll.alive() == [f"forked {pid}" for pid in roll.pids.get("forked", [])], "the child was to outlive it all"
    roll.close()
    program.communicate()  # which waited for the child, too, to close its end of the pipe


def test_the_command_line_is_killed(roll: Roll, tmp_path: Path) -> None:
    words = ["-m", "zlaunch", "run", "-n", "2", "--preload", "", "--log-dir", "none"]
    program = subprocess.Popen(
        [sys.executable, *words, str(PROGRAMS / "sur_script.py"), roll.path],
        cwd=tmp_path,
        env=rig.environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    roll.expect(agent=1, template=1, rank=2, daemon=1)
    rig.sign(roll.path, "program", program.pid)
    roll.expect(program=1)
    killed = roll.kill("program")
    assert roll.alive(SOON) == []
    report("everything is gone after the command line's SIGKILL", killed)
    program.wait()


@pytest.mark.parametrize(("how", "status"), [("exit", 0), ("raise", 1)])
def test_a_program_that_ends_without_stop(roll: Roll, tmp_path: Path, how: str, status: int) -> None:
    program = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "sur_program.py"), roll.path, how],
        cwd=tmp_path,
        env=rig.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    roll.expect(agent=1, template=1, rank=2, daemon=1)
    out, _ = program.communicate(b"go\n", timeout=rig.PATIENCE)
    assert roll.alive() == [], "when the program has ended, nothing of it is there"
    assert program.returncode == status, out.decode()


def test_two_programs_do_not_disturb_each_other(cluster: zlaunch.Launcher, roll: Roll, tmp_path: Path) -> None:
    gates = [tmp_path / "gate0", tmp_path / "gate1"]
    for gate in gates:
        os.mkfifo(gate)

    def wait() -> str:
        return gates[rank()].read_text()

    ours = cluster.submit(wait)
    program = rig.start_program("sur_program.py", roll.path, folder=tmp_path)
    roll.expect(program=1, agent=1, template=1, rank=2, daemon=1)
    roll.kill("program")
    assert roll.alive(SOON) == []
    program.communicate()
    assert not ours.done()
    for gate, word in zip(gates, "ab", strict=True):
        gate.write_text(word)
    assert list(ours.result(rig.PATIENCE)) == ["a", "b"]


# --- agent, template, rank --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words", "limit"),
    [(signal.SIGKILL, "SIGKILL", 2.0), (signal.SIGSTOP, "heartbeat|silen|connection", 8.0)],
)
def test_the_agent_is_lost(roll: Roll, number: signal.Signals, words: str, limit: float) -> None:
    with new_launcher(log_dir=None) as launcher:
        run = launcher.submit(stay, roll.path)
        roll.expect(agent=1, template=1, rank=2, daemon=1)
        lost = roll.kill("agent", number)
        with pytest.raises(zlaunch.AgentFailedError, match=words) as caught:
            run.result(rig.PATIENCE)
        assert roll.alive(LEAVING) == []
        took = report(f"AgentFailedError after the agent's {number.name}", lost)
        assert took < limit
        assert caught.value.hostname == "localhost"
        assert caught.value.reason
        with pytest.raises((zlaunch.AgentFailedError, zlaunch.LaunchError), match="localhost"):
            launcher.run(rank)


def test_the_template_is_killed_during_a_step(cluster: zlaunch.Launcher, roll: Roll) -> None:
    run = cluster.submit(stay, roll.path)
    roll.expect(agent=1, template=1, rank=2, daemon=1)
    killed = roll.kill("template")
    with pytest.raises(zlaunch.AgentFailedError, match=r"localhost.*template.*SIGKILL"):
        run.result(rig.PATIENCE)
    assert roll.alive(but="agent") == []
    report("AgentFailedError after the template's SIGKILL", killed)
    assert list(cluster.run(rank)) == [0, 1]
    assert roll.alive() == [f"agent {roll.pids['agent'][0]}"], "it is the same agent that goes on"


def test_the_template_is_killed_between_steps(cluster: zlaunch.Launcher, roll: Roll) -> None:
    cluster.run(rig.sign_rank, roll.path)
    roll.expect(template=1)
    roll.kill("template")
    assert roll.alive(SOON, but="agent") == []
    assert list(cluster.run(rank)) == [0, 1]


def test_one_rank_of_four_is_killed(cluster: zlaunch.Launcher, roll: Roll) -> None:
    def work(roll: str) -> None:
        rig.sign(roll, f"rank{rank()}")
        rig.sleep_for_ever()

    run = cluster.on(workers_per_host=4).submit(work, roll.path)
    roll.expect(rank0=1, rank1=1, rank2=1, rank3=1)
    killed = roll.kill("rank2")
    with pytest.raises(zlaunch.WorkerFailedError) as caught:
        run.result(rig.PATIENCE)
    assert report("WorkerFailedError after the SIGKILL of one rank of four", killed) < SOON
    assert roll.alive() == []
    error = caught.value
    assert (error.rank, error.signal, error.exit_code, error.out_of_memory) == (2, signal.SIGKILL, None, False)
    assert error.pid == roll.pids["rank2"][0]
    assert "rank 2" in str(error)
    assert "SIGKILL" in str(error)
    assert error.failures[0].rank == 2
    assert all(fate.stopped for fate in error.failures[1:])


# --- what ranks leave behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["returns", "raises", "is killed"])
@pytest.mark.parametrize("what", LEAVE)
def test_what_a_rank_leaves_behind(cluster: zlaunch.Launcher, roll: Roll, tmp_path: Path, what: str, end: str) -> None:
    def work(roll: str, gate: str) -> int:
        if rank() == 0:
            LEAVE[what](roll)
            Path(gate).read_text()  # until what we leave has said that it is there
        if rank() == 0 and end == "raises":
            raise ValueError("with something left behind")
        rig.sign(roll, f"rank{rank()}")
        if end == "is killed":
            rig.sleep_for_ever()
        return rank()

    gate = tmp_path / "gate"
    os.mkfifo(gate)
    run = cluster.submit(work, roll.path, str(gate))
    roll.expect(**{what: 1})
    began = time.monotonic()
    gate.write_text("go")
    match end:
        case "returns":
            assert list(run.result(rig.PATIENCE)) == [0, 1]
        case "raises":
            with pytest.raises(ValueError, match="left behind"):
                run.result(rig.PATIENCE)
        case "is killed":
            roll.expect(rank0=1, rank1=1)
            began = roll.kill("rank0")
            with pytest.raises(zlaunch.WorkerFailedError, match="rank 0"):
                run.result(rig.PATIENCE)
    assert roll.alive() == []
    assert report(f"a rank leaves a {what} and {end}", began) < SOON


def test_a_loader_s_workers_hold_the_pipes_of_a_killed_rank(cluster: zlaunch.Launcher, roll: Roll) -> None:
    def work(roll: str) -> None:
        from torch.utils.data import DataLoader, Dataset

        class Stuck(Dataset[int]):
            def __len__(self) -> int:
                return 8

            def __getitem__(self, i: int) -> int:
                rig.be_deaf()
                rig.sign(roll, "worker")
                rig.sleep_for_ever()

        print("before the loader")
        rig.sign(roll, f"rank{rank()}")
        next(iter(DataLoader(Stuck(), num_workers=2)))

    run = cluster.submit(work, roll.path)
    roll.expect(rank0=1, rank1=1, worker=4)
    killed = roll.kill("rank1")
    with pytest.raises(zlaunch.WorkerFailedError) as caught:
        run.result(rig.PATIENCE)
    assert report("WorkerFailedError with loader workers that hold the pipes", killed) < SOON
    assert caught.value.rank == 1
    assert "before the loader" in caught.value.last_output
    assert roll.alive() == []


def test_a_sigterm_handler_can_finish_within_the_grace_period(
    cluster: zlaunch.Launcher, roll: Roll, tmp_path: Path
) -> None:
    def work(roll: str, file: str) -> None:
        def save(*_: object) -> None:
            time.sleep(0.3)
            Path(file).write_text("saved")
            sys.exit(7)

        signal.signal(signal.SIGTERM, save)
        rig.sign(roll, f"rank{rank()}")
        if rank() == 1:
            os.close(os.open(f"{file}.gate", os.O_RDONLY))
            raise ValueError("of rank 1")
        rig.sleep_for_ever()

    file = tmp_path / "saved"
    os.mkfifo(f"{file}.gate")
    run = cluster.submit(work, roll.path, str(file))
    roll.expect(rank0=1, rank1=1)
    os.close(os.open(f"{file}.gate", os.O_WRONLY))
    with pytest.raises(ValueError, match="of rank 1") as caught:
        run.result(rig.PATIENCE)
    assert file.read_text() == "saved"
    cause = caught.value.__cause__
    assert isinstance(cause, zlaunch.RemoteTraceback)
    assert [(f.kind, f.exit_code, f.stopped) for f in cause.failures if f.rank == 0] == [(FateKind.EXITED, 7, True)]


def test_what_would_not_die_is_reported(roll: Roll, tmp_path: Path) -> None:
    """A process in a frozen cgroup (of version 1) takes no signal, SIGKILL included, until it is thawed."""
    group = Path(f"/sys/fs/cgroup/freezer/zlaunch-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs root and the freezer of cgroup v1: {error}")
    parent = os.fork()
    if parent == 0:
        rig.fork_one(roll.path)
        rig.sleep_for_ever()
    try:
        roll.expect(forked=1)
        (frozen,) = roll.pids["forked"]
        (group / "cgroup.procs").write_text(str(frozen))
        (group / "freezer.state").write_text("FROZEN")
        survivors = kill_all(parent, spare=(), patience=0.3)
        assert [s.pid for s in survivors] == [frozen]
        assert survivors[0].command == Path("/proc/self/comm").read_text().strip()  # it is a fork of ours
        error = zlaunch.AgentFailedError("moon", "gone", survivors=survivors)
        assert f"pid {frozen}" in str(error)
        (group / "freezer.state").write_text("THAWED")
        assert kill_all(parent, spare=()) == ()
        assert roll.alive(SOON) == []
    finally:
        (group / "freezer.state").write_text("THAWED")
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        roll.alive(SOON)
        group.rmdir()


def test_nobody_slips_through_by_forking_and_ending() -> None:
    """Children that fork and end at the very moment of the sweep, as a daemon does whose rank does not wait for it."""
    for number in range(60):
        ready, go, held = os.pipe(), os.pipe(), os.pipe()
        reaper = os.fork()
        if reaper == 0:
            become_subreaper()
            os.close(go[1])
            for _ in range(1 + number % 3):
                if os.fork() == 0:
                    os.write(ready[1], b"x")
                    os.read(go[0], 1)
                    for _ in range(1 + number % 4):
                        if os.fork():
                            os._exit(0)
                    rig.sleep_for_ever()
            os.close(held[1])
            os.write(ready[1], b"x")
            rig.sleep_for_ever()
        os.close(held[1])
        for _ in range(2 + number % 3):
            os.read(ready[0], 1)
        os.close(go[1])
        survivors = kill_all(reaper)
        everybody_is_gone = select.select([held[0]], [], [], 0)[0]  # at the end, since nobody has the other end
        os.kill(reaper, signal.SIGKILL)
        os.waitpid(reaper, 0)
        for fd in (*ready, go[0], held[0]):
            os.close(fd)
        assert everybody_is_gone, f"in round {number}"
        assert survivors == ()


# --- the caller is interrupted ----------------------------------------------------------------------------------------


def test_an_interrupt_ends_the_step(cluster: zlaunch.Launcher, roll: Roll) -> None:
    def work(roll: str, caller: int) -> None:
        if rank() == 0:
            rig.daemonise(roll)
            os.kill(caller, signal.SIGINT)
        rig.sign(roll, "rank")
        rig.sleep_for_ever()

    with pytest.raises(KeyboardInterrupt):
        cluster.run(work, roll.path, os.getpid())
    roll.expect(daemon=1)
    assert roll.alive() == []
    assert list(cluster.run(rank)) == [0, 1]


def test_a_second_interrupt_kills(cluster: zlaunch.Launcher, roll: Roll) -> None:
    def work(roll: str, caller: int) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(caller, signal.SIGINT))
        rig.sign(roll, f"rank{rank()}")
        os.kill(caller, signal.SIGINT)
        while True:
            time.sleep(600)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        cluster.on(workers_per_host=1, grace_period=600).run(work, roll.path, os.getpid())
    roll.expect(rank0=1)
    assert roll.alive() == []
    assert time.monotonic() - began < rig.PATIENCE


@pytest.mark.parametrize(
    ("first", "event"), [(SupervisorLoop.submit, "call"), (SupervisorLoop.submit, "return"), (Run.result, "call")]
)
def test_an_interrupt_at_the_worst_of_moments(cluster: zlaunch.Launcher, first: FunctionType, event: str) -> None:
    """The run is or is not on its way, and its caller has not heard of it; then while the first one is dealt with."""
    pressed = []

    def press(frame: FrameType, now: str, _: object) -> None:
        if frame.f_code is first.__code__ and now == event:
            pressed.append(event)
            raise KeyboardInterrupt  # which ends the profiling, too

    def press_again(frame: FrameType, now: str, _: object) -> Callable[..., Any] | None:
        if frame.f_code is SupervisorLoop.cancel.__code__ and pressed and now == "return":
            pressed.append("again")
            sys.settrace(None)
            raise KeyboardInterrupt
        return press_again if frame.f_code is SupervisorLoop.cancel.__code__ else None

    def work() -> None:
        rig.be_deaf()
        rig.sleep_for_ever()

    began = time.monotonic()
    sys.setprofile(press)
    sys.settrace(press_again)
    try:
        with pytest.raises(KeyboardInterrupt):
            cluster.on(workers_per_host=1, grace_period=600).run(work)
    finally:
        sys.setprofile(None)
        sys.settrace(None)
    assert pressed == [event, "again"]
    assert cluster._shared.cluster is not None
    assert cluster._shared.cluster.pending() == []
    assert time.monotonic() - began < rig.PATIENCE


def test_an_interrupt_while_the_agents_start(roll: Roll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal\nimport survival_rig as rig\n"
        f"rig.sign({roll.path!r}, 'template')\nrig.sign({roll.path!r}, 'agent', os.getppid())\n"
        f"os.kill({os.getpid()}, signal.SIGINT)\nrig.sleep_for_ever()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        new_launcher(preload=("slow_to_import",), log_dir=None).run(rank)
    roll.expect(template=1, agent=1)
    assert roll.alive() == []


def test_leaving_with_waits_for_steps(tmp_path: Path) -> None:
    with new_launcher(log_dir=None) as launcher:
        runs = [launcher.submit(rank) for _ in range(3)]
    assert [list(run.result(0)) for run in runs] == [[0, 1]] * 3


def test_leaving_with_by_an_exception_cancels(roll: Roll) -> None:
    with pytest.raises(LookupError), new_launcher(log_dir=None) as launcher:
        run = launcher.submit(stay, roll.path)
        roll.expect(agent=1, template=1, rank=2, daemon=1)
        raise LookupError
    assert roll.alive() == []
    assert isinstance(run.exception(0), zlaunch.RunCancelled)


# --- as under python --------------------------------------------------------------------------------------------------


def test_a_script_prints_what_it_prints_under_python(tmp_path: Path) -> None:
    script = [str(PROGRAMS / "sur_as_python.py"), "--lr", "1"]
    words = [sys.executable, "-m", "zlaunch", "run", "-n", "1", "--log-dir", "none", "--preload", ""]
    (plain, ours) = (
        subprocess.run(
            command, cwd=tmp_path, env=rig.environment(), capture_output=True, text=True, timeout=90, check=False
        )
        for command in ([sys.executable, *script], [*words, *script])
    )
    assert plain.returncode == ours.returncode == 0, ours.stderr
    assert unprefixed(ours.stdout) == plain.stdout.splitlines()
    assert unprefixed(ours.stderr) == plain.stderr.splitlines()
    assert plain.stdout.splitlines()[-1].startswith("at exit")


def unprefixed(text: str) -> list[str]:
    lines = text.splitlines()
    assert all(line.startswith("[rank 0] ") for line in lines), text
    return [line.removeprefix("[rank 0] ") for line in lines]


def report(what: str, since: float) -> float:
    took = time.monotonic() - since
    print(f"{what}: {took * 1000:.0f} ms")
    return took
