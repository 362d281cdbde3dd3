"""The process group of a function step holds until every rank is through, however unlike their pace."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from bed import Bed

import zlaunch
from zlaunch.worker import group


def rank() -> int:
    return int(os.environ["RANK"])


def test_a_rank_that_is_through_at_once_takes_nothing_from_the_others(cluster: zlaunch.Launcher) -> None:
    """Rank 0 hosts the store: it may come back at once while the others have yet to find each other there."""

    def pair_up() -> float:
        if rank():
            time.sleep(0.5)
        pair = dist.new_group([1, 2])
        if rank() == 0:
            return -1.0
        total = torch.ones(1)
        dist.all_reduce(total, group=pair)
        return float(total.item())

    assert list(cluster.on(workers_per_host=3, backend="gloo").run(pair_up)) == [-1.0, 2.0, 2.0]


def test_functions_that_return_at_once(cluster: zlaunch.Launcher) -> None:
    """Some ranks are done before others have finished connecting to them: that is no failure."""
    world = cluster.on(workers_per_host=4, backend="gloo")
    for _ in range(10):
        assert list(world.run(rank)) == [0, 1, 2, 3]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_function_may_destroy_its_group_and_make_another(cluster: zlaunch.Launcher, start_method: str) -> None:
    """As in a program of its own: the new group's store has nothing of the old one in it.

    Once: torch's own TCPStore, destroyed and made anew at one port, may meet its predecessor's last connections.
    """

    def again() -> float:
        total = torch.ones(1)
        dist.destroy_process_group()
        dist.init_process_group("gloo")
        dist.all_reduce(total)
        return float(total.item())

    assert list(cluster.on(backend="gloo", start_method=start_method).run(again)) == [2.0, 2.0]


def test_some_ranks_may_destroy_their_group_and_others_not(cluster: zlaunch.Launcher) -> None:
    def leave(who: int) -> int:
        if rank() == who:
            dist.destroy_process_group()
        return rank()

    for who in (0, 1):
        assert list(cluster.on(backend="gloo", time_limit=20).run(leave, who)) == [0, 1]


# --- who does not come, and who goes ----------------------------------------------------------------------------------


class OnRank:
    """An argument that does something while one rank unpacks it: that is before its process group is made."""

    def __init__(self, who: int, deed: Callable[[], object]) -> None:
        self.who, self.deed = who, deed

    def __reduce__(self) -> tuple[object, ...]:
        who, deed = self.who, self.deed
        return (lambda: deed() if os.environ["RANK"] == str(who) else None), ()


def fail() -> None:
    raise FileNotFoundError("no data here")


def test_a_rank_that_never_joins_is_named(cluster: zlaunch.Launcher) -> None:
    world = cluster.on(workers_per_host=3, backend="gloo", worker_timeout=2)
    with pytest.raises(
        dist.DistStoreError, match=r"Timed out after . s waiting for rank 1 on localhost \(joined\)"
    ) as e:
        world.run(lambda _: rank(), OnRank(1, signal.pause))
    fates = {fate.rank: fate for fate in e.value.__cause__.failures}  # type: ignore[union-attr]
    assert fates[1].stopped
    assert e.value.__cause__.rank in (0, 2)  # type: ignore[union-attr]


def test_a_rank_that_leaves_before_it_joins_is_not_waited_for(cluster: zlaunch.Launcher) -> None:
    world = cluster.on(workers_per_host=3, backend="gloo", worker_timeout=60)
    began = time.monotonic()
    with pytest.raises(zlaunch.WorkerFailedError) as e:
        world.run(lambda _: rank(), OnRank(1, lambda: os._exit(0)))
    assert (e.value.rank, e.value.hostname, e.value.exit_code) == (1, "localhost", 0)
    with pytest.raises(zlaunch.SerializationError, match="no data here"):
        world.run(lambda _: rank(), OnRank(1, fail))
    assert time.monotonic() - began < 20


def go_without_the_others(gone: list[int]) -> None:
    if rank() not in gone:
        dist.barrier()


def test_a_rank_that_leaves_the_others_waiting_is_named(cluster: zlaunch.Launcher) -> None:
    world = cluster.on(workers_per_host=3, backend="gloo", worker_timeout=1)
    with pytest.raises(RuntimeError) as e:
        world.run(go_without_the_others, [1])
    assert e.value.__cause__.rank in (0, 2)  # type: ignore[union-attr]
    assert e.value.__notes__[0].startswith("rank 1 on localhost had come back from the function by then")


def test_hosts_of_those_who_never_join(bed: Bed) -> None:
    launcher = zlaunch.Launcher(
        hostnames=["node1", "node2"],
        workers_per_host=2,
        backend="gloo",
        worker_timeout=3,
        ssh_config_file=str(bed.ssh_config),
        log_dir=None,
        view="none",
        grace_period=1,
    )
    with launcher:
        with pytest.raises(dist.DistStoreError, match=r"waiting for rank 3 on node2 \(joined\)"):
            launcher.run(lambda _: rank(), OnRank(3, signal.pause))
        with pytest.raises(zlaunch.WorkerFailedError) as e:
            launcher.run(lambda _: rank(), OnRank(2, lambda: os._exit(0)))
        assert (e.value.rank, e.value.hostname, e.value.exit_code) == (2, "node2", 0)
        with pytest.raises(RuntimeError) as left:
            launcher.on(worker_timeout=1).run(go_without_the_others, [0, 3])
        assert left.value.__notes__[0].startswith("rank 0 on node1 and rank 3 on node2 had come back from")


@pytest.mark.parametrize("way", ["return", "exit 0", "exit 3", "raise", "interrupt"])
def test_the_group_is_destroyed_on_every_way_out(cluster: zlaunch.Launcher, tmp_path: Path, way: str) -> None:
    def leave() -> None:
        import atexit
        import sys

        file = tmp_path / f"{way}.{rank()}"
        atexit.register(lambda: file.write_text(str(dist.is_initialized())))
        match way:
            case "exit 0" | "exit 3":
                sys.exit(int(way[-1]))
            case "raise":
                raise ValueError
            case "interrupt":
                raise KeyboardInterrupt

    world = cluster.on(backend="gloo", workers_per_host=1)
    try:
        world.run(leave)
    except (ValueError, zlaunch.WorkerFailedError):
        assert way in ("raise", "exit 3", "interrupt")
    assert (tmp_path / f"{way}.0").read_text() == "False"


def test_a_forked_child_that_fails_leaves_its_parents_group_alone(cluster: zlaunch.Launcher) -> None:
    def work() -> float:
        total = torch.ones(1)
        if os.fork() == 0:
            raise SystemExit(3)
        os.wait()
        dist.all_reduce(total)
        return float(total.item())

    assert list(cluster.on(backend="gloo").run(work)) == [2.0, 2.0]


@pytest.mark.parametrize("backend", ["mpi", "ucc"])
def test_a_backend_that_the_pytorch_there_has_not(cluster: zlaunch.Launcher, backend: Literal["mpi", "ucc"]) -> None:
    if dist.is_backend_available(backend):
        pytest.skip(f"this PyTorch has {backend}")
    with pytest.raises(RuntimeError, match=f"backend is '{backend}', and the PyTorch here .* is built without it"):
        cluster.on(backend=backend, workers_per_host=1).run(int)


def test_a_thread_that_leaves_the_group_uses_the_ranks_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own words for it stand in for a GPU: a new thread would begin on the first one."""
    chosen: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: chosen.append((threading.current_thread().name, gpu)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: chosen.append(("left", -1)))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    group.abandon_group()
    assert chosen == [("zlaunch-leave", 3), ("left", -1)]
