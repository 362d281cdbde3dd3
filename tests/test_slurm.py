"""On a real Slurm: inside of a job, and from outside, where an allocation is asked for, held and given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bed.programs import until
from bed.slurm import Slurm

PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import far_steps, zlaunch
from zlaunch.model import AllocationRequest

launcher = zlaunch.Launcher(hostnames=sys.argv[2], workers_per_host=2, backend=None, preload=(), log_dir=None,
    grace_period=2)
launcher.request = AllocationRequest(**json.loads(sys.argv[3]))
try:
    with launcher as cluster:
        print(json.dumps(cluster.run(far_steps.here).results))
        if "stay" in sys.argv:
            cluster.run(far_steps.stay)
except zlaunch.ZlaunchError as error:
    print(type(error).__name__, error)
"""
HERE = str(Path(__file__).parent)


def argv(hostnames: str, request: str = "{}", *more: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, HERE, hostnames, request, *more]


def results(*hosts: str) -> str:
    world = 2 * len(hosts)
    parts = (f'"{h}": [["{h}", {2 * i}, {world}], ["{h}", {2 * i + 1}, {world}]]' for i, h in enumerate(hosts))
    return f"{{{', '.join(parts)}}}\n"


def nothing_is_left(slurm: Slurm) -> None:
    until(lambda: slurm.ask("squeue", "--noheader") == "", "the queue to be empty")
    assert {host: slurm.bed.processes(host) for host in slurm.bed.hosts} == {host: [] for host in slurm.bed.hosts}


@pytest.mark.parametrize("hostnames", ["slurm", "auto"])
def test_inside_of_an_allocation_its_nodes_are_the_hosts(slurm: Slurm, hostnames: str) -> None:
    done = slurm.run(["salloc", "-N3", *argv(hostnames)])
    assert done.stdout == results("node1", "node2", "node3"), done.stderr
    few = slurm.run(["salloc", "-N3", *argv(hostnames, '{"nodes": 2}')])
    assert few.stdout == results("node1", "node2"), few.stderr
    nothing_is_left(slurm)


def test_in_a_batch_job(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    words = " ".join(map(_quote, argv("slurm")))
    script.write_text(
        f"#!/bin/sh\n#SBATCH -N2 -o {tmp_path}/out.txt --mem-per-cpu=100 --cpus-per-task=2\nexec {words}\n"
    )
    job = slurm.submit(script)
    assert slurm.wait(job, "COMPLETED", "FAILED") == "COMPLETED"
    assert (tmp_path / "out.txt").read_text() == results("node1", "node2")


def test_from_outside_an_allocation_is_asked_for_and_given_back(slurm: Slurm) -> None:
    done = slurm.run(argv("slurm", '{"nodes": 3, "name": "a name; with $words"}'))
    assert done.stdout == results("node1", "node2", "node3"), done.stderr
    nothing_is_left(slurm)


def test_the_wait_is_told_and_can_be_given_up(slurm: Slurm) -> None:
    holder = slurm.popen(
        ["salloc", "-N3", "--exclusive", "sh", "-c", "echo there; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "there\n"
    program = slurm.popen(
        argv("slurm", '{"nodes": 2, "exclusive": true}'), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stderr is not None
    told = program.stderr.readline()
    assert "is PENDING (" in told
    program.send_signal(signal.SIGINT)
    program.wait(20)
    assert slurm.ask("squeue", "--noheader", "--states=PENDING") == ""
    holder.communicate("")
    nothing_is_left(slurm)


def test_what_slurm_refuses_is_told_in_its_words(slurm: Slurm) -> None:
    done = slurm.run(argv("slurm", '{"queue": "nowhere"}'))
    assert done.stdout.startswith("LaunchError Slurm gave no nodes")
    assert "invalid partition specified: nowhere" in done.stdout


@pytest.mark.parametrize("how", ["killed", "cancelled"])
def test_nothing_is_left_however_it_ends(fresh_slurm: Slurm, how: str) -> None:
    program = fresh_slurm.popen(
        argv("slurm", '{"nodes": 2}', "stay"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert program.stdout is not None
    there = 0
    while there < 4:
        line = program.stdout.readline()
        assert line, "the program ended"
        there += "] here " in line
    if how == "killed":
        os.kill(program.pid, signal.SIGKILL)
    else:
        job = fresh_slurm.ask("squeue", "--noheader", "--format=%i").split()[0]
        fresh_slurm.ask("scancel", job)
    rest, _ = program.communicate(timeout=30)
    if how == "cancelled":
        assert "AgentFailedError" in rest
    nothing_is_left(fresh_slurm)


def test_a_lost_node_is_missed_long_before_slurm_misses_it(fresh_slurm: Slurm) -> None:
    program = fresh_slurm.popen(
        argv("slurm", '{"nodes": 3}', "stay"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert program.stdout is not None
    there = 0
    while there < 6:
        there += "] here " in program.stdout.readline()
    fresh_slurm.bed.poweroff("node3")
    rest, _ = program.communicate(timeout=20)  # Slurm would take 30
    assert "AgentFailedError node3" in rest
    assert fresh_slurm.bed.processes("node1") == fresh_slurm.bed.processes("node2") == []


def _quote(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
