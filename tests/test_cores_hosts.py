"""Histories of several hosts: agents that do not come, hosts that find one another, and hosts that are lost."""

from __future__ import annotations

import msgspec
import pytest

from zlaunch import events as ev
from zlaunch.agent import happenings as agent_on
from zlaunch.model import HostFacts, Seat
from zlaunch.protocol import messages as m
from zlaunch.supervisor import effects as do
from zlaunch.supervisor import happenings as on
from zlaunch.testing import Pair, order
from zlaunch.view.report import report


class Watched(Pair):
    """A pair that remembers which seats each host was given."""

    def __init__(self, *workers: int) -> None:
        self.seats: dict[int, tuple[Seat, ...]] = {}
        super().__init__(*workers)

    def _carry_out(self, effect: do.Effect) -> None:
        if isinstance(effect, do.SendStart):
            self.seats[effect.host] = effect.seats
        super()._carry_out(effect)

    def places(self) -> dict[int, tuple[str, str]]:
        """MASTER_ADDR and interface by host."""
        return {host: (seats[0].master_addr, seats[0].interface) for host, seats in self.seats.items()}


def connected(*workers: int) -> Watched:
    pair = Watched(*workers)
    pair.connect()
    assert pair.ready
    return pair


# --- the start ------------------------------------------------------------------------------------------------------


def _come(pair: Pair, index: int) -> None:
    host = pair.hosts[index]
    pair.to_supervisor(host, m.Hello(HostFacts(hostname=host.plan.name, pid=1, cores=8), host.now))


def test_all_hosts_that_fail_within_a_second_are_told_at_once() -> None:
    pair = Pair(1, 1, 1, 1)
    pair.feed(on.AgentGone(1, "refused"))
    _come(pair, 0)
    pair.advance(0.5)
    pair.feed(on.AgentGone(2, "unknown"))
    assert pair.problems == []
    pair.advance(0.6)  # host3 is still on its way, and nothing is known of it
    assert pair.problems == ["host1: refused", "host2: unknown"]
    _come(pair, 3)
    pair.advance(100)
    assert not pair.ready
    assert len(pair.problems) == 2


def test_the_last_host_to_fail_ends_the_waiting() -> None:
    pair = Pair(1, 1)
    _come(pair, 0)
    pair.feed(on.AgentGone(1, "refused"))
    assert pair.problems == ["host1: refused"]


def test_a_host_that_is_lost_while_others_start_is_told() -> None:
    pair = Pair(1, 1)
    _come(pair, 0)
    pair.feed(on.AgentGone(0, "it died"))
    pair.advance(1.1)
    assert pair.problems == ["host0: it died"]
    _come(pair, 1)
    assert not pair.ready


def test_who_is_waited_for_is_told() -> None:
    pair = Pair(1, 1)
    _come(pair, 0)
    pair.advance(60)
    said = [event.text for event in pair.events if isinstance(event, ev.Notice) and event.level == "warning"]
    assert said == ["waiting for the agents of host1"] * 3  # after 5 s, 15 s and 35 s


# --- the way to rank 0 ----------------------------------------------------------------------------------------------


def test_the_first_address_that_all_can_reach_is_the_master() -> None:
    pair = connected(1, 1, 1)
    pair.hosts[0].addresses = ("172.17.0.1", "10.0.0.1", "10.1.0.1")
    pair.hosts[1].blind_to = {"172.17.0.1"}
    pair.hosts[2].blind_to = {"172.17.0.1", "10.0.0.1"}
    pair.submit(order("r", pair))
    assert pair.places() == dict.fromkeys(range(3), ("10.1.0.1", "eth0"))
    for host in pair.hosts:
        host.returns(host.plan.index)
    assert [ended.outcome for ended in pair.ended] == ["succeeded"]
    pair.submit(order("s", pair))
    assert [host.sought for host in pair.hosts] == [1, 1, 1]  # it is known now


def test_where_no_address_is_for_all_each_host_takes_its_own() -> None:
    pair = connected(1, 1, 1)
    pair.hosts[0].addresses = ("10.0.0.1", "10.1.0.1")
    pair.hosts[1].blind_to = {"10.1.0.1"}
    pair.hosts[2].blind_to = {"10.0.0.1"}
    pair.submit(order("r", pair))
    assert [address for address, _ in pair.places().values()] == ["10.0.0.1", "10.0.0.1", "10.1.0.1"]


def test_a_host_that_cannot_reach_rank_0s_fails_the_run_before_it_starts() -> None:
    pair = connected(1, 1, 1)
    pair.hosts[2].blind_to = {"10.0.0.1"}
    pair.submit(order("r", pair))
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert ended.cause is not None
    assert ended.cause.hostname == "host2"
    words = (
        "it cannot reach host0, where rank 0 would be, by any of its addresses: no answer\nHosts of a step must reach"
    )
    assert ended.cause.text.startswith(words)
    assert not pair.seats
    pair.hosts[2].blind_to.clear()  # somebody has opened the firewall: it is tried again
    pair.submit(order("s", pair))
    assert len(pair.seats) == 3


def test_rank_0_is_on_the_host_that_was_named_first() -> None:
    pair = connected(1, 1)
    pair.submit(order("r", pair, 1, 0))
    assert pair.seats[1][0].rank == 0
    assert [host.sought for host in pair.hosts] == [1, 1]
    pair.hosts[1].returns(0)
    pair.hosts[0].returns(1)
    pair.submit(order("s", pair))  # now the other one: its addresses are not known yet
    assert [host.sought for host in pair.hosts] == [2, 2]


def test_a_step_of_one_host_asks_nobody() -> None:
    pair = connected(2, 2)
    pair.submit(order("r", pair, 1))
    assert pair.places() == {1: ("127.0.0.1", "lo")}
    assert [host.sought for host in pair.hosts] == [0, 0]


def test_a_run_that_is_cancelled_while_hosts_look_for_one_another_ends() -> None:
    pair = connected(1, 1)
    looking = pair.hosts[1]
    told: list[m.Reached] = []
    plain = pair.to_supervisor

    def hold(host: object, message: m.ToSupervisor) -> None:
        if isinstance(message, m.Reached) and host is looking:
            told.append(message)
        else:
            plain(host, message)  # type: ignore[arg-type]

    pair.to_supervisor = hold  # type: ignore[assignment,method-assign]
    pair.submit(order("r", pair))
    assert told
    pair.feed(on.Cancelled("r"))
    assert [ended.outcome for ended in pair.ended] == ["cancelled"]
    plain(looking, told[0])  # too late, and harmless
    pair.to_supervisor = plain  # type: ignore[method-assign]
    pair.submit(order("s", pair))
    assert len(pair.seats) == 2


# --- lost hosts -----------------------------------------------------------------------------------------------------


def _elsewhere(pair: Pair) -> None:
    for host in pair.core.hosts.values():
        host.plan = msgspec.structs.replace(host.plan, here=False)


def test_who_could_not_be_asked_is_named() -> None:
    pair = connected(1, 1)
    _elsewhere(pair)
    pair.submit(order("r", pair))
    pair.feed(on.AgentGone(1, "silent"))
    pair.advance(40)
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert ended.unasked == ("host1",)
    assert ended.survivors == ()


def test_a_host_that_had_closed_the_step_was_asked() -> None:
    pair = connected(1, 1)
    _elsewhere(pair)
    pair.submit(order("r", pair))
    pair.hosts[1].returns(1)
    pair.feed(on.AgentGone(1, "silent"))
    pair.hosts[0].returns(0)
    (ended,) = pair.ended
    assert ended.outcome == "succeeded"
    assert ended.unasked == ()


def test_an_idle_cluster_tells_of_a_lost_host_and_works_on_without_it() -> None:
    pair = connected(1, 1)
    pair.advance(3600)
    pair.feed(on.AgentGone(1, "silent"))
    assert [e.hostname for e in pair.events if isinstance(e, ev.AgentLost)] == ["host1"]
    pair.submit(order("both", pair))
    assert [ended.outcome for ended in pair.ended] == ["lost"]
    pair.submit(order("one", pair, 0))
    pair.hosts[0].returns(0)
    assert [ended.outcome for ended in pair.ended] == ["lost", "succeeded"]


def test_an_agent_that_hangs_while_its_connection_stands_is_given_up() -> None:
    pair = connected(1, 1)
    _elsewhere(pair)
    deaf = pair.hosts[1]
    deaf.hangs = True
    pair.submit(order("r", pair, time_limit=5.0))
    pair.advance(19)
    assert not pair.ended
    pair.advance(2)
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert ended.cause is not None
    assert (ended.cause.hostname, ended.cause.text) == ("host1", "its agent does not answer")


def test_an_agent_that_hangs_while_a_step_is_stopped_is_given_up() -> None:
    pair = connected(1, 1)
    _elsewhere(pair)
    pair.submit(order("r", pair, grace=3.0))
    pair.hosts[1].hangs = True
    pair.feed(on.Cancelled("r"))
    pair.advance(22)
    assert not pair.ended
    pair.advance(2)
    (ended,) = pair.ended
    assert ended.outcome == "cancelled"
    assert ended.unasked == ("host1",)


def test_the_way_is_looked_for_again_after_a_failure() -> None:
    pair = connected(1, 1)
    pair.hosts[0].addresses = ("10.0.0.1", "10.1.0.1")
    pair.submit(order("r", pair, max_restarts=1))
    assert pair.places()[1][0] == "10.0.0.1"
    pair.hosts[1].blind_to = {"10.0.0.1"}
    pair.hosts[1].raises(1, "DistNetworkError: timed out", symptom=True)
    pair.advance(10)
    assert pair.places()[1][0] == "10.1.0.1"
    assert pair.hosts[1].sought == 2


def test_a_host_that_is_lost_on_the_way_out_is_named() -> None:
    pair = connected(1, 1)
    _elsewhere(pair)
    pair.submit(order("r", pair))
    pair.hosts[1].hangs = True
    pair.feed(on.Closing())
    pair.advance(1)
    assert not pair.over
    pair.feed(on.AgentGone(1, "silent"))
    (ended,) = pair.ended
    assert ended.outcome == "cancelled"
    assert ended.unasked == ("host1",)
    assert sorted(fate.rank for fate in ended.fates) == [0, 1]
    assert pair.over


def test_a_host_that_is_taken_away_is_the_cause_and_not_the_signals_that_end_its_ranks() -> None:
    pair = connected(2, 2)
    _elsewhere(pair)
    pair.submit(order("r", pair))
    pair.hosts[1].feed(agent_on.SupervisorLost("told to end by SIGTERM"))
    pair.advance(1)
    (ended,) = pair.ended
    assert ended.outcome == "lost"
    assert ended.cause is not None
    assert (ended.cause.hostname, ended.cause.text) == ("host1", "its agent goes: told to end by SIGTERM")
    assert ended.unasked == ()
    assert [fate.signal for fate in sorted(ended.fates, key=lambda fate: fate.rank)] == [15] * 4


@pytest.mark.parametrize(("status", "outcome"), [(None, "cancelled"), (3, "failed")])
def test_who_ends_a_job_may_tell_its_agents_before_us(status: int | None, outcome: str) -> None:
    pair = connected(2, 2)
    pair.submit(order("r", pair))
    pair.hosts[0].ignores_sigterm = {1}
    if status is not None:
        pair.hosts[0].exits(0, status)
    pair.hosts[1].feed(agent_on.SupervisorLost("told to end by SIGTERM", is_there=True))
    pair.advance(0.1)
    pair.feed(on.Cancelled("r"))
    pair.advance(60)
    (ended,) = pair.ended
    assert ended.outcome == outcome
    assert (ended.cause is None) is (status is None)


def test_clocks_that_drift_are_asked_for_again() -> None:
    pair = connected(1, 1)
    pair.hosts[1].clock_offset += 0.2  # an hour's worth
    pair.advance(31)
    pair.submit(order("r", pair))
    pair.hosts[0].raises(0, "ValueError: second", ends=False)
    pair.clock.now += 0.004
    pair.hosts[1].raises(1, "ValueError: third", ends=False)
    pair.advance(2)
    assert pair.ended[0].cause is not None
    assert pair.ended[0].cause.rank == 0


def test_an_answer_that_was_long_on_its_way_tells_nothing_of_the_clock() -> None:
    pair = connected(1)
    host = pair.core.hosts[0]
    host.heard_clock(100.0, 100.0005, 100.001)
    assert abs(host.clock_offset) < 0.0011
    host.heard_clock(200.0, 203.0, 203.0)  # 3 s, all of them on the way there
    assert abs(host.clock_offset) < 0.0011


def test_a_lost_rank_that_had_started_has_its_pid() -> None:
    pair = connected(1, 1)
    pair.submit(order("r", pair))
    pair.feed(on.AgentGone(1, "silent"))
    pair.advance(1)
    assert pair.ended[0].cause is not None
    assert pair.ended[0].cause.pid == 1001


def test_a_lost_host_is_told_in_one_line() -> None:
    pair = connected(1, 3)
    pair.submit(order("r", pair))
    pair.feed(on.AgentGone(1, "silent"))
    pair.advance(1)
    assert [line.text for line in report(pair.ended[0])] == [
        "ranks 1-3 (host1) lost: silent",
        "1 rank was ended by zlaunch with SIGTERM",
        "see whether host1 is up and can be reached; a run can go on without it (--hosts, hostnames)",
        "exit status 125: host1 was lost: silent",
    ]
