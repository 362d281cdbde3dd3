"""What a bed needs of this machine, and what of this machine its hosts need to see."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
import tempfile
from pathlib import Path

import zlaunch

from . import kernel
from .programs import PATH

_TOOLS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "iptables-restore": "iptables",
    "ethtool": "ethtool",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}


def missing() -> str | None:
    """Why there can be no bed here, or None."""
    if os.geteuid() != 0:
        return "a test bed of hosts needs root"
    absent = [package for tool, package in _TOOLS.items() if not shutil.which(tool, path=PATH)]
    if absent:
        return f"a test bed of hosts needs {' '.join(dict.fromkeys(absent))}"
    try:
        os.close(kernel.new_net())
    except OSError as error:
        return f"this machine lets us make no network namespace: {error}"
    return None


def default_share() -> tuple[str, ...]:
    """What every host must see: the interpreter, zlaunch's folder, the folder below which pytest makes its own."""
    interpreter = Path(sys.executable).resolve().parents[1]
    tests = Path(tempfile.gettempdir()) / f"pytest-of-{getpass.getuser()}"
    checkout = Path(zlaunch.__file__).parents[1]
    return tuple(str(path) for path in (sys.prefix, sys.base_prefix, interpreter, checkout, tests))
