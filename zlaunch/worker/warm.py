"""Level 4, worker: what a fork template does before its first fork, so that each rank need not.

Everything here must leave the process with one thread and no GPU: a fork takes one thread along, and CUDA does not
survive one. Where a preloaded module breaks that, the template says which, and its ranks become new interpreters.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import weakref
from typing import Any

from msgspec import Struct

from ..torchenv.threads import loaded_pools, one_thread_each
from .linux import count_threads, open_gpu_devices

_OURS = ("zlaunch.worker.rank", "zlaunch.worker.function", "zlaunch.worker.program", "zlaunch.worker.records")
_LATER = ("runpy", "linecache", "traceback", "threading", "multiprocessing.util", "multiprocessing.process")
"""What a rank would import at once, be it for us or in its first lines."""
_WITH_TORCH = ("torch.distributed", "torch.distributed.distributed_c10d", "torch.distributed.rendezvous")


class Warmth(Struct):
    """What the imports gave."""

    pools: list[Any]
    note: str = ""
    """Why ranks must not be forked from here; empty where they can be."""


def warm_up(preload: tuple[str, ...]) -> Warmth:
    """Import the modules, and put the process into the state that ranks are forked from.

    Raises:
        BaseException: whatever an import raised.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available() without touching CUDA
    with one_thread_each():
        for name in (*_OURS, *_LATER):
            importlib.import_module(name)
        for name in preload:
            importlib.import_module(name)
            if note := _why_not_to_fork(name):
                return Warmth(pools=[], note=note)
        if "torch" in sys.modules:
            for name in _WITH_TORCH:
                importlib.import_module(name)
        pools = loaded_pools()
        if note := _why_not_to_fork("the modules of a process group"):
            return Warmth(pools=[], note=note)
    del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
    importlib.invalidate_caches()  # imports what it needs for that, once
    _forget_exit_handlers()
    gc.collect()
    gc.freeze()  # a rank's collector never looks at these objects, and never writes into their pages
    return Warmth(pools=pools)


def _why_not_to_fork(name: str) -> str:
    threads = count_threads()
    if threads > 1:
        return f"importing {name} started {threads - 1} thread{'s'[: threads - 2]}"
    if devices := open_gpu_devices():
        return f"importing {name} opened {', '.join(devices)}"
    return ""


def _forget_exit_handlers() -> None:
    """Ranks are not to run the exit handlers of what the template imported, but for those that Python's own have.

    An inherited handler costs time in every rank (torch's: 0.15 s in eight), and would clean up what all share.
    """
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # private: the only way
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # the next one registers anew
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        atexit.register(util._exit_function)
    logging = sys.modules.get("logging")
    if logging is not None:
        atexit.register(logging.shutdown)
