"""Level 2: which of the user's modules other hosts cannot import, so that what is in them travels by value.

Only what the user wrote: what is installed is installed there too, or is missing in a way that should be told in
Python's own words. And only source files: machine code does not travel.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from types import ModuleType

_INSTALLED = frozenset({"site-packages", "dist-packages"})


def modules_by_value(absent: Sequence[str]) -> dict[str, ModuleType]:
    """The imported modules, by name, that lie in folders which a host has not, and nowhere in those that it has."""
    if not absent:
        return {}
    missing = {_normal(folder) for folder in absent}
    there = [folder for folder in map(_normal, sys.path) if folder not in missing]
    standard = tuple(_normal(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py") or getattr(module, "__name__", "") != name:
            continue
        if not os.path.isabs(file) or name == "__main__" or name.partition(".")[0] == "zlaunch":
            continue
        path = _normal(file)
        if _below(path, missing) and not _below(path, standard) and not _INSTALLED & set(path.split(os.sep)):
            relative = _relative(path, name)
            if not any(os.path.exists(os.path.join(folder, relative)) for folder in there):
                found[name] = module
    return found


def _normal(path: str) -> str:
    return os.path.abspath(path or ".")


def _below(path: str, folders: Sequence[str] | set[str]) -> bool:
    return any(path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _relative(path: str, name: str) -> str:
    """A module's file, seen from the folder in which its name is looked up."""
    depth = name.count(".") + (2 if os.path.basename(path) == "__init__.py" else 1)
    return os.path.join(*path.split(os.sep)[-depth:])
