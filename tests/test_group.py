"""The process group of a function step holds until every rank is through, however unlike their pace."""

from __future__ import annotations

import os
import time

import pytest
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
