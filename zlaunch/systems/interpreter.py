"""Level 2: how another process of this very zlaunch is started."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


def python_argv(entry: str, *arguments: str) -> list[str]:
    """A new interpreter that calls ``module:function`` of the zlaunch that we are.

    Not of one that lies in the current directory, which is taken off the path, nor of another that is installed: our
    folder goes before those of installed packages, and after the standard library, which nothing may shadow.
    """
    module, function = entry.split(":")
    code = (
        "import sys; p = sys.path; del p[:1]; "
        f"p.insert(next((i for i, d in enumerate(p) if d.endswith('-packages')), len(p)), {PACKAGE_ROOT!r}); "
        f"from {module} import {function}; {function}()"
    )
    return [sys.executable, "-c", code, *arguments]
