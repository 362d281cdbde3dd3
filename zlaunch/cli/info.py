"""Level 6: ``zlaunch info``: what was detected on this machine, and which system jobs from here are taken to run on,
as a table or as one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from importlib import metadata

import msgspec

from .._version import __version__
from ..backends import schedulers
from ..model import HostFacts, span_words
from ..systems.communication import arguments, as_words
from ..systems.description import System, describe
from ..systems.detect import facts
from ..systems.gpus import architecture
from ..systems.known import COLLECTIVES, Setting
from ..systems.params import PARAMETERS, DescriptionError
from ..systems.userfile import read_systems, systems_file
from .grammar import UsageError

_PACKAGES = ("torch", "pyzmq", "msgspec", "cloudpickle", "rich", "psutil", "threadpoolctl", "nvidia-ml-py")


def info(as_json: bool) -> int:
    """Print what this machine is; returns the exit status.

    Raises:
        UsageError: the user's ``systems.toml`` cannot be meant.
    """
    host, manager = facts(), schedulers.here(os.environ)
    gpu_arch = architecture(host.gpus)
    system = _system(host, gpu_arch, manager[0])
    versions = {"python": host.python, "zlaunch": __version__, **{name: _version(name) for name in _PACKAGES}}
    if as_json:
        sys.stdout.write(json.dumps(_plain(host, manager, versions, gpu_arch, system), indent=2) + "\n")
    else:
        _table(host, manager, versions, gpu_arch, system)
    return 0


def _system(host: HostFacts, gpu_arch: str, scheduler: str) -> System:
    try:
        file = read_systems(systems_file(os.environ))
    except DescriptionError as error:
        raise UsageError(error.message, error.hint) from None
    return describe(
        host.hostname, os.environ, queue=None, params={}, file=file, facts=host, gpu_arch=gpu_arch, scheduler=scheduler
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _plain(
    host: HostFacts, manager: tuple[str, str], versions: dict[str, str], gpu_arch: str, system: System
) -> dict[str, object]:
    return {
        "hostname": host.hostname,
        "cores": host.cores,
        "numa_domains": host.numa_domains,
        "domains": [{"number": d.number, "cores": [list(core) for core in d.cores]} for d in host.domains],
        "memory": host.memory,
        "gpus": msgspec.to_builtins(host.gpus),
        "gpu_trouble": host.gpu_trouble,
        "gpu_arch": gpu_arch,
        "scheduler": {"name": manager[0], "allocation": manager[1] or None},
        "system": _plain_system(system),
        "python": sys.executable,
        "versions": versions,
    }


def _plain_system(system: System) -> dict[str, object]:
    shape = dataclasses.asdict(dataclasses.replace(system, environment=(), arguments=()))
    return {
        **{name: value for name, value in shape.items() if name != "overridden"},
        "environment": [setting._asdict() for setting in system.environment],
        "arguments": as_words(arguments(system, _usual_ranks(system))),
    }


def _usual_ranks(system: System) -> int:
    return system.gpus_per_node or system.numa_domains or 1


def _table(host: HostFacts, manager: tuple[str, str], versions: dict[str, str], gpu_arch: str, system: System) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("host", host.hostname)
    table.add_row("cores", f"{host.cores} usable, {_count(host.numa_domains, 'NUMA domain')}")
    for domain in host.domains if len(host.domains) > 1 else ():
        near = [str(gpu.index) for gpu in host.gpus if gpu.domain == domain.number]
        gpus = f", near GPU {', '.join(near)}" if near else ""
        table.add_row("", f"domain {domain.number}: {span_words(cpu for core in domain.cores for cpu in core)}{gpus}")
    table.add_row("memory", gibibytes(host.memory))
    if not host.gpus:
        table.add_row("GPUs", "none to be had" if host.gpu_trouble else "none")
    for gpu in host.gpus:
        kind = f", {gpu_arch}" if gpu_arch else ""
        table.add_row("GPUs" if gpu is host.gpus[0] else "", f"{gpu.index}: {gpu.name}, {gibibytes(gpu.memory)}{kind}")
    if host.gpu_trouble:
        table.add_row("", host.gpu_trouble)
    name, job = manager
    table.add_row("scheduler", f"{name}, in job {job}" if job else name)
    for head, words in _system_rows(system):
        table.add_row(head, words)
    table.add_row("python", f"{versions.pop('python')}  {sys.executable}")
    for name, version in versions.items():
        table.add_row(name, version or "not installed")
    # Without colour in a file or a pipe; rich sees to NO_COLOR itself.
    Console(file=sys.stdout, highlight=False).print(table)


def _system_rows(system: System) -> list[tuple[str, str]]:
    """What a job from here is taken to run on, and who says so."""
    said = {"detected": "no known one: nodes are taken to be as this machine", "known": "known to zlaunch"}
    source = said.get(system.source, f"from {system.file}")
    rows = [("system", f"{system.name}: {source}" if system.name else source)]
    if not system.name:
        return rows
    if system.queue:
        others = [queue for queue in system.queues if queue != system.queue]
        rows.append(("queue", system.queue + (f"; there are also {', '.join(others)}" if others else "")))
    rows.append(("a node", _node(system)))
    seen = [name for name in PARAMETERS if name in system.detected]
    if seen:
        rows.append(("", f"as this machine: {', '.join(seen)}"))
    rows += [("", note) for note in system.notes]
    rows.append(("its scheduler", system.scheduler))
    for head, settings in (
        ("sets", [one for one in system.environment if not one.backends]),
        (f"with {' and '.join(COLLECTIVES)}", [one for one in system.environment if one.backends]),
    ):
        rows += [("" if place else head, _setting(one)) for place, one in enumerate(settings)]
    words = as_words(arguments(system, _usual_ranks(system)))
    return rows + ([("launches with", " ".join(words))] if words else [])


def _node(system: System) -> str:
    cores = _count(system.cores_per_node, "core")
    if system.usable_cores != system.cores_per_node:
        cores += f" ({system.usable_cores} used)"
    gpus = "no GPUs"
    if system.gpus_per_node:
        memory = f" of {system.mem_per_gpu:g} GB" if system.mem_per_gpu else ""
        share = f", {system.usable_memory:.0%} of it usable" if system.usable_memory < 1 else ""
        gpus = f"{_count(system.gpus_per_node, 'GPU')} {system.gpu_arch}".rstrip() + memory + share
    domains = f", {_count(system.numa_domains, 'NUMA domain')}" if system.numa_domains else ""
    return f"{cores}, {gpus}{domains}"


def _setting(setting: Setting) -> str:
    value = f"$TMPDIR/{setting.value}" if setting.under_tmp else setting.value
    return f"{setting.name}={value}" + (f"  ({setting.why})" if setting.why else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def gibibytes(size: int) -> str:
    """``79.6 GiB``; ``unknown`` for 0."""
    return f"{size / 2**30:.1f} GiB" if size else "unknown"
