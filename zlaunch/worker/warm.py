"""Level 4, worker: what a fork template does before its first fork, so that each rank need not.

Everything here must leave the process with one thread, no GPU and no connection: a fork takes one thread along, CUDA
does not survive one, and what several processes read from one socket is nobody's. Where a preloaded module breaks that,
the template says which, and its ranks become new interpreters.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import Any

from msgspec import Struct, field

from ..torchenv.threads import loaded_pools, one_thread_each
from .linux import open_descriptors
from .traces import Traces, watch, why_not_to_fork

_OURS = ("zlaunch.worker.rank", "zlaunch.worker.function", "zlaunch.worker.program", "zlaunch.worker.records")
_LATER = ("runpy", "linecache", "traceback", "threading", "multiprocessing.util", "multiprocessing.process")
"""What a rank would import at once, be it for us or in its first lines."""
_WITH_TORCH = ("torch.distributed", "torch.distributed.distributed_c10d", "torch.distributed.rendezvous")


class Warmth(Struct):
    """What the imports gave."""

    pools: list[Any] = []
    traces: Traces = field(default_factory=Traces)
    note: str = ""
    """Why ranks must not be forked from here; empty where they can be."""


def warm_up(preload: tuple[str, ...]) -> Warmth:
    """Import the modules, and put the process into the state that ranks are forked from.

    Raises:
        BaseException: whatever an import raised.
    """
    own = frozenset(open_descriptors())
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available() without touching CUDA
    note = ""
    with one_thread_each():
        for name in (*_OURS, *_LATER):
            importlib.import_module(name)
        with watch() as traces:
            for name in preload:
                importlib.import_module(name)
                if why := why_not_to_fork(traces, own):
                    note = f"importing {name} {why}"
                    break
            if "torch" in sys.modules and not note:
                for name in _WITH_TORCH:
                    importlib.import_module(name)
    if note:
        return Warmth(note=note)
    with one_thread_each():
        pools = loaded_pools()
    if why := why_not_to_fork(traces, own):
        return Warmth(note=f"importing the modules of a process group {why}")
    del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
    importlib.invalidate_caches()  # imports what it needs for that, once
    gc.collect()
    gc.freeze()  # a rank's collector never looks at these objects, and never writes into their pages
    return Warmth(pools=pools, traces=traces)
