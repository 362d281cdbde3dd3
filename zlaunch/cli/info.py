"""Level 6: ``zlaunch info``: what was detected on this machine, as a table or as one JSON object."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib import metadata

import msgspec

from .._version import __version__
from ..model import HostFacts
from ..systems.detect import facts
from ..systems.scheduler import Scheduler, scheduler

_PACKAGES = ("torch", "pyzmq", "msgspec", "cloudpickle", "rich", "psutil", "threadpoolctl", "nvidia-ml-py")


def info(as_json: bool) -> int:
    """Print what this machine is; returns the exit status."""
    host, manager = facts(), scheduler(os.environ, shutil.which)
    versions = {"python": host.python, "zlaunch": __version__, **{name: _version(name) for name in _PACKAGES}}
    if as_json:
        sys.stdout.write(json.dumps(_plain(host, manager, versions), indent=2) + "\n")
    else:
        _table(host, manager, versions)
    return 0


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _plain(host: HostFacts, manager: Scheduler, versions: dict[str, str]) -> dict[str, object]:
    return {
        "hostname": host.hostname,
        "cores": host.cores,
        "numa_domains": host.numa_domains,
        "memory": host.memory,
        "gpus": msgspec.to_builtins(host.gpus),
        "scheduler": {"name": manager.name, "allocation": manager.allocation or None},
        "python": sys.executable,
        "versions": versions,
    }


def _table(host: HostFacts, manager: Scheduler, versions: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("host", host.hostname)
    table.add_row("cores", f"{host.cores} usable, {_count(host.numa_domains, 'NUMA domain')}")
    table.add_row("memory", gibibytes(host.memory))
    if not host.gpus:
        table.add_row("GPUs", "none")
    for gpu in host.gpus:
        table.add_row("GPUs" if gpu is host.gpus[0] else "", f"{gpu.index}: {gpu.name}, {gibibytes(gpu.memory)}")
    where = f", in allocation {manager.allocation}" if manager.allocation else ""
    table.add_row("scheduler", manager.name + where)
    table.add_row("python", f"{versions.pop('python')}  {sys.executable}")
    for name, version in versions.items():
        table.add_row(name, version or "not installed")
    # Without colour in a file or a pipe; rich sees to NO_COLOR itself.
    Console(file=sys.stdout, highlight=False).print(table)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def gibibytes(size: int) -> str:
    """``79.6 GiB``; ``unknown`` for 0."""
    return f"{size / 2**30:.1f} GiB" if size else "unknown"
