"""zlaunch starts distributed PyTorch and keeps watch over it.

``Launcher(...).run(function)`` runs a function on every rank and brings back the ranks' results, or the exception of
the rank that failed first. Importing this package is cheap: what a name needs is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import log_handling as log_handling
    from .errors import AgentFailedError as AgentFailedError
    from .errors import LaunchError as LaunchError
    from .errors import RemoteTraceback as RemoteTraceback
    from .errors import RunCancelled as RunCancelled
    from .errors import SerializationError as SerializationError
    from .errors import TimeLimitExceeded as TimeLimitExceeded
    from .errors import WorkerFailedError as WorkerFailedError
    from .errors import ZlaunchError as ZlaunchError
    from .launcher import Launcher as Launcher
    from .model import Fate as Fate
    from .result import LaunchResult as LaunchResult
    from .result import Run as Run
    from .surroundings import DEFAULT_ENV_VARS_FOR_COPY as DEFAULT_ENV_VARS_FOR_COPY

_HOMES = {
    "AgentFailedError": "errors",
    "DEFAULT_ENV_VARS_FOR_COPY": "surroundings",
    "Fate": "model",
    "LaunchError": "errors",
    "LaunchResult": "result",
    "Launcher": "launcher",
    "RemoteTraceback": "errors",
    "Run": "result",
    "RunCancelled": "errors",
    "SerializationError": "errors",
    "TimeLimitExceeded": "errors",
    "WorkerFailedError": "errors",
    "ZlaunchError": "errors",
}

__all__ = [  # noqa: PLE0604 - the names of the table, and two more
    "__version__",
    "log_handling",
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    """A public name's value, imported on first use (PEP 562)."""
    if name == "log_handling":
        return import_module(".log_handling", __name__)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
