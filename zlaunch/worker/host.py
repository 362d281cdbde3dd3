"""Level 4, worker: what a rank takes from its host, where it is another one than the launcher's."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import msgspec

from ..model import Step
from ..systems.folders import search_path_here, working_folder


class Host(msgspec.Struct, frozen=True):
    """As the fork template found it, before anything of a step was there: what an older one set never leaks in."""

    env: Mapping[str, str]
    """The environment that the agent was started in."""
    path: tuple[str, ...]
    """``sys.path`` of an interpreter that was just started."""

    def search_path(self, wanted: Sequence[str], inherit: bool) -> list[str]:
        """``sys.path`` for a template or a step that wants the launcher's."""
        if not inherit:
            return list(wanted)
        return search_path_here(wanted, self.path, "{}.{}".format(*sys.version_info))

    def folder(self, step: Step) -> str:
        """The directory that a step's ranks start in."""
        return working_folder(step.cwd, self.env) if step.inherit else step.cwd
