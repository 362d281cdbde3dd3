"""Level 5: everything that can be wrong with a launcher's fields, found before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real

from .backends import SCHEDULERS
from .errors import LaunchError
from .model import HostFacts, HostPlan
from .systems.communication import maker_of_host
from .systems.hosts import check_names
from .systems.machine import are_this_machine

_CHOICES: dict[str, tuple[object, ...]] = {
    "backend": ("auto", "nccl", "gloo", "mpi", "ucc", None),
    "rendezvous": ("tcp", "mpi"),
    "start_method": ("fork", "spawn"),
    "bind": ("auto", "none", "numa", "core"),
    "view": ("auto", "live", "plain", "json", "none"),
}

_SECONDS = ("worker_timeout", "agent_timeout", "host_timeout", "time_limit", "grace_period")
_COUNTS = ("max_restarts", "gpus_per_worker")

LEAST_SILENCE = 1.5
"""Seconds: with a heartbeat a second, less would lose hosts that are well."""


def check_fields(launcher: object, argv: Sequence[object] = ()) -> None:
    """Raises ValueError, which names the field and what it takes; TypeError for a word of ``argv`` that is none."""
    for word in argv:
        if not isinstance(word, str):
            raise TypeError(f"the arguments of a script or program are texts, not {word!r}")
    for name, allowed in _CHOICES.items():
        value = getattr(launcher, name)
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it is one of {', '.join(repr(a) for a in allowed)}")
    _check_kinds(launcher)
    for name in ("worker_timeout", "agent_timeout", "host_timeout", "time_limit"):
        value = getattr(launcher, name)
        if not (value is None and name == "time_limit") and not value > 0:
            raise ValueError(f"{name} is {value!r}; it is a number of seconds above 0")
    least_of = {"grace_period": 0, "host_timeout": LEAST_SILENCE, "max_restarts": 0, "gpus_per_worker": 1}
    for name, least in least_of.items():
        if not getattr(launcher, name) >= least:
            raise ValueError(f"{name} is {getattr(launcher, name)!r}; it is {least} at least")
    fraction = getattr(launcher, "gpu_memory_fraction")  # noqa: B009 - as above: any object with the fields
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"gpu_memory_fraction is {fraction!r}; it is above 0 and at most 1")


def _check_kinds(launcher: object) -> None:
    """Whether the fields are of the kinds that they are compared and sent as."""
    for name in _SECONDS + _COUNTS:
        value, kind = getattr(launcher, name), Integral if name in _COUNTS else Real
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise ValueError(f"{name} is {value!r}; it is a number{'' if name in _COUNTS else ' of seconds'}")
    for name in ("preload", "copy_env_vars"):
        value = getattr(launcher, name)
        if isinstance(value, str) or not all(isinstance(word, str) for word in value):
            raise ValueError(f"{name} is {value!r}; it is a tuple of names, such as ('torch',)")
    variables: Mapping[object, object] = getattr(launcher, "extra_env_vars") or {}  # noqa: B009 - as below
    for key, value in variables.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise ValueError(
                f"extra_env_vars: {key} is {value!r}; names and values are texts: {str(key)!r}: {str(value)!r}"
            )


def check_gpu_memory(fraction: float | None, kind: str, hosts: Mapping[str, HostFacts]) -> None:
    """Whether ``gpu_memory_fraction`` can be had: PyTorch sets it, in its own process, on a GPU. Raises as above."""
    if fraction is None:
        return
    if kind == "command":
        raise ValueError("gpu_memory_fraction is for functions, scripts and modules: in a program nobody would set it")
    without = [name for name, facts in hosts.items() if not facts.gpus]
    if without:
        raise LaunchError(f"gpu_memory_fraction is {fraction!r}, and there is no GPU on {', '.join(without)}")


def check_nccl(workers: Mapping[str, int], gpus_per_worker: int, hosts: Mapping[str, HostFacts]) -> None:
    """Whether a process group of nccl can be made: it wants a GPU for each rank, and all of one maker.

    Raises:
        LaunchError: which hosts have too few, and why; or whose GPUs are another maker's.
    """
    short = []
    for name, facts in hosts.items():
        wanted, has = workers[name] * gpus_per_worker, len(facts.gpus)
        if wanted > has:
            why = f", {facts.gpu_trouble}" if facts.gpu_trouble else ""
            short.append(f"{name} ({wanted} wanted, {has} there{why})")
    if short:
        raise LaunchError(f"backend is 'nccl', and GPUs are missing on {', '.join(short)}; gloo needs none")
    makers = {name: maker_of_host(facts) for name, facts in hosts.items()}
    if len(set(makers.values())) > 1:
        amd = ", ".join(name for name, maker in makers.items() if maker == "amd")
        raise LaunchError(f"the GPUs of {amd} are AMD's, the others' NVIDIA's: no backend=\"nccl\" has both; gloo does")


def hosts_of(hostnames: Sequence[str] | str) -> tuple[HostPlan, ...]:
    """The hosts that ``Launcher.hostnames`` means, with their ranks still to be counted. Raises as ``check_fields``.

    Names are looked up, side by side, to find those that mean this machine.
    """
    if isinstance(hostnames, str) and hostnames in ("auto", "local"):
        return (HostPlan(0, "localhost", 0),)
    if isinstance(hostnames, str) or not isinstance(hostnames, Sequence):
        words = ", ".join(map(repr, SCHEDULERS))
        raise ValueError(f"hostnames is {hostnames!r}; it is a list of names, 'auto', 'local' or a scheduler: {words}")
    names = list(hostnames)
    if len(names) == 1 and names[0] in ("auto", "local"):
        return hosts_of(names[0])  # as a command line's parser gives it
    if not names:
        raise ValueError("hostnames is an empty list")
    check_names(names)
    here = are_this_machine(names)
    twice = [name for name, is_here in zip(names, here, strict=True) if is_here]
    if len(twice) > 1:
        raise ValueError(f"hostnames: {' and '.join(twice)} are all this machine; name it once, with more ranks")
    return tuple(HostPlan(i, name, 0, is_here) for i, (name, is_here) in enumerate(zip(names, here, strict=True)))
