"""Level 4, worker: the process group of a function step, from before the function to after it.

A rank that has nothing to do may come back from its function while others are still connecting to it; gloo then
fails them with "connection closed by peer", and rank 0 takes the store away with it. So the ranks meet twice at
the store: once all are connected, before any function is called (as its first collective would do anyway), and
once all have given their answers, before any goes. The second meeting holds up nobody but those who are early,
and those not for long, but for the rank that has the store in its process: it goes last, may others have hours to go.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from msgspec import Struct

from ..model import Seat, Step

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # public, though torch's __init__ has no __all__

_LEAVING = timedelta(seconds=5)
"""How long a rank whose answer has been given may wait for the others, and then for its group to be destroyed."""


_FOR_EVER = timedelta(days=365)


class Group(Struct, frozen=True):
    """A process group that was made for a function, with the store in which its ranks meet."""

    store: Store
    rank: int
    world_size: int

    def meet(self, place: str, timeout: timedelta) -> None:
        """Wait until all ranks have come here. Raises DistStoreError, or DistNetworkError where the store is gone."""
        store, everyone = self.store, f"zlaunch/{place}/everyone"
        if store.add(f"zlaunch/{place}", 1) == self.world_size:
            store.set(everyone, "here")
        store.wait([everyone], timeout)


def open_group(step: Step, seat: Seat) -> Group | None:
    """Choose the rank's GPU and make its process group, if the step wants one."""
    if step.backend == "nccl" or step.gpu_memory_fraction is not None:
        _choose_gpu(step, seat)
    if not step.backend:
        return None
    import torch.distributed as dist

    timeout = timedelta(seconds=step.timeout)
    if step.backend == "mpi":  # MPI knows the ranks by itself, and waits for all of them
        dist.init_process_group("mpi", timeout=timeout)
        return None
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    store.set_timeout(timeout)
    group = Group(store, rank, world_size)
    # With the prefix that init_process_group uses where it makes the store itself.
    inner = dist.PrefixStore("default_pg", store)  # type: ignore[attr-defined]
    dist.init_process_group(step.backend, store=inner, rank=rank, world_size=world_size, timeout=timeout)
    group.meet("connected", timeout)
    return group


def close_group(group: Group | None) -> None:
    """Wait for the others, and destroy the group if the function has left it; where a peer is gone, not for long."""
    dist = sys.modules.get("torch.distributed")
    keeps_store = group is not None and group.rank == 0
    patience = _FOR_EVER if keeps_store else _LEAVING

    def leave() -> None:
        if group is not None:
            with suppress(Exception):
                group.meet("answered", patience)
        with suppress(Exception):
            if dist is not None and dist.is_initialized():
                dist.destroy_process_group()

    if group is None and (dist is None or not dist.is_initialized()):
        return
    thread = threading.Thread(target=leave, name="zlaunch-leave", daemon=True)
    thread.start()
    thread.join((patience + _LEAVING).total_seconds())


def _choose_gpu(step: Step, seat: Seat) -> None:
    import torch

    device = 0 if step.gpus_per_worker > 1 else seat.local_rank
    torch.cuda.set_device(device)
    if step.gpu_memory_fraction is not None:
        torch.cuda.set_per_process_memory_fraction(step.gpu_memory_fraction, device)
