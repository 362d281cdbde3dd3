"""The life of a run in short lines: what is said of its own accord, and what with ``--verbose``."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
from bed.programs import until

from zlaunch.events import (
    AgentConnected,
    AgentLost,
    Event,
    Notice,
    RankEnded,
    RankStarted,
    RunEnded,
    RunRestarting,
    RunStarted,
)
from zlaunch.model import Fate, FateKind, Gpu, HostFacts, HostPlan
from zlaunch.view.desk import Desk
from zlaunch.view.settings import ViewSettings
from zlaunch.view.states import ENDING, HOSTS_TOLD, LINGERING, TOGETHER, States


def hosts_of(*workers: int) -> tuple[HostPlan, ...]:
    return tuple(HostPlan(i, f"n{i}", n) for i, n in enumerate(workers))


def begin(hosts: Sequence[HostPlan], at: float = 0.0, restart: int = 0) -> list[Event]:
    events: list[Event] = [RunStarted(at, "r", "train.py", tuple(hosts), restart, "", "/logs/r")]
    rank = count()
    for host in hosts:
        events += [RankStarted(at + 1, "r", n := next(rank), i, host.name, 100 + n) for i in range(host.workers)]
    return events


def end(rank: int, host: str, at: float, kind: FateKind = FateKind.RETURNED, **more: object) -> RankEnded:
    fields: dict[str, object] = {"local_rank": 0, "pid": 100 + rank, "exit_code": 0, **more}
    return RankEnded(at, "r", Fate(rank=rank, hostname=host, kind=kind, at=at, **fields))  # type: ignore[arg-type]


def killed(rank: int, host: str, at: float) -> RankEnded:
    return end(rank, host, at, FateKind.SIGNALED, exit_code=None, signal=9)


def history(states: States, events: Sequence[Event]) -> Iterator[str]:
    """What is said of events that come at their times."""
    for event in events:
        while (due := states.due()) is not None and due <= event.at:
            yield from states.tick(due)
        yield from states.said(event, event.at)


def told(events: Sequence[Event], *, verbose: bool = False) -> list[str]:
    return list(history(States(verbose=verbose), events))


def over(at: float, *fates: Fate) -> RunEnded:
    return RunEnded(at, "r", "succeeded", None, fates)


def test_of_a_run_in_which_all_goes_well_nothing_is_said() -> None:
    hosts = hosts_of(2, 2)
    connected = [AgentConnected(0.0, host.name, HostFacts(hostname="x", pid=1, cores=8)) for host in hosts]
    ends = [end(rank, f"n{rank // 2}", 9.0 + rank) for rank in range(4)]
    assert told([*connected, *begin(hosts), Notice(1.0, "info", "fine"), *ends, over(14.0)]) == []


def test_whoever_still_runs_when_others_have_long_ended_is_named_once() -> None:
    ends = [end(0, "n0", 10.0), end(1, "n0", 12.0)]
    lines = told([*begin(hosts_of(2, 2)), *ends, end(2, "n1", 12.0 + LINGERING + 1), over(500.0)])
    assert lines == [
        "2 of 4 ranks have returned; rank 2 (n1), rank 3 (n1) still run",
        "3 of 4 ranks have returned; rank 3 (n1) still runs",
    ]
    assert told([*begin(hosts_of(2, 2)), *ends, end(2, "n1", 71.0), end(3, "n1", 72.0), over(500.0)]) == []


def test_a_failure_whose_run_does_not_end_soon_is_told_of_at_once() -> None:
    first = [*begin(hosts_of(2, 6)), killed(3, "n1", 10.0)]
    assert told([*first, killed(4, "n1", 11.0), over(11.9)]) == []
    assert told([*first, killed(4, "n1", 11.0), over(10.0 + ENDING)]) == [
        "rank 3 (n1, local rank 0, pid 103) killed by SIGKILL; waiting for 6 ranks to end"
    ]


def test_a_host_that_is_lost_is_told_of_where_there_are_others() -> None:
    lost = AgentLost(10.0, "n1", "it has not answered for 4.5 s")
    assert told([*begin(hosts_of(2, 2)), lost]) == ["n1: lost: it has not answered for 4.5 s"]
    assert told([*begin(hosts_of(2, 2)), AgentLost(10.0, "other", "x")]) == []
    assert told([*begin((HostPlan(0, "n1", 2),)), lost]) == [], "the report tells of it"
    assert told([lost]) == []


def test_a_restart_begins_again() -> None:
    cause = killed(0, "n0", 10.0)
    again = RunRestarting(10.1, "r", cause.fate, 1, 3)
    hosts = hosts_of(2)
    events = [*begin(hosts), cause, killed(1, "n0", 10.1), again, *begin(hosts, 10.2, 1), over(100.0)]
    assert told(events) == ["rank 0 (n0, local rank 0, pid 100) killed by SIGKILL: restart 1 of 3"]


def test_verbosely_every_change_is_told_alike_ones_together() -> None:
    hosts = hosts_of(2, 1)
    gpus = (Gpu(0, "H100", 1), Gpu(1, "H100", 1))
    facts = HostFacts(hostname="x", pid=7, cores=8, gpus=gpus, python="3.12.1", torch="2.9")
    ends = [end(0, "n0", 10.0), end(1, "n0", 10.5), killed(2, "n1", 61.0)]
    lines = told([AgentConnected(0.0, "n0", facts), *begin(hosts), *ends, over(62.0)], verbose=True)
    assert lines == [
        "n0: 8 cores, 2 GPUs (H100), Python 3.12.1, torch 2.9, agent's pid 7",
        "run r: train.py on n0 (2), n1 (1), logs in /logs/r",
        "n0: ranks 0-1 started, pids 100-101",
        "n1: rank 2 started, pid 102",
        "n0: ranks 0-1 returned after 10.5 s",
        "rank 2 (n1, local rank 0, pid 102) killed by SIGKILL after 1 min 01 s",
        "run r succeeded after 1 min 02 s",
    ]
    alone = history(States(verbose=True), [*begin(hosts), ends[0], end(1, "n0", 10.0 + TOGETHER + 0.1)])
    assert list(alone)[-1] == "rank 0 (n0, local rank 0, pid 100) returned after 10.0 s"


def test_verbosely_a_failure_is_told_at_once() -> None:
    states = States(verbose=True)
    assert len(list(history(states, begin(hosts_of(3))))) == 2
    assert states.said(end(0, "n0", 5.0), 5.0) == []
    assert len(states.said(killed(1, "n0", 5.1), 5.1)) == 2
    assert states.said(end(2, "n0", 5.2), 5.2) == ["rank 2 (n0, local rank 0, pid 102) returned after 5.20 s"]


def test_the_console_says_it_when_its_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zlaunch.view.states.ENDING", 0.05)
    err = io.StringIO()
    desk = Desk(ViewSettings(view="plain"), lambda host, size: None, stdout=io.StringIO(), stderr=err)
    for event in [*begin(hosts_of(2)), killed(1, "n0", 5.0)]:
        desk.put(event)
    words = "rank 1 (n0, local rank 0, pid 101) killed by SIGKILL; waiting for rank 0 (n0) to end"
    until(lambda: err.getvalue() == f"zlaunch: {words}\n", "the word")
    desk.close()


def test_verbosely_a_thousand_hosts_are_told_of_together() -> None:
    hosts = hosts_of(*[8] * 1000)
    connected = [AgentConnected(0.0, host.name, HostFacts(hostname="x", pid=1, cores=8)) for host in hosts]
    ends = [end(rank, f"n{rank // 8}", 60.0 + rank / 8000) for rank in range(8000)]
    lines = told([*connected, *begin(hosts), *ends, over(62.0)], verbose=True)
    assert len(lines) == HOSTS_TOLD + 5
    assert lines[HOSTS_TOLD:] == [
        "more hosts have connected",
        "run r: train.py on 1000 hosts, 8000 ranks, logs in /logs/r",
        "all 8000 ranks have started",
        "ranks 0-7999 returned after 1 min 01 s",
        "run r succeeded after 1 min 02 s",
    ]


def test_words_of_others_are_lines_without_codes() -> None:
    reason = "ssh: \x1b[31mno\x1b[0m way\n\x07bye\x9b2J"
    lines = told([*begin(hosts_of(1, 1)), AgentLost(3.0, "n1", reason), Notice(3.0, "error", "a\x1b]0;t\x07b")])
    assert lines == ["n1: lost: ssh: no way", "\ufffdbye", "ab"]


FAILS = "import os, time; print('up', flush=True); time.sleep(60) if os.environ['RANK'] == '0' else os._exit(3)"


@pytest.mark.parametrize("words", [(), ("-v",)])
def test_in_a_pipe_there_are_no_escape_codes(tmp_path: Path, words: tuple[str, ...]) -> None:
    env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}
    command = [sys.executable, "-m", "zlaunch", "run", *words, "-n", "2", "--", sys.executable, "-c", FAILS]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 3
    assert b"1] up\n" in done.stdout
    assert b"exited with status 3" in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert bool(words) == (b"ranks 0-1 started, pids" in done.stderr)
