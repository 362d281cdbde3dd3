"""Level 4, worker: a rank in its MPI world: how ranks find each other there, and how they leave it.

The launcher's variables are in the rank's environment, so ``MPI_Init`` makes it what it was called for. mpi4py's MPI
may be another than the launcher's, though: then each rank is alone, "0 of 1", and would wait for the others for ever.
"""

from __future__ import annotations

import os
import sys

import msgspec

from ..model import Seat


def meet(seat: Seat) -> Seat:
    """Enter the world; the seat with rank 0's address and port as they came from there, and so in the environment.

    Raises:
        RuntimeError: mpi4py cannot be loaded here, or its MPI knows nothing of this world.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        why = f"rendezvous over MPI needs mpi4py, which cannot be loaded on {seat.hostname}: {error}"
        raise RuntimeError(why) from error
    world = MPI.COMM_WORLD
    if (world.rank, world.size) != (seat.rank, seat.world_size):
        ours = MPI.Get_library_version().split(",")[0].split("\n")[0].strip()
        raise RuntimeError(
            f"rank {seat.rank} of {seat.world_size} is {world.rank} of {world.size} in MPI.COMM_WORLD: the MPI that "
            f"mpi4py has on {seat.hostname} ({ours}) is not that of the launcher which started it; load the module "
            "of one MPI for both, or install mpi4py for the launcher's"
        )
    place = world.bcast((seat.master_addr, seat.master_port) if seat.rank == 0 else None)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place[0], str(place[1])
    return msgspec.structs.replace(seat, master_addr=place[0], master_port=place[1])


def leave() -> None:
    """Leave the world, if this process is in one: an end by ``os._exit`` would be a failure to the launcher."""
    module = sys.modules.get("mpi4py.MPI")
    if module is None or sys.modules["mpi4py"].rc.finalize is False:
        return
    if module.Is_initialized() and not module.Is_finalized():
        module.Finalize()
