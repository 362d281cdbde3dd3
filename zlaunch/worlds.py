"""Level 5: rendezvous over MPI: what has to be there for it, and the command that starts a process for every rank."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .access import Access
from .allocation import wanted
from .backends import mpi
from .backends.scheduler import Nodes, Option, Refused
from .errors import LaunchError
from .model import HostPlan, RanksCommand, TaskKind
from .systems.mpi import Flavour, Mpirun, NoMpi, check_same, library, mpirun

if TYPE_CHECKING:
    from .launcher import Launcher

_SHOWN = Mpirun("mpirun", "openmpi")
"""For a dry run, which looks for nothing."""


class World(NamedTuple):
    """An MPI."""

    launcher: Mpirun | None
    """mpirun; ``None`` where a scheduler starts MPI processes by a command of its own."""
    library: Flavour
    """Whose library mpi4py has."""


SHOWN = World(_SHOWN, "openmpi")


def find(launcher: Launcher, kind: TaskKind) -> World | None:
    """The MPI that is installed here, where one is wanted; looked at once for each environment.

    A program of its own needs no mpi4py, and what another interpreter has is seen when its ranks start.

    Raises:
        LaunchError: what lacks, and what to do.
    """
    if launcher.rendezvous != "mpi":
        return None
    relevant = tuple(os.environ.get(name, "") for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "MPI4PY_LIBMPI"))
    has_mpi4py = kind != "command" and launcher.python in (None, sys.executable)
    try:
        return _find(relevant, has_mpi4py=has_mpi4py, launcher=wanted(launcher.hostnames, os.environ) is None)
    except NoMpi as error:
        raise LaunchError(f"rendezvous over MPI: {error}") from None


@functools.cache
def _find(_environ: tuple[str, ...], *, has_mpi4py: bool, launcher: bool) -> World:
    lib: Flavour = library(os.environ) if has_mpi4py else ""
    found = mpirun(os.environ) if launcher else None
    if found:
        check_same(found.flavour, lib, found.path)
    return World(found, lib)


def command(
    access: Access, hosts: Sequence[HostPlan], step: str, world: World, options: Sequence[Option]
) -> RanksCommand:
    """What calls for the ranks of a step at the agents of these hosts; ``options`` are a scheduler's.

    Raises:
        LaunchError: it cannot be had there.
    """
    try:
        if access.scheduler is None:
            python = None if all(host.here for host in hosts) else access.interpreter
            launcher = world.launcher or _SHOWN
            program = mpi.caller(step, python, access.setup)
            return mpi.mpirun(hosts, program, launcher, _environment(access), config=access.ssh_config)
        known = access.allocation.nodes if access.allocation else None
        names = tuple(host.name for host in hosts)
        ids = tuple(known.ids[host.index] for host in hosts) if known and known.ids else ()
        nodes = Nodes(known.job if known else "<job>", names, ids)
        counts = [host.workers for host in hosts]
        program = mpi.caller(step, access.interpreter, access.setup)
        argv = access.scheduler.ranks(nodes, counts, program, options, world.library).argv
        return RanksCommand(argv=argv, env=_environment(access))
    except Refused as refused:
        hint = f"; {refused.hint}" if refused.hint else ""
        raise LaunchError(f"rendezvous over MPI: {refused.message}{hint}") from None
    except NoMpi as error:
        raise LaunchError(f"rendezvous over MPI: {error}") from None


def _environment(access: Access) -> dict[str, str]:
    return access.scheduler.environment(os.environ) if access.scheduler else dict(os.environ)
