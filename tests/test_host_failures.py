"""Hosts, agents, ranks and supervisors that die, freeze or are cut off: who notices, when, and what is left.

The hosts are real (namespaces with their own sshd); the times are printed, and stand in the docs. What a test demands
is what is promised, with room for a busy machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bed import Bed
from far_rig import Stay, _watch, far, staying
from far_steps import here, stay

import zlaunch

AT_ONCE, SILENCE, OWN_END = 3.0, 8.0, 15.0
"""Seconds: what is seen at once (promised: 0.1; a busy machine has less than silence takes), a silent host (promised:
6), and ranks that nobody can end."""

Tell = Callable[[str], None]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Say something to whoever looks at the tests' output."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}")

    return say


def lost(there: Stay, host: str) -> float:
    """The host's loss is raised, and named; returns when."""
    error, took = there.error()
    assert isinstance(error, zlaunch.AgentFailedError), error
    assert error.hostname == host
    return took


def test_a_dead_rank_is_missed_at_once(fresh_bed: Bed, tell: Tell) -> None:
    with staying(fresh_bed, workers_per_host=2) as there:
        pid = there.rank("node3", 1)
        there.begin()
        os.kill(pid, signal.SIGKILL)
        error, took = there.error()
        assert isinstance(error, zlaunch.WorkerFailedError)
        assert (error.rank, error.hostname, error.signal) == (5, "node3", signal.SIGKILL)
        assert error.unasked == []
        assert took < AT_ONCE
        tell(f"rank killed: raised after {took * 1e3:.0f} ms")


def test_a_dead_agent_is_missed_at_once(fresh_bed: Bed, tell: Tell) -> None:
    with staying(fresh_bed, workers_per_host=2) as there:
        pid = there.agent("node2")
        there.begin()
        os.kill(pid, signal.SIGKILL)
        took = lost(there, "node2")
        ended = max(map(there.gone, ["node2"]))
        assert took < AT_ONCE
        tell(f"agent killed: raised after {took:.2f} s, its ranks gone after {ended:.2f} s")


def test_a_killed_host_is_missed_at_once(fresh_bed: Bed, tell: Tell) -> None:
    with staying(fresh_bed) as there:
        there.begin()
        fresh_bed.kill("node1")
        took = lost(there, "node1")
        assert took < AT_ONCE
        tell(f"host killed: raised after {took:.2f} s")


def test_a_host_without_power_is_missed_soon(fresh_bed: Bed, tell: Tell) -> None:
    with staying(fresh_bed) as there:
        there.begin()
        fresh_bed.poweroff("node2")
        error, took = there.error()
        assert isinstance(error, zlaunch.AgentFailedError)
        assert error.hostname == "node2"
        assert error.unasked == ["node2"]
        assert "Not to be asked what is alive there: node2" in str(error)
        assert took < SILENCE
        tell(f"host without power: raised after {took:.1f} s")


def test_a_frozen_host_is_missed_soon_and_ends_its_ranks_when_it_wakes(fresh_bed: Bed, tell: Tell) -> None:
    with staying(fresh_bed) as there:
        there.begin()
        fresh_bed.freeze("node2")
        took = lost(there, "node2")
        assert took < SILENCE
        there.begin()
        fresh_bed.thaw("node2")
        ended = there.gone("node2")
        assert ended < OWN_END
        tell(f"host frozen: raised after {took:.1f} s; its ranks gone {ended:.1f} s after it woke")


def test_a_cut_of_two_seconds_is_nothing(fresh_bed: Bed) -> None:
    with staying(fresh_bed) as there:
        fresh_bed.cut("node1")
        with pytest.raises(TimeoutError):
            there.run.result(2.0)
        fresh_bed.heal("node1")
        with pytest.raises(TimeoutError):
            there.run.result(5.0)  # longer than silence may last
        there.run.cancel()
        error, _ = there.error()
        assert isinstance(error, zlaunch.RunCancelled)
        assert error.unasked == []
        assert there.launcher.on(hosts=2).run(here).results["node1"] == [("node1", 0, 2)]


@pytest.mark.parametrize("way", ["both ways", "incoming", "outgoing"])
def test_a_host_that_is_cut_off_is_missed_soon_and_ends_its_ranks(fresh_bed: Bed, tell: Tell, way: str) -> None:
    with staying(fresh_bed, deaf=True) as there:
        there.begin()
        fresh_bed.cut("node3", incoming=way != "outgoing", outgoing=way != "incoming")
        took = lost(there, "node3")
        ended = there.gone("node3")
        assert took < SILENCE + 2  # and the other ranks' grace
        assert ended < OWN_END
        tell(f"host cut off, {way}: raised after {took:.1f} s (2 s of them grace), its ranks gone after {ended:.1f} s")


def test_a_longer_silence_can_be_allowed(fresh_bed: Bed, tell: Tell) -> None:
    with staying(fresh_bed, "node1", "node2", host_timeout=9) as there:
        there.begin()
        fresh_bed.cut("node2")
        with pytest.raises(TimeoutError):
            there.run.result(7)
        took = lost(there, "node2")
        tell(f"host cut off, with host_timeout=9: raised after {took:.1f} s")


def test_a_slow_link_that_loses_packets_is_only_slow(fresh_bed: Bed, tell: Tell) -> None:
    fresh_bed.slow("node2", 200, 1)
    with staying(fresh_bed, "node1", "node2") as there:
        pid = there.rank("node2")
        there.begin()
        os.kill(pid, signal.SIGKILL)
        error, took = there.error()
        assert isinstance(error, zlaunch.WorkerFailedError)
        assert error.hostname == "node2"
        tell(f"slow link (200 ms each way, 1% loss), rank killed: raised after {took:.1f} s")
        for _ in range(3):
            assert there.launcher.run(here).results == {"node1": [("node1", 0, 2)], "node2": [("node2", 1, 2)]}


def test_an_idle_cluster_notices_a_lost_host_and_works_on_without_it(fresh_bed: Bed) -> None:
    with far(fresh_bed) as launcher:
        assert len(launcher.run(here)) == 3
        fresh_bed.kill("node2")
        with pytest.raises((zlaunch.AgentFailedError, zlaunch.LaunchError), match="node2"):
            launcher.run(here)
        rest = launcher.on(hostnames=["node1", "node3"]).run(here)
        assert [host for host, _, _ in rest] == ["node1", "node3"]


# --- the supervisor -------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import zlaunch
from far_steps import stay
zlaunch.Launcher(hostnames=sys.argv[3:], ssh_config_file=sys.argv[2], workers_per_host=1, backend=None, preload=(),
    log_dir=None, grace_period=2).run(stay)
"""


def _program(bed: Bed) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(bed.ssh_config), *bed.hosts]
    program = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert program.stdout is not None
    there = 0
    while there < len(bed.hosts):
        line = program.stdout.readline()
        assert line, "the program ended"
        there += "] here " in line
    return program


def test_a_killed_supervisor_takes_everything_along(fresh_bed: Bed, tell: Tell) -> None:
    program = _program(fresh_bed)
    there = Stay.__new__(Stay)
    there.bed, there._pidfds = fresh_bed, {host: _watch(fresh_bed, host) for host in fresh_bed.hosts}
    there.begin()
    program.kill()
    ended = max(map(there.gone, fresh_bed.hosts))
    program.communicate()
    assert ended < OWN_END
    tell(f"supervisor killed: nothing alive on any host after {ended:.2f} s")


def test_a_supervisor_that_is_cut_off_says_so_and_all_ranks_end(fresh_bed: Bed, tell: Tell) -> None:
    with staying(fresh_bed, deaf=True) as there:
        there.begin()
        for host in fresh_bed.hosts:
            fresh_bed.cut(host)
        error, took = there.error()
        assert isinstance(error, zlaunch.AgentFailedError)
        assert sorted(error.unasked) == fresh_bed.hosts
        ended = max(map(there.gone, fresh_bed.hosts))
        assert took < SILENCE
        assert ended < OWN_END
        tell(f"supervisor cut off: raised after {took:.1f} s, all ranks gone after {ended:.1f} s")


assert stay  # what the program above imports
