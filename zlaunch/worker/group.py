"""Level 4, worker: the process group of a function step, from before the function to after it.

A rank that has nothing to do may come back from its function while others are still connecting to it; gloo then
fails them with "connection closed by peer", and rank 0 takes the store away with it. So the ranks meet twice: once
all are connected, before any function is called (as its first collective would do anyway), and once all have given
their answers, before any goes. The second meeting holds up nobody but those who are early, and those not for long,
but for the rank that has the store in its process: it goes last, may others have hours to go.

They meet at a store of their own. The group's must end with the group: a function may destroy its group and make
another, which would find the first one's addresses in a store that we had kept alive.

Where all ranks are on one host, both stores are a FileStore in a memfd that the fork template hands to all of them.
That has no server that could leave first, and no name lookup: a TCPStore asks for the names of its peers' addresses
(of ::ffff:127.0.0.1, which /etc/hosts does not answer), and where no name server answers either, it stands for 5 s,
and often for 10. MASTER_PORT stays free for a function that makes a group or a TCPStore of its own.
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
    has_server: bool
    """Rank 0 serves it, so that rank 0 leaves last."""

    def meet(self, when: str, timeout: timedelta) -> None:
        """Wait until all ranks have come. Raises DistStoreError, or DistNetworkError where rank 0 is gone."""
        everyone = f"{when}: all"
        if self.store.add(when, 1) == self.world_size:
            self.store.set(everyone, "here")
        self.store.wait([everyone], timeout)


def open_group(step: Step, seat: Seat, place: int) -> Meeting | None:
    """Choose the rank's GPU and make its process group, if the step wants one; ``place`` is the host's memfd."""
    if step.backend == "nccl" or step.gpu_memory_fraction is not None:
        choose_gpu(step, seat)
    if not step.backend:
        return None
    import torch.distributed as dist

    timeout = timedelta(seconds=step.timeout)
    if step.backend == "mpi":  # MPI knows the ranks by itself, and waits for all of them
        dist.init_process_group("mpi", timeout=timeout)
        return None
    group, meetings = _stores_in(place, seat, timeout) if seat.nodes == 1 else _stores_over_tcp(seat, timeout)
    meeting = Meeting(meetings, seat.rank, seat.world_size, has_server=seat.nodes > 1)
    dist.init_process_group(step.backend, store=group, rank=seat.rank, world_size=seat.world_size, timeout=timeout)
    meeting.meet("connected", timeout)
    return meeting


def close_group(meeting: Meeting | None) -> None:
    """Wait for the others, and destroy the group if the function has left it; where a peer is gone, not for long."""
    dist = sys.modules.get("torch.distributed")
    patience = _FOR_EVER if meeting is not None and meeting.has_server and meeting.rank == 0 else _LEAVING

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


def _stores_in(place: int, seat: Seat, timeout: timedelta) -> tuple[Store, Store]:
    """The group's store and the meetings', for ranks that share a host."""
    from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]

    store = FileStore(f"/proc/self/fd/{place}", seat.world_size)
    store.set_timeout(timeout)
    return PrefixStore("group", store), PrefixStore("meeting", store)


def _stores_over_tcp(seat: Seat, timeout: timedelta) -> tuple[Store, Store]:
    """The same for ranks of several hosts: rank 0 serves both, the second at a port that the first one tells of."""
    from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

    store = next(rendezvous("env://", timeout=timeout))[0]
    store.set_timeout(timeout)
    key = "zlaunch/meeting"
    if seat.rank == 0:
        meetings = TCPStore(seat.master_addr, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        store.set(key, str(meetings.port))
    else:
        meetings = TCPStore(seat.master_addr, int(store.get(key)), is_master=False, timeout=timeout)
    return PrefixStore("zlaunch/group", store), meetings


def choose_gpu(step: Step, seat: Seat) -> None:
    """Make the rank's own GPU the current one, and bound what it may take of its memory."""
    import torch

    device = 0 if step.gpus_per_worker > 1 else seat.local_rank
    torch.cuda.set_device(device)
    if step.gpu_memory_fraction is not None:
        torch.cuda.set_per_process_memory_fraction(step.gpu_memory_fraction, device)
