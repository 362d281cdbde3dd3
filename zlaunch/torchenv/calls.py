"""Level 3, pure: what an MPI launcher tells the processes that it starts, and where these find their host's agent.

The variables are those of the launchers' manuals, and of Open MPI 4.1, MPICH 4.0 and Slurm 22.05 as they were seen. It
loads nothing, since every rank's caller waits for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

CALLING = re.compile(
    r"OMPI_|OPAL_|ORTE_|PRTE_|PMIX_|PMI_|PMI2_|PMI[0-9]?$|MPI_LOCAL|MPIR_|MPICH_|HYDI?_|HYDRA_|I_MPI_|MV2_|PALS_|JSM_|"
    r"FLUX_(TASK|JOB|PMI|KVS)_|SLURM_(PROCID|LOCALID|NODEID|NTASKS|STEP|SRUN|TASK|GTIDS|PMI|MPI|LAUNCH|UMASK)|SLINGSHOT_|CRAY_"
)
"""How the variables begin that make a process one of an MPI world; they go to the rank, over its host's own."""

_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PALS_RANKID", "FLUX_TASK_RANK", "SLURM_PROCID")
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_WORLD_SIZE", "JSM_NAMESPACE_SIZE", "FLUX_JOB_SIZE", "SLURM_NTASKS")


def number_of(environ: Mapping[str, str]) -> tuple[int, int]:
    """A process's rank in its MPI world and that world's size; 0 of 1 where nothing tells of one."""
    return _first(environ, _RANKS, 0), _first(environ, _SIZES, 1)


def _first(environ: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    return next((int(environ[name]) for name in names if environ.get(name, "").isdecimal()), default)


def address(step: str, attempt: int) -> str:
    """The name of the abstract socket on which an agent waits for a step's callers; it is in no folder."""
    return f"\0zlaunch-{os.getuid()}-{step}-{attempt}"
