"""The process group of a function step holds until every rank is through, however unlike their pace."""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist

import zlaunch


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


def test_a_function_may_destroy_its_group_and_make_another(cluster: zlaunch.Launcher) -> None:
    def again() -> float:
        dist.destroy_process_group()
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        return float(total.item())

    assert list(cluster.on(backend="gloo").run(again)) == [2.0, 2.0]
