"""What ranks use: their processes' time and memory, and what the supervisor makes of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from bed.programs import until

from zlaunch import events as ev
from zlaunch.agent.processes import RankProcess
from zlaunch.agent.usage import FIRST, PERIOD, Account, Process, UsageSampler, parse
from zlaunch.model import RankUsage, Seat
from zlaunch.protocol import messages as m
from zlaunch.testing import Pair, order

# --- time and memory ------------------------------------------------------------------------------------------------


def test_stat_is_read_as_the_manual_says() -> None:
    fields = ["S", "1", "7", "7", "0", "-1", "0", *["0"] * 4, "150", "50", "30", "20", "20", "0", "3", "0", "4200"]
    line = f"7 (a) R (b)) {' '.join(fields)} 1000000 256 {' '.join(['0'] * 20)}".encode()
    assert parse(line) == Process(started=42.0, spent=2.5, memory=256 * 4096)
    with pytest.raises((ValueError, IndexError)):
        parse(b"7 (short) S 1")


def processes(**spent: float) -> dict[int, Process]:
    """``p7=1.5``: process 7, which started when its number says, has spent so much."""
    return {int(name[1:]): Process(float(name[1:]), seconds, 100) for name, seconds in spent.items()}


def test_a_rank_at_first_counts_from_its_start_and_then_from_the_sample_before() -> None:
    account = Account()
    assert account.used(processes(p10=1.0), 10, 12.0, 8) == (50.0, 100)
    assert account.used(processes(p10=4.0), 10, 14.0, 8) == (150.0, 100)
    assert account.used(processes(p10=4.0), 10, 16.0, 8) == (0.0, 100)


def test_children_count_from_their_birth_and_leave_their_time_with_their_parent() -> None:
    account = Account()
    account.used(processes(p10=0.0), 10, 12.0, 8)
    assert account.used(processes(p10=0.5, p13=0.5), 10, 14.0, 8) == (50.0, 200)
    assert account.used(processes(p10=1.5), 10, 16.0, 8) == (25.0, 100), (
        "it used half a second more, and was waited for"
    )


def test_a_process_found_late_counts_from_then_on() -> None:
    account = Account()
    account.used(processes(p10=0.0), 10, 20.0, 8)
    assert account.used(processes(p10=0.0, p15=5.0), 10, 22.0, 8)[0] == 0.0
    assert account.used(processes(p10=0.0, p15=6.0), 10, 24.0, 8)[0] == 50.0


def test_no_percentage_is_beyond_reason() -> None:
    account = Account()
    account.used(processes(p10=1.0, p11=9.0), 10, 12.0, 4)
    assert account.used(processes(p10=1.0), 10, 14.0, 4)[0] == 0.0, "a child ended that nobody waits for"
    assert account.used(processes(p10=90.0), 10, 16.0, 4)[0] == 400.0
    reused = {10: Process(16.5, 0.5, 100)}
    assert account.used(reused, 10, 18.0, 4)[0] == 25.0, "another process of the same number"


def seat(rank: int, node: int = 0, nodes: int = 1) -> Seat:
    return Seat(
        rank=rank,
        local_rank=rank,
        world_size=8,
        local_world_size=8,
        node_rank=node,
        nodes=nodes,
        hostname="h",
        master_addr="",
        master_port=0,
    )


BUSY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "x = bytearray(64 << 20); print(1, flush=True); input()"], stdin=0)
while time.process_time() < 0.3: pass
print("spent", flush=True)
sys.stdin.read()
"""
IDLE = "import sys; print('there', flush=True); sys.stdin.read()"


@pytest.fixture
def spawn() -> Iterator[Any]:
    with ExitStack() as stack:

        def start(*programs: str, lines: int = 1) -> dict[tuple[tuple[str, int], int], RankProcess]:
            command = [sys.executable, "-c"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            ranks = {}
            for rank, program in enumerate(programs):
                process = stack.enter_context(subprocess.Popen([*command, program], **pipes))  # type: ignore[call-overload]
                ranks[("run", 0), rank] = RankProcess(("run", 0), rank, None, process.pid)  # type: ignore[arg-type]
                for _ in range(lines):
                    process.stdout.readline()
            return ranks

        yield start


def sample(sampler: UsageSampler) -> None:
    due = sampler.deadline()
    assert due is not None
    sampler.tick(due)


def test_real_processes_with_their_children(spawn: Any) -> None:
    sent: list[m.Usage] = []
    sampler = UsageSampler(spawn(BUSY, lines=2), sent.append)
    sampler.sits(seat(0))
    sample(sampler)
    (usage,) = sent
    (use,) = usage.ranks
    assert (usage.step, usage.attempt, use.rank) == ("run", 0, 0)
    assert use.cpu > 3, "0.3 s within the seconds since it was started"
    assert use.memory > 64 << 20, "most of that is its child's"
    assert (use.gpu, use.gpu_memory, use.gpus) == (None, None, ())
    sample(sampler)
    assert sent[-1].ranks[0].cpu < use.cpu, "it has slept since"


THREADED = """
import subprocess, sys, threading
def run():
    subprocess.Popen([sys.executable, "-c", "x = bytearray(64 << 20); print(1, flush=True); input()"], stdin=0).wait()
threading.Thread(target=run).start()
"""


def test_what_another_thread_has_started_is_found_a_little_later(spawn: Any) -> None:
    sent: list[m.Usage] = []
    sampler = UsageSampler(spawn(THREADED), sent.append)
    sample(sampler)
    sample(sampler)
    before, after = (usage.ranks[0].memory for usage in sent)
    assert before < 64 << 20 < after


def test_a_rank_that_is_dead_before_anybody_knows_is_not_told_of(spawn: Any) -> None:
    sent: list[m.Usage] = []
    ranks = spawn("print('bye')")
    (rank,) = ranks.values()
    until(lambda: Path(f"/proc/{rank.pid}/stat").read_text().split()[2] == "Z", "its end")
    sample(UsageSampler(ranks, sent.append))
    assert not sent


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_where_a_sample_takes_long_the_next_one_waits(spawn: Any) -> None:
    sampler = UsageSampler(spawn(IDLE), lambda _: burn(0.01))
    due = sampler.deadline()
    sample(sampler)
    later = sampler.deadline()
    assert due is not None
    assert later is not None
    assert later - due >= 10.0


def test_eight_ranks_cost_less_than_a_five_hundredth_of_a_core(spawn: Any) -> None:
    sent: list[m.Usage] = []
    sampler = UsageSampler(spawn(*[IDLE] * 8), sent.append)
    costs = []
    for _ in range(8):
        due = sampler.deadline()
        assert due is not None
        began = time.thread_time()
        sampler.tick(due)
        costs.append(time.thread_time() - began)
    assert [len(usage.ranks) for usage in sent] == [8] * 8
    assert sorted(costs)[4] < 0.002 * PERIOD


def test_nothing_is_asked_while_nothing_runs(spawn: Any) -> None:
    sent: list[m.Usage] = []
    ranks: dict[Any, RankProcess] = {}
    sampler = UsageSampler(ranks, sent.append)
    assert sampler.deadline() is None
    sampler.tick(1e9)
    ranks.update(spawn(IDLE))
    began = time.monotonic()
    due = sampler.deadline()
    assert due is not None
    assert due >= began + FIRST
    sampler.tick(due - 0.1)
    assert not sent, "not before its time"
    next(iter(ranks.values())).died_at = due
    sampler.tick(due)
    assert not sent, "it is dead"
    ranks.clear()
    assert sampler.deadline() is None


def test_of_many_hosts_each_speaks_less_often_and_not_all_at_once(spawn: Any) -> None:
    dues = []
    for node in (0, 500, 999):
        sampler = UsageSampler(spawn(IDLE), lambda _: None)
        sampler.sits(seat(8 * node, node, 1000))
        now = time.monotonic()
        due = sampler.deadline()
        assert due is not None
        sampler.tick(due)
        dues.append(due - now)
        later = sampler.deadline()
        assert later is not None
        assert later - due == pytest.approx(10.0, abs=0.1), "1,000 hosts tell of themselves 100 times a second"
    assert dues == pytest.approx([1.0, 6.0, 10.99], abs=0.1)


# --- what the supervisor makes of it --------------------------------------------------------------------------------


def told(pair: Pair) -> list[ev.Usage]:
    return [event for event in pair.events if isinstance(event, ev.Usage)]


def test_the_supervisor_tells_of_ranks_that_run_and_of_no_others() -> None:
    pair = Pair(2, 2, offsets=(0.0, 5000.0))
    pair.connect()
    pair.submit(order("r", pair))
    host = pair.hosts[1]
    good = RankUsage(2, 99.5, 1 << 30, 50.0, 2 << 30, (0,))
    bad = [
        RankUsage(3, float("nan"), 1),
        RankUsage(3, float("inf"), 1),
        RankUsage(3, 1.0, -1),
        RankUsage(3, 1.0, 1, gpus=tuple(range(1000))),
    ]
    foreign = [RankUsage(0, 1.0, 1), RankUsage(77, 1.0, 1)]
    for uses in ([good, good], *([use] for use in bad + foreign)):
        pair.to_supervisor(host, m.Usage("r", 0, host.now, tuple(uses)))
    assert told(pair) == [ev.Usage(pair.clock.now, "r", "host1", (good,))]
    for step, attempt in (("other", 0), ("r", 1)):
        pair.to_supervisor(host, m.Usage(step, attempt, host.now, (good,)))
    host.returns(2)
    pair.to_supervisor(host, m.Usage("r", 0, host.now, (good,)))
    assert len(told(pair)) == 1


def test_before_its_start_a_rank_uses_nothing() -> None:
    pair = Pair(1)
    pair.hosts[0].forks = False
    pair.connect()
    pair.submit(order("r", pair))
    pair.to_supervisor(pair.hosts[0], m.Usage("r", 0, pair.clock.now, (RankUsage(0, 1.0, 1),)))
    assert not told(pair)
