"""Level 4, worker: the process group of a function step, from before the function to after it.

A rank that has nothing to do may come back from its function while others are still connecting to it; gloo then
fails them with "connection closed by peer", and rank 0 takes the store away with it. So the ranks meet twice: once
all are connected, before any function is called (as its first collective would do anyway), and once all have given
their answers, before any goes. The second meeting holds up nobody but those who are early, and those not for long,
but for the rank that has the store in its process: it goes last, may others have hours to go.

They meet at a store of their own. The group's must end with the group: a function may destroy its group and make
another, which would find the first one's addresses in a store that we had kept alive.

Where all ranks are on one host, both stores are a FileStore in a memfd that the fork template hands to all of them.
That has no server that could leave first, and no name lookup.

Ranks of several hosts have a TCPStore, which rank 0 serves at a port of its own, told at MASTER_PORT, which is given
back before any function is called. So MASTER_PORT is free, here as there, for a function that makes a group or a
TCPStore itself. A TCPStore asks for the names of its peers' addresses, to have them for its log: with libuv or
without, at both ends, and also where it was given an address. /etc/hosts does not know ::ffff:10.0.0.1, and where no
name server answers, each question takes 10 s (seen: four ranks have a store after 10 s, or after 0.02 s when nobody is
asked). So no name server is asked while the ranks meet.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from ..model import Seat, Step
from . import linux
from .ending import says_that_a_peer_is_gone

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store  # type: ignore[attr-defined]  # public, though torch's __init__ has no __all__

_LEAVING = timedelta(seconds=5)
"""How long a rank whose answer has been given may wait for the others, and then for its group to be destroyed."""

_ABANDONING = 1.0
"""Seconds for a rank that has failed to destroy its group."""

_FOR_EVER = timedelta(days=365)

_ASKING = timedelta(seconds=1)
"""How much longer rank 0 waits for those who do not come, so that the others can ask its store who is missing."""

_NAMED = 10
"""Ranks that an error names."""


class Meeting(Struct, frozen=True):
    """Where the ranks of a step wait for each other."""

    store: Store
    seat: Seat
    has_server: bool
    """Rank 0 serves it, so that rank 0 leaves last."""

    def come(self, when: str) -> None:
        """Say that this rank is there, and where its host's ranks are."""
        first = self.seat.rank - self.seat.local_rank
        self.store.set(f"{when}: {self.seat.rank}", f"{first} {self.seat.local_world_size} {self.seat.hostname}")

    def meet(self, when: str, timeout: timedelta) -> None:
        """Wait until all ranks have come.

        Raises:
            DistStoreError: not all have; which ones.
            DistNetworkError: rank 0 is gone.
        """
        everyone = f"{when}: all"
        self.come(when)
        if self.store.add(when, 1) == self.seat.world_size:
            self.store.set(everyone, "here")
        serves = self.has_server and self.seat.rank == 0
        try:
            self.store.wait([everyone], timeout + _ASKING if serves else timeout)
        except Exception as error:
            if words := self.whom_it_waits_for(when, timeout):
                raise type(error)(words) from None
            raise

    def whom_it_waits_for(self, when: str, timeout: timedelta) -> str:
        """The words for those who have not come, each with its host where one of that host's ranks has; or nothing."""
        there = [rank for rank in range(self.seat.world_size) if self.store.check([f"{when}: {rank}"])]
        late = sorted({*range(self.seat.world_size)}.difference(there))
        if not late:
            return ""
        host_of: dict[int, str] = {}
        for rank in there:
            if rank not in host_of:
                first, count, host = self.store.get(f"{when}: {rank}").decode().split(" ", 2)
                host_of |= dict.fromkeys(range(int(first), int(first) + int(count)), host)
        hosts: dict[str, list[int]] = {}
        for rank in late:
            hosts.setdefault(host_of.get(rank, ""), []).append(rank)
        return f"Timed out after {timeout.total_seconds():g} s waiting for {_names(hosts)} ({when})"

    def who_has_left(self) -> str:
        """The words for those who have come back from the function, each with its host; or nothing.

        Of a store whose rank is gone nothing is asked: torch would print the stack of what it was asked by.
        """
        if self.has_server:
            server = cast("Any", self.store).underlying_store  # torch types the base class alone
            socket.create_connection((server.host, server.port), _ABANDONING).close()
        hosts: dict[str, list[int]] = {}
        for rank in range(self.seat.world_size):
            if self.store.check([f"answered: {rank}"]):
                host = self.store.get(f"answered: {rank}").decode().split(" ", 2)[2]
                hosts.setdefault(host, []).append(rank)
        return _names(hosts)


def open_group(step: Step, seat: Seat, place: int) -> Meeting | None:
    """Choose the rank's GPU and make its process group, if the step wants one; ``place`` is the host's memfd.

    Raises:
        DistStoreError: some ranks have not come within the timeout; which, and of which hosts.
        RuntimeError: the PyTorch here has no such backend.
    """
    options: dict[str, Any] = {}
    if step.backend:
        _check_backend(step.backend)
    if step.backend == "nccl" or step.gpu_memory_fraction is not None:
        device = choose_gpu(step, seat)
        if step.backend == "nccl":  # its communicator is made at once, and on no other GPU
            options["device_id"] = device
    if not step.backend:
        return None
    import torch.distributed as dist

    timeout = timedelta(seconds=step.timeout)
    if step.backend == "mpi":  # MPI knows the ranks by itself, and waits for all of them
        dist.init_process_group("mpi", timeout=timeout)
        return None
    group, meeting = _meet_in(place, seat, timeout) if seat.nodes == 1 else _meet_over_tcp(seat, timeout)
    if step.backend != "gloo" and seat.nodes == 1:
        meeting.meet("joined", timeout)
    options |= {"store": group, "rank": seat.rank, "world_size": seat.world_size, "timeout": timeout}
    try:
        dist.init_process_group(step.backend, **options)
    except Exception as error:  # gloo waits for all by itself, and does not say for whom
        words = meeting.whom_it_waits_for("joined", timeout) if _is_about_time(error) else ""
        if words:
            raise dist.DistStoreError(words) from None
        raise
    meeting.meet("connected", timeout)
    return meeting


def _check_backend(name: str) -> None:
    import torch
    import torch.distributed as dist

    if not dist.is_backend_available(name):
        raise RuntimeError(f"backend is {name!r}, and the PyTorch here ({torch.__version__}) is built without it")


def _is_about_time(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("timed out", "timeout"))


def close_group(meeting: Meeting | None) -> None:
    """Wait for the others, and destroy the group if the function has left it; where a peer is gone, not for long."""
    dist = sys.modules.get("torch.distributed")
    serves = meeting is not None and meeting.has_server and meeting.seat.rank == 0
    patience = _FOR_EVER if serves else _LEAVING

    def leave() -> None:
        if meeting is not None:
            with suppress(Exception):
                meeting.meet("answered", patience)
        _destroy()

    if meeting is None and (dist is None or not dist.is_initialized()):
        return
    _within((patience + _LEAVING).total_seconds(), leave)


def tell_who_has_left(error: BaseException, meeting: Meeting | None) -> None:
    """Add to an error that only says that a peer does not answer which ranks had gone by then, and answer no more."""
    if meeting is None or not says_that_a_peer_is_gone(error):
        return
    found: list[str] = []

    def ask() -> None:
        with suppress(Exception):
            found.append(meeting.who_has_left())

    _within(_ABANDONING, ask)
    if found and found[0]:
        error.add_note(f"{found[0]} had come back from the function by then, and took part in nothing more")


def abandon_group() -> None:
    """Destroy the group of a rank that has failed, without a word to the others: they are ended, or fail by it."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_initialized():
        _within(_ABANDONING, _destroy)


def _destroy() -> None:
    with suppress(Exception):
        dist = sys.modules["torch.distributed"]
        if dist.is_initialized():
            dist.destroy_process_group()


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Do it; where it takes longer, come back without: a backend may wait for a peer that is gone.

    A new thread's GPU is the first one. All of a host's ranks would make a context there, so it gets the rank's own.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    device = cuda.current_device() if cuda is not None and cuda.is_initialized() else -1

    def on_our_gpu() -> None:
        if cuda is not None and device >= 0:
            cuda.set_device(device)
        work()

    thread = threading.Thread(target=on_our_gpu, name="zlaunch-leave", daemon=True)
    thread.start()
    thread.join(seconds)


def _meet_in(place: int, seat: Seat, timeout: timedelta) -> tuple[Store, Meeting]:
    """The group's store and the meeting, for ranks that share a host."""
    from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]

    store = FileStore(f"/proc/self/fd/{place}", seat.world_size)
    store.set_timeout(timeout)
    meeting = Meeting(PrefixStore("meeting", store), seat, has_server=False)
    meeting.come("joined")
    return PrefixStore("group", store), meeting


def _meet_over_tcp(seat: Seat, timeout: timedelta) -> tuple[Store, Meeting]:
    """The same for ranks of several hosts; they have all met when this returns."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    def store_at(port: int) -> TCPStore:
        serves = seat.rank == 0
        if not serves:
            _await_listener(seat.master_addr, port, timeout)
        return TCPStore(seat.master_addr, port, is_master=serves, timeout=timeout, wait_for_workers=False)

    with linux.no_name_servers(seat.master_addr):
        door = store_at(seat.master_port)
        if seat.rank == 0:
            store = store_at(0)
            door.set("port", str(store.port))
        else:
            store = store_at(int(door.get("port")))
        meeting = Meeting(PrefixStore("meeting", store), seat, has_server=True)
        meeting.meet("joined", timeout)
        del door  # rank 0 comes to the next meeting without it: until then nobody uses MASTER_PORT
    return PrefixStore("group", store), meeting


def _await_listener(address: str, port: int, timeout: timedelta) -> None:
    """Come back when somebody listens there: TCPStore itself looks again only after half a second, and then later."""
    from torch.distributed import DistNetworkError

    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        try:
            socket.create_connection((address, port), deadline - time.monotonic()).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        except OSError:
            return  # TCPStore has the words for it
        else:
            return
    raise DistNetworkError(f"Timed out after {timeout.total_seconds():g} s waiting for rank 0 at {address} port {port}")


def _names(hosts: Mapping[str, list[int]]) -> str:
    return " and ".join(_name(ranks) + (f" on {host}" if host else "") for host, ranks in hosts.items())


def _name(ranks: list[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:_NAMED])
    return f"rank{'s'[: len(ranks) - 1]} {shown}{', ...' if len(ranks) > _NAMED else ''}"


def choose_gpu(step: Step, seat: Seat) -> torch.device:
    """Make the rank's own GPU the current one, bound what it may take of its memory, and say which it is."""
    import torch

    device = torch.device("cuda", 0 if step.gpus_per_worker > 1 else seat.local_rank)
    torch.cuda.set_device(device)
    if step.gpu_memory_fraction is not None:
        torch.cuda.set_per_process_memory_fraction(step.gpu_memory_fraction, device)
    return device
