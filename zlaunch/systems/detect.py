"""Level 2: what this machine is, as one value. It only reads and asks; neither torch nor zmq is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import PathFinder

from .._version import __version__
from ..model import HostFacts
from .cores import domains
from .gpus import look
from .limits import boot_id, numa_domains, usable_cores, usable_memory


def facts(folders: Sequence[str] = ()) -> HostFacts:
    """This host as its agent reports it: some milliseconds without GPUs, NVML's start-up more with them.

    Args:
        folders: those of the launcher's ``sys.path``, to be told which of them are not here.
    """
    torch = torch_version()
    sight = look(torch=torch)
    return HostFacts(
        hostname=os.uname().nodename,
        pid=os.getpid(),
        cores=usable_cores(),
        numa_domains=numa_domains(),
        domains=domains(),
        memory=usable_memory(),
        gpus=sight.gpus,
        gpu_trouble=sight.trouble,
        python=sys.version.split()[0],
        torch=torch,
        version=__version__,
        boot_id=boot_id(),
        absent=tuple(folder for folder in folders if not os.path.exists(folder)),
    )


def torch_version() -> str:
    """The version of the torch that would be imported, read from its files; empty where there is none."""
    spec = PathFinder.find_spec("torch")
    for folder in spec.submodule_search_locations or () if spec else ():
        with suppress(OSError), open(os.path.join(folder, "version.py"), encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition("=")
                words = value.replace('"', "'").split("'")
                if name.rstrip() == "__version__" and len(words) > 1:
                    return words[1]
    return ""
