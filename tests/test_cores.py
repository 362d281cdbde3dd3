"""Histories through both cores, joined by an in-memory link: who failed first, who is stopped, what is told."""

from __future__ import annotations

import signal

import pytest

from zlaunch import events as ev
from zlaunch.agent import happenings as agent_on
from zlaunch.model import FateKind
from zlaunch.protocol import messages as m
from zlaunch.supervisor import happenings as on
from zlaunch.tables import RUN_TABLE, IllegalTransition, Machine, RunState
from zlaunch.testing import Pair, order


def connected(*workers: int, offsets: tuple[float, ...] = ()) -> Pair:
    pair = Pair(*workers, offsets=offsets)
    pair.connect()
    return pair


def test_all_ranks_return() -> None:
    pair = connected(2, 1)
    pair.submit(order("r", pair))
    for host, rank in ((0, 1), (1, 2), (0, 0)):
        assert not pair.ended
        pair.hosts[host].returns(rank)
    (ended,) = pair.ended
    assert ended.outcome == "succeeded"
    assert sorted(f.rank for f in ended.fates) == [0, 1, 2]
    assert all(f.ok for f in ended.fates)
    kinds = [type(e).__name__ for e in pair.events]
    assert kinds.index("RunStarted") < kinds.index("RankStarted") < kinds.index("RankEnded") < kinds.index("RunEnded")


def test_first_failure_is_the_cause_and_others_are_ended() -> None:
    pair = connected(4)
    pair.submit(order("r", pair))
    pair.hosts[0].killed(2)
    assert not pair.ended, "fates are collected for a moment"
    assert not pair.hosts[0].signals
    pair.advance(0.021)
    (ended,) = pair.ended
    assert ended.cause is not None
    assert (ended.cause.rank, ended.cause.kind, ended.cause.signal) == (2, FateKind.SIGNALED, signal.SIGKILL)
    assert pair.hosts[0].signals == [(rank, signal.SIGTERM) for rank in (0, 1, 3)]
    assert [f.stopped for f in sorted(ended.fates, key=lambda f: f.rank)] == [True, True, False, True]


def test_order_is_that_of_the_corrected_clocks() -> None:
    pair = connected(1, 1, offsets=(0.0, 5000.0))
    pair.submit(order("r", pair))
    pair.hosts[1].raises(1, "ValueError: first", ends=False)
    pair.clock.now += 0.01
    pair.hosts[0].raises(0, "ValueError: second")
    pair.advance(1.1)
    assert pair.ended[0].cause is not None
    assert pair.ended[0].cause.rank == 1


def test_symptom_waits_for_its_cause() -> None:
    pair = connected(3)
    pair.submit(order("r", pair))
    pair.hosts[0].raises(0, "RuntimeError: Connection closed by peer", symptom=True)
    pair.advance(1.5)
    assert not pair.ended
    pair.hosts[0].killed(1, signal.SIGSEGV)
    pair.advance(0.021)
    assert pair.ended[0].cause is not None
    assert (pair.ended[0].cause.rank, pair.ended[0].cause.signal) == (1, signal.SIGSEGV)


def test_symptom_alone_is_the_cause_after_two_seconds() -> None:
    pair = connected(2)
    pair.submit(order("r", pair))
    pair.hosts[0].raises(1, "RuntimeError: Connection closed by peer", symptom=True)
    pair.advance(1.99)
    assert not pair.ended
    pair.advance(0.02)
    assert pair.ended[0].cause is not None
    assert pair.ended[0].cause.rank == 1


def test_no_waiting_when_everybody_has_ended() -> None:
    pair = connected(2)
    pair.submit(order("r", pair))
    pair.hosts[0].raises(0, "RuntimeError: Connection closed by peer", symptom=True)
    pair.hosts[0].exits(1, 3)
    assert pair.ended[0].cause is not None
    assert pair.ended[0].cause.exit_code == 3


def test_who_ignores_sigterm_is_killed_after_the_grace_period() -> None:
    pair = connected(2)
    pair.hosts[0].ignores_sigterm = {0}
    pair.submit(order("r", pair, grace=30.0))
    pair.hosts[0].exits(1, 1)
    pair.advance(30)
    assert not pair.ended
    pair.advance(0.1)
    assert pair.hosts[0].signals == [(0, signal.SIGTERM), (0, signal.SIGKILL)]
    assert pair.ended[0].outcome == "failed"


def test_a_rank_that_has_answered_may_end_by_itself_for_a_second() -> None:
    pair = connected(3)
    pair.submit(order("r", pair, grace=30.0))
    pair.hosts[0].raises(1, "ValueError: x", ends=False)
    pair.advance(0.9)
    assert pair.hosts[0].signals == [(0, signal.SIGTERM), (2, signal.SIGTERM)]
    pair.hosts[0].exits(1, 1)
    assert pair.ended[0].cause is not None
    assert (pair.ended[0].cause.rank, pair.ended[0].cause.exit_code) == (1, 1)


def test_a_rank_that_only_misses_a_peer_is_asked_to_end_at_once() -> None:
    pair = connected(3)
    pair.submit(order("r", pair, grace=30.0))
    pair.hosts[0].raises(2, "RuntimeError: Connection closed by peer", symptom=True, ends=False)
    pair.hosts[0].raises(1, "ValueError: x", ends=False)
    pair.advance(0.1)
    assert pair.hosts[0].signals == [(0, signal.SIGTERM), (2, signal.SIGTERM)]


def test_a_rank_that_has_answered_and_does_not_end_is_asked_to_then() -> None:
    pair = connected(2)
    pair.hosts[0].ignores_sigterm = {0}
    pair.submit(order("r", pair, grace=30.0))
    pair.hosts[0].raises(1, "ValueError: x", ends=False)
    pair.advance(1.1)
    assert pair.hosts[0].signals == [(0, signal.SIGTERM), (1, signal.SIGTERM)], "and nobody is asked twice"
    assert not pair.ended
    pair.advance(30)
    assert pair.hosts[0].signals[2:] == [(0, signal.SIGKILL)]


def test_cancel_twice_kills_at_once() -> None:
    pair = connected(2)
    pair.hosts[0].ignores_sigterm = {0, 1}
    pair.submit(order("r", pair))
    pair.feed(on.Cancelled("r"))
    assert not pair.ended
    pair.feed(on.Cancelled("r", 0.0))
    assert pair.ended[0].outcome == "cancelled"
    assert pair.clock.now == 100.0


def test_stop_that_overtakes_the_fork_still_reaches_the_rank() -> None:
    pair = connected(1)
    pair.hosts[0].forks = False
    pair.submit(order("r", pair))
    pair.feed(on.Cancelled("r"))
    assert not pair.ended
    pair.hosts[0].feed(agent_on.RankForked(("r", 0), 0, 4242))
    assert pair.hosts[0].signals == [(0, signal.SIGTERM)]
    assert pair.ended[0].outcome == "cancelled"


def test_time_limit() -> None:
    pair = connected(2)
    pair.submit(order("r", pair, time_limit=60.0))
    pair.advance(59.9)
    assert not pair.ended
    pair.advance(0.2)
    assert pair.ended[0].outcome == "timed out"


def test_restarts_on_a_fresh_port_until_it_succeeds() -> None:
    pair = connected(2)
    pair.submit(order("r", pair, max_restarts=2))
    for attempt in (0, 1):
        key = ("r", attempt)
        assert pair.hosts[0].alive == {0: key, 1: key}
        pair.hosts[0].exits(1, 7)
        pair.advance(0.03)
    assert not pair.ended
    pair.hosts[0].returns(0)
    pair.hosts[0].returns(1)
    assert pair.ended[0].outcome == "succeeded"
    restarts = [e for e in pair.events if isinstance(e, ev.RunRestarting)]
    assert [(r.restart, r.cause.exit_code) for r in restarts] == [(1, 7), (2, 7)]
    assert pair.ports == 20003


def test_no_restarts_left() -> None:
    pair = connected(1)
    pair.submit(order("r", pair, max_restarts=1))
    for _ in range(2):
        pair.hosts[0].exits(0, 7)
    assert pair.ended[0].outcome == "failed"


def test_steps_queue_for_the_same_hosts_first_come_first_served() -> None:
    pair = connected(1, 1)
    pair.submit(order("a", pair, 0))
    pair.submit(order("b", pair))
    pair.submit(order("c", pair, 1))
    assert pair.hosts[1].alive == {}, "c must not overtake b"
    pair.hosts[0].returns(0)
    assert {k[0] for h in pair.hosts for k in h.alive.values()} == {"b"}
    pair.hosts[0].returns(0)
    pair.hosts[1].returns(1)
    assert list(pair.hosts[1].alive.values()) == [("c", 0)]


def test_disjoint_steps_run_at_once() -> None:
    pair = connected(1, 1)
    pair.submit(order("a", pair, 0))
    pair.submit(order("b", pair, 1))
    assert [len(h.alive) for h in pair.hosts] == [1, 1]


def test_a_queued_step_can_be_cancelled() -> None:
    pair = connected(1)
    pair.submit(order("a", pair))
    pair.submit(order("b", pair))
    pair.feed(on.Cancelled("b"))
    assert [(e.run, e.outcome) for e in pair.ended] == [("b", "cancelled")]
    pair.hosts[0].returns(0)
    assert [(e.run, e.outcome) for e in pair.ended] == [("b", "cancelled"), ("a", "succeeded")]


def test_lost_host_ends_its_run_and_stops_the_others() -> None:
    pair = connected(1, 1)
    pair.submit(order("r", pair))
    pair.gone(pair.hosts[1], "its agent was killed by SIGKILL")
    pair.advance(0.03)
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert ended.cause is not None
    assert (ended.cause.hostname, ended.cause.kind) == ("host1", FateKind.LOST)
    assert pair.hosts[0].signals == [(0, signal.SIGTERM)]
    pair.submit(order("later", pair))
    assert pair.ended[1].outcome == "lost", "a host that is lost stays lost"
    pair.submit(order("elsewhere", pair, 0))
    pair.hosts[0].returns(0)
    assert pair.ended[2].outcome == "succeeded"


def test_killed_template_is_a_lost_step_and_the_next_one_has_a_new_template() -> None:
    pair = connected(2)
    pair.submit(order("r", pair))
    pair.hosts[0].template_dies()
    pair.advance(0.03)
    assert pair.ended[0].outcome == "lost"
    assert "template was killed" in pair.ended[0].fates[0].text
    pair.submit(order("s", pair))
    pair.hosts[0].returns(0)
    pair.hosts[0].returns(1)
    assert pair.ended[1].outcome == "succeeded"


def test_agent_that_does_not_come() -> None:
    pair = Pair(1, 1)
    pair.to_supervisor(pair.hosts[0], m.Hello(_facts(), 0.0))
    pair.advance(61)
    assert pair.problems == ["host1: late"]


def test_closing_ends_everything() -> None:
    pair = connected(2, 2)
    pair.submit(order("r", pair))
    pair.feed(on.Closing())
    assert pair.over
    assert pair.ended[0].outcome == "cancelled"
    assert [h.left for h in pair.hosts] == [0, 0]
    assert all(not h.alive for h in pair.hosts)


def test_orphaned_agent_gives_its_ranks_two_seconds() -> None:
    pair = connected(2)
    host = pair.hosts[0]
    host.ignores_sigterm = {1}
    pair.submit(order("r", pair))
    host.feed(agent_on.SupervisorLost("its stdin ended"))
    assert host.signals == [(0, signal.SIGTERM), (1, signal.SIGTERM)]
    assert host.left is None
    pair.advance(2.01)
    assert host.signals[-1] == (1, signal.SIGKILL)
    assert host.left == 1


def test_an_agent_that_is_told_to_end_gives_its_ranks_what_the_supervisor_says() -> None:
    pair = connected(2)
    host = pair.hosts[0]
    host.ignores_sigterm = {1}
    pair.submit(order("r", pair, grace=7))
    host.feed(agent_on.SupervisorLost("told to end by SIGTERM", is_there=True))
    assert host.signals == [(0, signal.SIGTERM), (1, signal.SIGTERM)]
    pair.advance(6.5)
    assert host.left is None
    pair.advance(1)
    assert host.signals[-1] == (1, signal.SIGKILL)
    assert host.left == 1
    assert pair.ended[0].outcome == "lost"


def test_and_two_seconds_where_there_is_none_any_more() -> None:
    pair = connected(2)
    host = pair.hosts[0]
    host.ignores_sigterm = {1}
    pair.submit(order("r", pair, grace=100))
    host.feed(agent_on.SupervisorLost("told to end by SIGTERM", is_there=True))
    pair.advance(5)
    host.feed(agent_on.SupervisorLost("no heartbeat"))
    pair.advance(1.9)
    assert host.left is None
    pair.advance(0.2)
    assert host.left == 1


def test_an_agent_cannot_speak_for_ranks_of_another_host() -> None:
    pair = connected(1, 1)
    pair.submit(order("r", pair))
    pair.to_supervisor(pair.hosts[0], m.Answered("r", 0, 1, "exception", 1.0, "forged"))
    pair.to_supervisor(pair.hosts[0], m.Started("r", 0, 7, 1, 1.0))
    pair.advance(5)
    assert not pair.ended
    assert all(not h.signals for h in pair.hosts)


def test_a_message_of_an_earlier_attempt_is_not_taken_for_this_one() -> None:
    pair = connected(1)
    pair.submit(order("r", pair, max_restarts=1))
    pair.hosts[0].exits(0, 1)
    pair.to_supervisor(pair.hosts[0], m.Answered("r", 0, 0, "exception", 1.0, "late"))
    pair.hosts[0].returns(0)
    assert pair.ended[0].outcome == "succeeded"


def test_a_run_that_is_cancelled_while_it_fails_is_not_started_again() -> None:
    pair = connected(2)
    pair.hosts[0].ignores_sigterm = {0}
    pair.submit(order("r", pair, max_restarts=3))
    pair.hosts[0].exits(1, 7)
    pair.advance(0.03)
    pair.feed(on.Cancelled("r", 0.0))
    assert [e.outcome for e in pair.ended] == ["failed"]
    assert not pair.hosts[0].alive


def test_a_host_dies_while_a_result_is_on_its_way() -> None:
    pair = connected(1, 1)
    pair.submit(order("r", pair))
    pair.feed(on.AgentSaid(1, m.Answered("r", 0, 1, "value", 1.0, payload=m.Pieces(1, 9)), pending=True))
    pair.hosts[1].returns(1)
    pair.hosts[0].returns(0)
    assert not pair.ended, "a result is awaited"
    pair.gone(pair.hosts[1], "its agent was killed by SIGKILL")
    pair.advance(0.03)
    assert [e.outcome for e in pair.ended] == ["lost"]


def test_a_run_that_comes_too_late_is_cancelled() -> None:
    pair = connected(1)
    pair.feed(on.Closing())
    pair.submit(order("s", pair))
    assert [(e.run, e.outcome) for e in pair.ended] == [("s", "cancelled")]


def test_who_waits_behind_a_run_that_is_given_up_is_started() -> None:
    pair = connected(1, 1)
    pair.submit(order("a", pair, 0))
    pair.submit(order("b", pair))
    pair.submit(order("c", pair, 1))
    pair.feed(on.Cancelled("b"))
    assert list(pair.hosts[1].alive.values()) == [("c", 0)]


def test_who_waits_behind_a_lost_host_is_started_elsewhere() -> None:
    pair = connected(1, 1)
    pair.submit(order("a", pair, 0))
    pair.submit(order("b", pair))
    pair.submit(order("c", pair, 1))
    pair.gone(pair.hosts[0], "its agent was killed by SIGKILL")
    pair.advance(0.03)
    assert {e.run: e.outcome for e in pair.ended} == {"a": "lost", "b": "lost"}
    assert list(pair.hosts[1].alive.values()) == [("c", 0)]


def test_a_rank_s_own_error_stays_the_cause_when_its_host_dies_after_it() -> None:
    pair = connected(2)
    pair.hosts[0].ignores_sigterm = {0, 1}
    pair.submit(order("r", pair))
    pair.hosts[0].raises(0, "ValueError: mine", ends=False)
    pair.advance(0.03)
    pair.gone(pair.hosts[0], "its agent was killed by SIGKILL")
    (ended,) = pair.ended
    assert ended.cause is not None
    assert (ended.outcome, ended.cause.kind, ended.cause.text) == ("failed", FateKind.RAISED, "ValueError: mine")


def test_an_error_that_was_told_stays_the_cause_when_the_template_dies_after_it() -> None:
    pair = connected(2)
    pair.submit(order("r", pair))
    pair.hosts[0].raises(0, "ValueError: mine", ends=False)
    pair.hosts[0].template_dies()
    pair.advance(0.03)
    assert pair.ended[0].cause is not None
    assert (pair.ended[0].outcome, pair.ended[0].cause.text) == ("failed", "ValueError: mine")


def test_a_result_that_cannot_be_taken_over_is_a_failure() -> None:
    pair = connected(1)
    pair.submit(order("r", pair))
    pair.to_supervisor(pair.hosts[0], m.Answered("r", 0, 0, "unpicklable", 1.0, "no descriptors left"))
    pair.hosts[0].returns(0)
    assert pair.ended[0].cause is not None
    assert (pair.ended[0].outcome, pair.ended[0].cause.kind) == ("failed", FateKind.UNPICKLABLE)


def test_a_rank_that_sigkill_does_not_end_is_given_up() -> None:
    pair = connected(2)
    pair.hosts[0].immortal = {1}
    pair.submit(order("r", pair))
    pair.feed(on.Cancelled("r", 0.0))
    assert not pair.ended
    pair.advance(5.1)
    assert pair.ended[0].outcome == "cancelled"
    assert [f.text for f in pair.ended[0].fates if f.rank == 1] == ["it did not die of SIGKILL"]


def test_a_template_that_hangs_in_a_fork_is_ended() -> None:
    pair = connected(1)
    pair.hosts[0].forks = False
    pair.submit(order("r", pair))
    pair.feed(on.Cancelled("r", 0.0))
    pair.advance(5.1)
    assert pair.ended[0].outcome == "cancelled"
    pair.hosts[0].forks = True
    pair.hosts[0].alive.clear()
    pair.submit(order("s", pair))
    pair.hosts[0].returns(0)
    assert pair.ended[1].outcome == "succeeded"


def test_illegal_transition_raises_and_changes_nothing() -> None:
    machine = Machine(RUN_TABLE, RunState.QUEUED)
    with pytest.raises(IllegalTransition, match="hosts closed"):
        machine.move("hosts closed")
    assert machine.state is RunState.QUEUED


def _facts():  # type: ignore[no-untyped-def]
    from zlaunch.model import HostFacts

    return HostFacts(hostname="x", pid=1, cores=1)
