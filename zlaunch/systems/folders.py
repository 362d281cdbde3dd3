"""Level 2: folders of the launcher's machine, on a host where they need not be."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

_FIRST_OF_INTERPRETER = re.compile(r"/python\d+\.zip$")
"""What CPython puts first of its own into ``sys.path``, be it there or not."""
_STANDARD_LIBRARY = re.compile(r"/python(\d+\.zip|\d+\.\d+t?|\d+\.\d+t?/lib-dynload)$")
_OF_A_VERSION = re.compile(r"/python(\d+\.\d+t?)(?=/|$)")


def working_folder(cwd: str, environ: Mapping[str, str]) -> str:
    """Where ranks start that were to start in ``cwd``: there, if this host has it, else at home, else in ``/``."""
    homes = [environ.get("HOME", "")]
    with suppress(KeyError):
        homes.append(pwd.getpwuid(os.getuid()).pw_dir)
    return next((folder for folder in (cwd, *homes) if os.path.isdir(folder) and os.access(folder, os.X_OK)), "/")


def search_path_here(theirs: Sequence[str], own: Sequence[str], version: str) -> list[str]:
    """The launcher's ``sys.path`` for an interpreter of this host, whose own one and version (``3.11``) are given.

    Its folders that are here, in its order; in place of its interpreter's standard library, all of ours.
    """
    first = next((i for i, folder in enumerate(theirs) if _FIRST_OF_INTERPRETER.search(folder)), len(theirs))
    before, after = (_usable(part, version) for part in (theirs[:first], theirs[first:]))
    mine = [folder for folder in own if folder not in before]
    return list(dict.fromkeys([*before, *mine, *after]))


def _usable(folders: Sequence[str], version: str) -> list[str]:
    return [
        folder
        for folder in folders
        if os.path.exists(folder)
        and not _STANDARD_LIBRARY.search(folder)
        and all(found == version for found in _OF_A_VERSION.findall(folder))
    ]
