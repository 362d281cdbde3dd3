"""Level 2: what this machine is, as one value. It only reads and asks; neither torch nor zmq is loaded."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from .._version import __version__
from ..model import HostFacts
from .gpus import visible_gpus
from .limits import boot_id, numa_domains, usable_cores, usable_memory


def facts(folders: Sequence[str] = ()) -> HostFacts:
    """This host as its agent reports it: some milliseconds without GPUs, NVML's start-up more with them.

    Args:
        folders: those of the launcher's ``sys.path``, to be told which of them are not here.
    """
    return HostFacts(
        hostname=os.uname().nodename,
        pid=os.getpid(),
        cores=usable_cores(),
        numa_domains=numa_domains(),
        memory=usable_memory(),
        gpus=visible_gpus(),
        python=platform.python_version(),
        torch=torch_version(),
        version=__version__,
        boot_id=boot_id(),
        absent=tuple(folder for folder in folders if not os.path.exists(folder)),
    )


def torch_version() -> str:
    """The version of the torch that would be imported, read from its files; empty where there is none."""
    spec = PathFinder.find_spec("torch")
    for folder in spec.submodule_search_locations or () if spec else ():
        try:
            text = Path(folder, "version.py").read_text()
        except OSError:
            continue
        if match := re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE):
            return match[1]
    return ""
