"""Level 2: which MPI is installed here: the launcher that is on PATH, and the library that mpi4py has.

Two MPIs on one machine are common, and a world that is started by one and entered by the other is as many worlds as
there are ranks. What they call themselves is known from Open MPI 4.1, MPICH 4.0 and Intel MPI's manual.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

Flavour: TypeAlias = Literal["openmpi", "mpich", ""]
"""Who can start whose processes: MPICH's kin (Intel's, Cray's, MVAPICH) speak one language. Empty: unknown."""

_NAMES: tuple[tuple[Flavour, str], ...] = (
    ("openmpi", r"open ?mpi|open-mpi|spectrum|prrte"),
    ("mpich", r"mpich|hydra|intel\(r\) mpi|mvapich|pals"),
)
_PATIENCE = 20.0
_ASK = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"


class NoMpi(Exception):
    """What is missing, and what to do."""


class Mpirun(NamedTuple):
    """A launcher."""

    path: str
    flavour: Flavour


def mpirun(environ: Mapping[str, str]) -> Mpirun:
    """The launcher that is on PATH. Raises NoMpi."""
    path = next((p for name in ("mpirun", "mpiexec") if (p := shutil.which(name, path=environ.get("PATH")))), None)
    if path is None:
        raise NoMpi("there is no mpirun on PATH; load the site's MPI module, or install one: apt install openmpi-bin")
    return Mpirun(path, _flavour(_said([path, "--version"], environ)[0]))


def library(environ: Mapping[str, str]) -> Flavour:
    """Whose library mpi4py has, in the Python that we are; it is looked at in a process of its own. Raises NoMpi."""
    said, good = _said([sys.executable, "-c", _ASK], environ)
    if good:
        return _flavour(said)
    if "No module named 'mpi4py'" in said:
        raise NoMpi("mpi4py is not installed: pip install mpi4py")
    last = said.rstrip().rsplit("\n", 1)[-1]
    raise NoMpi(f"mpi4py cannot be loaded: {last}; it wants the library of an MPI, which a module or package brings")


def check_same(launcher: Flavour, library: Flavour, what: str) -> None:
    """Raises NoMpi where the one cannot start processes of the other; ``what`` is the launcher's name."""
    if launcher and library and launcher != library:
        names = {"openmpi": "Open MPI", "mpich": "MPICH or its kin"}
        raise NoMpi(
            f"{what} is of {names[launcher]}, and mpi4py's library of {names[library]}: each rank would be alone; load "
            "the module of one MPI for both, or install mpi4py for the launcher's"
        )


def _flavour(said: str) -> Flavour:
    return next((name for name, pattern in _NAMES if re.search(pattern, said, re.I)), "")


def _said(argv: list[str], environ: Mapping[str, str]) -> tuple[str, bool]:
    try:
        done = subprocess.run(
            argv, env=dict(environ), capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error), False
    return done.stdout + done.stderr, done.returncode == 0
