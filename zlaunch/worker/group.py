"""Level 4, worker: the process group of a function step, from before the function to after it.

A rank that has nothing to do may come back from its function while others are still connecting to it; gloo then
fails them with "connection closed by peer", and rank 0 takes the store away with it. So the ranks meet twice: once
all are connected, before any function is called (as its first collective would do anyway), and once all have given
their answers, before any goes. The second meeting holds up nobody but those who are early, and those not for long,
but for the rank that has the store in its process: it goes last, may others have hours to go.

They meet at a store of their own. The group's must end with the group: a function may destroy its group and make
another, which would find the first one's addresses in a store that we had kept alive.
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


class Meeting(Struct, frozen=True):
    """Where the ranks of a step wait for each other."""

    store: Store
    rank: int
    world_size: int

    def meet(self, when: str, timeout: timedelta) -> None:
        """Wait until all ranks have come. Raises DistStoreError, or DistNetworkError where rank 0 is gone."""
        everyone = f"{when}: all"
        if self.store.add(when, 1) == self.world_size:
            self.store.set(everyone, "here")
        self.store.wait([everyone], timeout)


def open_group(step: Step, seat: Seat) -> Meeting | None:
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
    meeting = Meeting(_meeting_store(store, seat, timeout), rank, world_size)
    # With the prefix that init_process_group uses where it makes the store itself.
    inner = dist.PrefixStore("default_pg", store)  # type: ignore[attr-defined]
    dist.init_process_group(step.backend, store=inner, rank=rank, world_size=world_size, timeout=timeout)
    meeting.meet("connected", timeout)
    return meeting


def close_group(meeting: Meeting | None) -> None:
    """Wait for the others, and destroy the group if the function has left it; where a peer is gone, not for long."""
    dist = sys.modules.get("torch.distributed")
    patience = _FOR_EVER if meeting is not None and meeting.rank == 0 else _LEAVING

    def leave() -> None:
        if meeting is not None:
            with suppress(Exception):
                meeting.meet("answered", patience)
        with suppress(Exception):
            if dist is not None and dist.is_initialized():
                dist.destroy_process_group()

    if meeting is None and (dist is None or not dist.is_initialized()):
        return
    thread = threading.Thread(target=leave, name="zlaunch-leave", daemon=True)
    thread.start()
    thread.join((patience + _LEAVING).total_seconds())


def _meeting_store(store: Store, seat: Seat, timeout: timedelta) -> Store:
    """Rank 0 opens a second store, at a port that the first one tells of."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    place = "zlaunch/meeting"
    if seat.rank == 0:
        meeting = TCPStore(seat.master_addr, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        store.set(place, str(meeting.port))
        return meeting
    return TCPStore(seat.master_addr, int(store.get(place)), is_master=False, timeout=timeout)


def _choose_gpu(step: Step, seat: Seat) -> None:
    import torch

    device = 0 if step.gpus_per_worker > 1 else seat.local_rank
    torch.cuda.set_device(device)
    if step.gpu_memory_fraction is not None:
        torch.cuda.set_per_process_memory_fraction(step.gpu_memory_fraction, device)
