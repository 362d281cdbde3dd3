"""Level 3: numeric libraries' threads across a fork.

A fork takes one thread along. OpenBLAS notices and starts its pool anew, an OpenMP pool does not: a product that used
two threads before the fork hangs in the child. So libraries are imported with one thread each, which starts no pool,
and every rank gets its own number after the fork. Neither torch nor threadpoolctl is imported here unless it is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_BY_LIBRARY = {"openblas": "OPENBLAS_NUM_THREADS", "mkl": "MKL_NUM_THREADS", "blis": "BLIS_NUM_THREADS"}


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Within this, a library that is loaded starts no threads; the environment is as before afterwards."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def loaded_pools() -> list[Any]:
    """threadpoolctl's controllers of the libraries that are loaded now: finding them takes milliseconds, so once."""
    if "numpy" not in sys.modules and "torch" not in sys.modules:
        return []
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().lib_controllers)


def set_threads(env: Mapping[str, str], pools: list[Any]) -> None:
    """Give the libraries of this process, a fork, the number of threads that ``env`` asks for."""
    default = _number(env.get("OMP_NUM_THREADS"))
    for pool in pools:
        wanted = _number(env.get(_BY_LIBRARY.get(pool.internal_api, ""))) or default
        if wanted and wanted != 1:  # one is what they were loaded with
            pool.set_num_threads(wanted)
    torch = sys.modules.get("torch")
    if torch is not None and default:
        torch.set_num_threads(default)


def _number(value: str | None) -> int | None:
    """OMP_NUM_THREADS may be a list, one number for each level of nesting: the first counts."""
    first = (value or "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None
