"""What ranks do in the tests of MPI. Imported by name on other hosts, too."""

from __future__ import annotations

import os
import time
from typing import NamedTuple


class Place(NamedTuple):
    """A rank, by those who know."""

    environment: tuple[int, int, int]
    """RANK, WORLD_SIZE and LOCAL_RANK."""
    mpi: tuple[int, int, int]
    """The same of MPI: the local rank by who shares memory."""
    torch: tuple[int, int]
    total: float
    """All ranks' numbers, added over MPI, and once more by torch."""
    pid: int


def place() -> Place:
    """Who we are to everybody, and what we are together."""
    import torch
    import torch.distributed as dist
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    near = world.Split_type(MPI.COMM_TYPE_SHARED)
    total = torch.tensor([float(world.allreduce(world.rank))])
    group = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (-1, -1)
    if dist.is_initialized():
        dist.all_reduce(total)
    environment = tuple(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(environment, (world.rank, world.size, near.rank), group, float(total), os.getpid())  # type: ignore[arg-type]


def stay(deaf: bool = False) -> None:
    """Meet the others, say who we are, and wait to be ended."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()
    print("here", os.environ["RANK"], os.getpid(), flush=True)
    while True:
        time.sleep(60)


def abort(status: int) -> None:
    """The second rank ends the world."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        MPI.COMM_WORLD.Abort(status)
    stay()


def once(flag: str) -> tuple[int, int]:
    """Fails in the first attempt, and is well in the second."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt == 0 and world.rank == 1:
        raise ValueError(flag)
    return attempt, int(world.allreduce(1))
