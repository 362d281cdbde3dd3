"""Histories through both cores where an MPI launcher calls for the ranks."""

from __future__ import annotations

import signal

import msgspec
import pytest

from zlaunch.failure import exit_status
from zlaunch.model import FateKind, RanksCommand
from zlaunch.supervisor import happenings as on
from zlaunch.testing import Pair, order

MPIRUN = RanksCommand(argv=("/usr/bin/mpirun", "caller"), env=None)


def started(*workers: int, **changes: object) -> Pair:
    pair = Pair(*workers)
    pair.connect()
    pair.submit(order("r", pair, ranks=MPIRUN, **changes))
    return pair


def test_a_rank_is_forked_when_it_is_called_for() -> None:
    pair = started(2, 1)
    assert pair.launched == [("r", 0)]
    assert not any(host.alive for host in pair.hosts)
    pair.calls(0, 1, 3)
    assert list(pair.hosts[0].alive) == [1]
    pair.calls(1, 2, 3)
    pair.calls(0, 0, 3)
    for host, rank in ((0, 0), (0, 1), (1, 2)):
        pair.hosts[host].returns(rank)
    assert pair.ended[0].outcome == "succeeded"
    assert [host.dismissed for host in pair.hosts] == [1, 1]


def test_a_call_before_the_template_is_ready_is_kept() -> None:
    pair = Pair(1)
    pair.connect()
    pair.hosts[0].forks = False
    pair.submit(order("r", pair, ranks=MPIRUN))
    pair.calls(0, 0, 1)
    assert list(pair.hosts[0].alive) == [0]


@pytest.mark.parametrize(
    ("rank", "size", "words"),
    [
        (0, 1, "it has started rank 0 of 1 there, where ranks 0-1 of 3 are planned"),
        (2, 3, "it has started rank 2 of 3 there, where ranks 0-1 of 3 are planned"),
    ],
)
def test_a_world_that_was_not_planned_is_named(rank: int, size: int, words: str) -> None:
    pair = started(2, 1)
    pair.calls(0, rank, size)
    pair.advance(0.02)
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert ended.cause is not None
    assert ended.cause.kind is FateKind.LOST
    assert ended.cause.text == f"mpirun, which starts the ranks: host0: {words}"
    assert [host.dismissed for host in pair.hosts] == [1, 1]


def test_a_rank_that_is_called_for_twice_is_named() -> None:
    pair = started(1, 1)
    pair.calls(0, 0, 2)
    pair.calls(0, 0, 2)
    pair.advance(0.02)
    assert pair.ended[0].cause is not None
    assert "rank 0 of 2 once more there, where rank 0 of 2 is planned" in pair.ended[0].cause.text


def test_a_rank_that_dies_is_the_cause_and_the_launcher_ends_after_all_of_them() -> None:
    pair = started(3)
    for rank in range(3):
        pair.calls(0, rank, 3)
    pair.hosts[0].killed(1)
    pair.advance(0.02)
    (ended,) = pair.ended
    assert ended.cause is not None
    assert (ended.cause.rank, ended.cause.signal) == (1, signal.SIGKILL)
    assert pair.hosts[0].signals == [(0, signal.SIGTERM), (2, signal.SIGTERM)]
    assert pair.hosts[0].dismissed == 1


def test_a_launcher_that_ends_before_its_ranks_is_the_cause() -> None:
    pair = started(2)
    pair.calls(0, 0, 2)
    pair.calls(0, 1, 2)
    pair.feed(on.RanksOver("r", 0, "it was killed by SIGKILL", killed=True))
    pair.advance(0.001)
    pair.hosts[0].exits(0, 195)
    pair.advance(0.02)
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert ended.cause is not None
    assert ended.cause.text == "mpirun, which starts the ranks: it was killed by SIGKILL"
    assert pair.hosts[0].signals == [(1, signal.SIGTERM)]


@pytest.mark.parametrize(("called", "tells", "status"), [(2, True, 3), (2, False, 125), (1, True, 125)])
def test_a_launcher_that_tells_of_aborts_ends_with_that_of_a_rank(called: int, tells: bool, status: int) -> None:
    pair = Pair(2)
    pair.connect()
    pair.submit(order("r", pair, ranks=msgspec.structs.replace(MPIRUN, tells_aborts=tells)))
    for rank in range(called):
        pair.calls(0, rank, 2)
    pair.feed(on.RanksOver("r", 0, "it ended with status 3", status=3))
    pair.advance(1.1)
    (ended,) = pair.ended
    assert exit_status(ended.outcome, ended.cause) == status


def test_ranks_that_end_just_before_their_launcher_is_known_to_be_killed_are_not_the_cause() -> None:
    pair = started(2)
    pair.calls(0, 0, 2)
    pair.calls(0, 1, 2)
    pair.hosts[0].exits(0, 195)
    pair.feed(on.RanksOver("r", 0, "it was killed by SIGKILL", killed=True))
    pair.advance(0.02)
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert ended.cause is not None
    assert ended.cause.text == "mpirun, which starts the ranks: it was killed by SIGKILL"
    assert ended.cause.launcher == "mpirun"


def test_a_template_that_dies_before_its_ranks_are_called_for_ends_the_run() -> None:
    pair = started(2)
    pair.calls(0, 0, 2)
    pair.hosts[0].template_dies()
    pair.advance(0.02)
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert {fate.text for fate in ended.fates} == {"its fork template was killed by SIGKILL"}


def test_a_launcher_that_never_started_anything_ends_the_run() -> None:
    pair = started(2)
    pair.feed(on.RanksOver("r", 0, "it ended with status 1; it said:\nno such host"))
    pair.advance(1.1)
    assert pair.ended[0].outcome == "lost"
    assert pair.ended[0].cause is not None
    assert pair.ended[0].cause.pid == 0


def test_a_launcher_that_never_calls_for_all_is_ended() -> None:
    pair = started(2, patience=7.0)
    pair.calls(0, 0, 2)
    pair.advance(6.9)
    assert not pair.ended
    pair.advance(0.2)
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert ended.cause is not None
    assert ended.cause.text == "mpirun, which starts the ranks: it has not started all processes on host0 in 7 s"
    assert ended.cause.launcher == "mpirun"


def test_a_launcher_that_has_called_for_all_is_left_alone() -> None:
    pair = started(1, patience=7.0)
    pair.calls(0, 0, 1)
    pair.advance(100.0)
    assert not pair.ended


def test_the_end_of_the_launcher_and_that_of_the_ranks_may_be_told_in_any_order() -> None:
    pair = started(1)
    pair.calls(0, 0, 1)
    pair.feed(on.RanksOver("r", 0, "it ended with status 0"))
    pair.hosts[0].returns(0)
    assert pair.ended[0].outcome == "succeeded"
    pair.advance(1.0)
    assert len(pair.ended) == 1


def test_cancelling_ends_ranks_that_nobody_has_called_for() -> None:
    pair = started(2)
    pair.calls(0, 0, 2)
    pair.feed(on.Cancelled("r"))
    (ended,) = pair.ended
    assert ended.outcome == "cancelled"
    assert sorted((fate.rank, fate.kind) for fate in ended.fates) == [(0, FateKind.SIGNALED), (1, FateKind.LOST)]


def test_every_attempt_has_a_launcher_of_its_own() -> None:
    pair = started(1, max_restarts=1)
    pair.calls(0, 0, 1)
    pair.hosts[0].exits(0, 3)
    pair.advance(0.02)
    assert pair.launched == [("r", 0), ("r", 1)]
    pair.calls(0, 0, 1)
    pair.hosts[0].returns(0)
    assert pair.ended[0].outcome == "succeeded"
    assert pair.hosts[0].dismissed == 2


def test_hosts_that_are_all_lost_leave_no_run_waiting_for_its_launcher() -> None:
    pair = started(1)
    pair.calls(0, 0, 1)
    pair.gone(pair.hosts[0], "no answer")
    pair.advance(0.1)
    pair.feed(on.Closing())
    assert len(pair.ended) == 1
    assert pair.over
