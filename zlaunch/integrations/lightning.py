"""Level 6: Lightning's Trainer under zlaunch: ``Trainer(plugins=[ZlaunchClusterEnvironment()])``.

Lightning is not a dependency of zlaunch: it is imported when the class is asked for, under whichever of its
three names it is installed. Under ``zlaunch run`` the Trainer finds torchelastic's variables by itself;
whoever names the plugin has it settled.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    ZlaunchClusterEnvironment: type[Any]
    TorchrunxClusterEnvironment: type[Any]

_HOMES = (
    "lightning.fabric.plugins.environments.torchelastic",
    "lightning_fabric.plugins.environments.torchelastic",
    "pytorch_lightning.plugins.environments",
)

__all__ = ["TorchrunxClusterEnvironment", "ZlaunchClusterEnvironment"]


def __getattr__(name: str) -> type[Any]:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals().get("ZlaunchClusterEnvironment") or _make()
    globals().update(ZlaunchClusterEnvironment=found, TorchrunxClusterEnvironment=found)
    return found


def _make() -> type[Any]:
    base: Any = _torchelastic_environment()

    class ZlaunchClusterEnvironment(base):  # type: ignore[misc]  # its base is known at run time only
        """The ranks, their hosts and their addresses as zlaunch has set them."""

        @staticmethod
        def detect() -> bool:
            """Whoever names this environment runs under zlaunch."""
            return True

    ZlaunchClusterEnvironment.__module__ = __name__
    ZlaunchClusterEnvironment.__qualname__ = "ZlaunchClusterEnvironment"  # so that it can be pickled
    return ZlaunchClusterEnvironment


def _torchelastic_environment() -> type[Any]:
    for home in _HOMES:
        try:
            found: type[Any] = import_module(home).TorchElasticEnvironment
        except ImportError:
            continue
        return found
    raise ImportError("Lightning is not installed: pip install lightning")
