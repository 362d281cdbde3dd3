"""Level 2: the system that a job is for, as one value, and where each part of it comes from.

What is said later wins: what was detected here, the table of known systems, the user's own file, ``-p``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .known import FAMILIES, KNOWN, Argument, Known, Node, Setting
from .params import PARAMETERS, Value
from .userfile import OwnSystem

if TYPE_CHECKING:
    from ..model import HostFacts

Source = Literal["detected", "known", "file"]

_NAMED_BY = ("SLURM_CLUSTER_NAME", "NERSC_HOST", "LMOD_SYSTEM_NAME")
"""Variables in which Slurm, NERSC and OLCF name the system; the hosts of the latter are called login05."""
_QUEUE_OF_OUR_JOB = ("SLURM_JOB_PARTITION", "LSB_QUEUE")


@dataclass(frozen=True, kw_only=True)
class System:
    """What the nodes of a job are."""

    name: str
    """Empty where it is only what was detected here."""
    source: Source
    file: str = ""
    """The user's file, where the system stands in one."""
    queue: str = ""
    """The queue whose nodes these are: the one that was asked for, or that our job is in, else the system's default."""
    queues: tuple[str, ...] = ()
    """Those that are known; the first is the default."""
    cores_per_node: int
    usable_cores: int
    """Those of them that ranks get."""
    gpus_per_node: int
    gpu_arch: str
    """``sm_90``, ``gfx942``, or whatever the user calls it; may be empty."""
    mem_per_gpu: float
    """GB; 0 where nobody knows."""
    usable_memory: float = 1.0
    """The share of a GPU's memory that its programs can have."""
    numa_domains: int
    """0 where nobody knows."""
    scheduler: str
    """``slurm``, ``flux``, ``lsf``, ``pbs`` or ``none``."""
    overridden: tuple[str, ...] = ()
    """The parameters that ``-p`` has set."""
    detected: tuple[str, ...] = ()
    """Those that nobody said: they were seen on this machine, and the nodes of a job may be otherwise."""
    environment: tuple[Setting, ...] = ()
    arguments: tuple[Argument, ...] = ()
    ofi_plugin: bool = False
    """Whether RCCL is to be told of the OFI plugin, where it is there."""
    notes: tuple[str, ...] = ()
    """What its user should hear."""

    def described(self, parameter: str) -> bool:
        """Whether somebody said so, of the nodes; else it was only seen on this machine."""
        return parameter not in self.detected


def describe(
    hostname: str,
    environ: Mapping[str, str],
    *,
    queue: str | None,
    params: Mapping[str, Value],
    file: Mapping[str, OwnSystem],
    facts: HostFacts,
    gpu_arch: str = "",
    scheduler: str = "none",
) -> System:
    """The system that a job from here runs on.

    Args:
        hostname: this host's name. Without digits it is looked up in ``file``, then in the table.
        environ: says which queue and scheduler we are in, and at some centres the system's name.
        queue: the one that was asked for; ``None`` for the system's default.
        params: from ``params.parse_params``.
        file: from ``userfile.read_systems``.
        facts: what was detected here: the whole answer for a system that nobody knows.
        gpu_arch: the architecture of the GPUs here, from ``gpus.architecture``.
        scheduler: the one that is here.
    """
    own = next((one for name in _own_names(hostname, environ) for one in file.values() if name in one.hosts), None)
    name = own.name if own else next((name for name in _names(hostname, environ) if name in KNOWN), "")
    queue = queue or next((environ[key] for key in _QUEUE_OF_OUR_JOB if environ.get(key)), None)
    system = _detected(facts, gpu_arch, scheduler)
    if name in KNOWN:
        system = _from_table(system, name, KNOWN[name], queue)
    if own:
        system = _from_file(system, own, queue)
    if queue and system.queue != queue:
        system = _elsewhere(system, queue)
    return replace(_with(system, params), overridden=tuple(params))


# --- by name ------------------------------------------------------------------------------------------------


def without_digits(name: str) -> str:
    """``tuolumne`` of ``tuolumne1001``."""
    return re.sub(r"\d", "", name.lower())


def _names(hostname: str, environ: Mapping[str, str]) -> list[str]:
    """What the table is asked for. Not for the domain: many a matrix.org has no such machine."""
    named = [environ[key].lower() for key in _NAMED_BY if environ.get(key)]
    return [without_digits(hostname.partition(".")[0]), *named]


def _own_names(hostname: str, environ: Mapping[str, str]) -> list[str]:
    """What the user's file is asked for, the most special first."""
    parts = hostname.lower().split(".")
    return [hostname.lower(), *(name for part in parts for name in (part, without_digits(part))), *_names("", environ)]


# --- layer by layer -----------------------------------------------------------------------------------------


def _detected(facts: HostFacts, gpu_arch: str, scheduler: str) -> System:
    return System(
        name="",
        source="detected",
        cores_per_node=facts.cores,
        usable_cores=facts.cores,
        gpus_per_node=len(facts.gpus),
        gpu_arch=gpu_arch if facts.gpus else "",
        mem_per_gpu=gigabytes(min((gpu.memory for gpu in facts.gpus), default=0)),
        numa_domains=facts.numa_domains,
        scheduler=scheduler,
        detected=tuple(PARAMETERS),
    )


def gigabytes(size: int) -> float:
    """GB of 10**9 bytes to a tenth, so that a GPU sold as one of 80 GB has no less than that."""
    return round(size / 1e9, 1)


def _from_table(system: System, name: str, known: Known, queue: str | None) -> System:
    default = next(iter(known.queues))
    node = known.queues.get(queue or default, known.queues[default])
    family = FAMILIES.get(known.family)
    return replace(
        _with_node(system, node),
        name=name,
        source="known",
        queue=queue if queue in known.queues and queue else default,
        queues=tuple(queue for queue in known.queues if queue),
        scheduler=known.scheduler,
        detected=(),
        environment=family.environment if family else (),
        arguments=(*(family.arguments if family else ()), *known.arguments),
        ofi_plugin=family is not None and family.ofi_plugin,
    )


def _with_node(system: System, node: Node) -> System:
    return replace(
        system,
        cores_per_node=node.cores,
        usable_cores=node.usable_cores or node.cores,
        gpus_per_node=node.gpus,
        gpu_arch=node.arch,
        mem_per_gpu=float(node.memory),
        usable_memory=node.usable_memory,
        numa_domains=node.numa,
    )


def _from_file(system: System, own: OwnSystem, queue: str | None) -> System:
    """What the file leaves open stays as it is."""
    shape: Mapping[str, Value] = {}
    if own.queues:
        known = system.queue if queue and system.queue == queue else next(iter(own.queues))
        ours = queue if queue in own.queues and queue else known
        shape = own.queues.get(ours, {})
        system = replace(system, queue=ours, queues=tuple(dict.fromkeys((*own.queues, *system.queues))))
    system = _with(_with(system, own.params), shape)
    if own.family is not None:
        family = FAMILIES[own.family]
        system = replace(
            system, environment=family.environment, arguments=family.arguments, ofi_plugin=family.ofi_plugin
        )
    names = {setting.name for setting in own.environment}
    keys = {key for key, _ in own.arguments}
    kept = tuple(setting for setting in system.environment if setting.name not in names)
    left = tuple(argument for argument in system.arguments if argument.key not in keys)
    mine = tuple(Argument(system.scheduler, key, value) for key, value in own.arguments)
    return replace(
        system,
        name=own.name,
        source="file",
        file=own.path,
        environment=(*kept, *own.environment),
        arguments=(*left, *mine),
    )


def _elsewhere(system: System, queue: str) -> System:
    """A queue that our description has not, which may be younger than it, or have other nodes."""
    if not system.queues:
        return replace(system, queue=queue)
    said = f"queue {queue} of {system.name} is not known here: its nodes are taken to be those of {system.queue}"
    return replace(system, queue=queue, notes=(*system.notes, said))


def _with(system: System, params: Mapping[str, Value]) -> System:
    """``params`` in the place of what was there. Who gives a number of cores, or the memory, means the usable ones."""
    if "cores_per_node" in params:
        system = replace(system, usable_cores=int(params["cores_per_node"]))
    if "mem_per_gpu" in params:
        system = replace(system, usable_memory=1.0)
    system = replace(system, detected=tuple(name for name in system.detected if name not in params))
    return replace(system, **params)  # type: ignore[arg-type]  # their kinds are those of params.PARAMETERS
