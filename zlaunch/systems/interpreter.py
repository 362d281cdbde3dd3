"""Level 2: how another process of this very zlaunch is started, here or on another machine."""

from __future__ import annotations

import os
import sys

from .._version import __version__

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
NO_ZLAUNCH = 97
"""The exit status of an interpreter on another machine that cannot be one of ours; a line on stderr says why."""


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


def remote_code(entry: str) -> str:
    """What ``python -c`` runs on another machine: ``module:function`` of the zlaunch that is installed *there*.

    Of whatever Python is there: one that is too old, or has no zlaunch, says so in one line and ends with
    ``NO_ZLAUNCH``. The current directory is taken off the path; a checkout that we run from ourselves is its last
    entry, for hosts that see the same files. Our own ``site-packages`` never is: they were built for another Python.
    One line, without ``'``, since it goes through a shell. Python starts with all that the site has set up for it
    (PYTHONPATH, packages of the user's own): doing without saves less than 5 ms.
    """
    import json

    module, function = entry.split(":")
    checkout = "" if PACKAGE_ROOT.endswith("-packages") else json.dumps(PACKAGE_ROOT)
    who = '(sys.version.split()[0], sys.executable or "?")'
    too_old = f'"zlaunch agent: Python %s is too old for zlaunch {__version__}, which needs 3.11: %s" % {who}'
    missing = f'"zlaunch agent: there is no zlaunch for Python %s: %s" % {who}'
    return (
        f"import sys; p = sys.path; p[:] = [d for d in p if d] + [{checkout}]; w = sys.stderr.write; "
        f"sys.version_info < (3, 11) and (w({too_old}), sys.exit({NO_ZLAUNCH})); "
        'any(f.find_spec("zlaunch", None) for f in sys.meta_path) or '
        f"(w({missing}), sys.exit({NO_ZLAUNCH})); "
        f"from {module} import {function}; {function}()"
    )
