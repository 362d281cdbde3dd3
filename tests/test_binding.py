"""Which cores ranks get: machines laid out as files, shares of them, and real ranks in those that they were given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import zlaunch
from zlaunch.model import Domain, Gpu, HostFacts, HostPlan
from zlaunch.plan import place_ranks
from zlaunch.systems.cores import domain_of, domains
from zlaunch.torchenv.binding import shares

ONE = (Domain(0, ((0,), (1,), (2,), (3,))),)
TWO = (Domain(0, ((0, 8), (1, 9), (2, 10), (3, 11))), Domain(1, ((4, 12), (5, 13), (6, 14), (7, 15))))
"""Eight cores of two hardware threads each, numbered as kernels do."""


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def machine(root: Path) -> Path:
    """Two domains of two cores with two hardware threads, memory alone in a third, and a GPU at the second."""
    cpus = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n"
        for cpu in range(8)
    }
    nodes = {"node0": "0-1,4-5", "node1": "2-3,6-7", "node2": ""}
    lists = {f"sys/devices/system/node/{node}/cpulist": f"{cpus}\n" for node, cpus in nodes.items()}
    return lay_out(root, cpus | lists | {"sys/bus/pci/devices/0000:3b:00.0/numa_node": "1\n"})


def test_cores_are_found_by_domain_with_their_hardware_threads(tmp_path: Path) -> None:
    root = machine(tmp_path)
    assert domains(root, frozenset(range(8))) == (Domain(0, ((0, 4), (1, 5))), Domain(1, ((2, 6), (3, 7))))


def test_only_cores_of_our_mask_count(tmp_path: Path) -> None:
    root = machine(tmp_path)
    assert domains(root, frozenset({1, 2, 6})) == (Domain(0, ((1,),)), Domain(1, ((2, 6),)))
    assert domains(root, frozenset({3})) == (Domain(1, ((3,),)),)


def test_a_kernel_that_knows_no_domains_has_one(tmp_path: Path) -> None:
    assert domains(tmp_path, frozenset({1, 0})) == (Domain(-1, ((0,), (1,))),)


def test_a_device_is_at_a_domain_however_its_bus_is_written(tmp_path: Path) -> None:
    root = machine(tmp_path)
    assert domain_of("00000000:3B:00.0", root) == domain_of("0000:3b:00.0\0", root) == 1
    assert domain_of("0000:99:00.0", root) == domain_of("", root) == -1


@pytest.mark.parametrize(
    ("layout", "near", "mode", "expected"),
    [
        (TWO, [-1] * 4, "none", ["", "", "", ""]),
        (ONE, [-1] * 2, "auto", ["", ""]),
        (ONE, [-1] * 2, "core", ["0-1", "2-3"]),
        (ONE, [-1] * 2, "numa", ["0-3", "0-3"]),
        (TWO, [-1] * 4, "auto", ["0-1,8-9", "2-3,10-11", "4-5,12-13", "6-7,14-15"]),
        (TWO, [-1] * 4, "numa", ["0-3,8-11", "0-3,8-11", "4-7,12-15", "4-7,12-15"]),
        (TWO, [-1], "auto", ["0-15"]),
        (TWO, [-1] * 3, "core", ["0-1,8-9", "2-3,10-11", "4-7,12-15"]),
        (TWO, [1, 0], "core", ["4-7,12-15", "0-3,8-11"]),
        (TWO, [1, 1], "core", ["4-5,12-13", "6-7,14-15"]),
        (TWO, [7, -1], "core", ["0-3,8-11", "4-7,12-15"]),
        (ONE, [-1] * 3, "core", ["0", "1", "2-3"]),
        (ONE, [-1] * 6, "core", ["0", "0", "1", "2", "2", "3"]),
    ],
)
def test_shares(layout: tuple[Domain, ...], near: list[int], mode: str, expected: list[str]) -> None:
    from zlaunch.model import span_words

    assert [span_words(share) for share in shares(layout, near, mode)] == expected  # type: ignore[arg-type]


def test_seats_are_near_their_gpus_and_have_as_many_threads_as_cores() -> None:
    gpus = tuple(Gpu(index, "A", 80, domain=1 - index // 2) for index in range(4))
    facts = HostFacts(hostname="a", pid=1, cores=16, domains=TWO, gpus=gpus)
    seats = place_ranks([HostPlan(0, "a", 2)], {0: facts}, bind="auto", gpus_per_worker=2)[0]
    assert [(seat.cpus, seat.threads) for seat in seats] == [
        ((4, 5, 6, 7, 12, 13, 14, 15), 8),
        ((0, 1, 2, 3, 8, 9, 10, 11), 8),
    ]


def test_a_quota_counts_for_threads_and_not_for_cores() -> None:
    facts = HostFacts(hostname="a", pid=1, cores=4, domains=TWO)
    seats = place_ranks([HostPlan(0, "a", 2)], {0: facts}, bind="core")[0]
    assert [(len(seat.cpus), seat.threads) for seat in seats] == [(8, 2), (8, 2)]


def affinity() -> tuple[set[int], str]:
    return os.sched_getaffinity(0), os.environ["OMP_NUM_THREADS"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there are no two cores to be shared out")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_ranks_stay_on_their_cores(start_method: str) -> None:
    ours = os.sched_getaffinity(0)
    launcher = zlaunch.Launcher(
        workers_per_host=2, backend=None, preload=(), bind="core", start_method=start_method, view="none"
    )
    (one, threads), (two, _) = launcher.run(affinity)
    assert one | two == ours
    assert not one & two
    assert threads == str(len(one))


def test_by_default_ranks_of_one_domain_have_all_cores() -> None:
    if len(domains()) > 1:
        pytest.skip("this machine has several domains, where ranks are bound by default")
    launcher = zlaunch.Launcher(workers_per_host=2, backend=None, preload=(), view="none")
    assert [cores for cores, _ in launcher.run(affinity)] == [os.sched_getaffinity(0)] * 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there are no two cores to be shared out")
def test_a_dry_run_shows_the_cores() -> None:
    words = ["run", "--local", "-n", "2", "--bind", "core", "--dry-run", "sh", "-c", "true"]
    done = subprocess.run([sys.executable, "-m", "zlaunch", *words], capture_output=True, text=True, check=True)
    first = min(os.sched_getaffinity(0))
    assert f"  rank 0: on cores {first}" in done.stdout
    assert "  rank 1: on cores " in done.stdout
