"""Level 5: everything that can be wrong with a launcher's fields, found before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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

LEAST_SILENCE = 1.5
"""Seconds: with a heartbeat a second, less would lose hosts that are well."""

LONGEST = 1e9
"""Seconds of a process group's timeout; PyTorch counts them in nanoseconds."""


def check_fields(launcher: object) -> None:
    """Raises ValueError, which names the field and what it takes."""
    for name, allowed in _CHOICES.items():
        value = getattr(launcher, name)
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it is one of {', '.join(repr(a) for a in allowed)}")
    _check_texts(launcher)
    for name in ("worker_timeout", "agent_timeout", "host_timeout", "time_limit"):
        value = getattr(launcher, name)
        most = LONGEST if name == "worker_timeout" else math.inf
        if not (value is None and name == "time_limit") and not (_is_number(value) and 0 < value <= most):
            words = f", and {most:g} at most" if most < math.inf else ""
            raise ValueError(f"{name} is {value!r}; it is a number of seconds above 0{words}")
    least_of = {"grace_period": 0, "host_timeout": LEAST_SILENCE, "max_restarts": 0, "gpus_per_worker": 1}
    for name, least in least_of.items():
        value = getattr(launcher, name)
        whole = name in ("max_restarts", "gpus_per_worker")
        if not _is_number(value) or not value >= least or (whole and not isinstance(value, int)):
            raise ValueError(f"{name} is {value!r}; it is {'a whole number, ' if whole else ''}{least} at least")
    fraction = getattr(launcher, "gpu_memory_fraction")  # noqa: B009 - as above: any object with the fields
    if fraction is not None and not (_is_number(fraction) and 0 < fraction <= 1):
        raise ValueError(f"gpu_memory_fraction is {fraction!r}; it is above 0 and at most 1")


def _check_texts(launcher: object) -> None:
    """Whether the fields that are sent as texts are."""
    for name in ("preload", "copy_env_vars"):
        value = getattr(launcher, name)
        if isinstance(value, str) or not all(isinstance(word, str) for word in value):
            raise ValueError(f"{name} is {value!r}; it is a tuple of names, such as ('torch',)")
    variables: Mapping[object, object] = getattr(launcher, "extra_env_vars") or {}  # noqa: B009 - as above
    for key, value in variables.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise ValueError(
                f"extra_env_vars: {key} is {value!r}; names and values are texts: {str(key)!r}: {str(value)!r}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def usable_gpus(facts: HostFacts) -> int:
    """A host's GPUs that the PyTorch there is made for."""
    other = "nvidia" if "+rocm" in facts.torch else "amd" if "+cu" in facts.torch else ""
    return 0 if "+cpu" in facts.torch or maker_of_host(facts) == other else len(facts.gpus)


def check_gpus(
    backend: str | None,
    fraction: float | None,
    gpus_per_worker: int,
    workers: Mapping[str, int],
    hosts: Mapping[str, HostFacts],
) -> None:
    """Whether each rank has GPUs of its own where something wants that: so many for each, their memory, or nccl.

    What PyTorch does with them it must be made for; so many for each may be wanted by any program.

    Raises:
        LaunchError: which hosts have too few, and why; or whose GPUs are another maker's.
    """
    wanted = {name: workers[name] * gpus_per_worker for name in hosts}
    if gpus_per_worker > 1 and (short := _short(wanted, hosts)):
        raise LaunchError(f"gpus_per_worker is {gpus_per_worker}, and GPUs are missing on {short}")
    if fraction is not None and (short := _short(wanted, hosts) or _not_for_torch(hosts)):
        raise LaunchError(f"gpu_memory_fraction is {fraction!r}, and GPUs are missing on {short}")
    if backend != "nccl":
        return
    if short := _short(wanted, hosts) or _not_for_torch(hosts):
        raise LaunchError(f"backend is 'nccl', and GPUs are missing on {short}; gloo needs none")
    makers = {name: maker_of_host(facts) for name, facts in hosts.items()}
    if len(set(makers.values())) > 1:
        amd = ", ".join(name for name, maker in makers.items() if maker == "amd")
        raise LaunchError(f"the GPUs of {amd} are AMD's, the others' NVIDIA's: no backend=\"nccl\" has both; gloo does")


def _short(wanted: Mapping[str, int], hosts: Mapping[str, HostFacts]) -> str:
    """The words for hosts that have fewer GPUs than are wanted."""
    words = []
    for name, facts in hosts.items():
        if wanted[name] > len(facts.gpus):
            why = f", {facts.gpu_trouble}" if facts.gpu_trouble else ""
            words.append(f"{name} ({wanted[name]} wanted, {len(facts.gpus)} there{why})")
    return ", ".join(words)


def _not_for_torch(hosts: Mapping[str, HostFacts]) -> str:
    """The words for hosts whose GPUs their PyTorch cannot use."""
    return ", ".join(
        f"{name} (PyTorch {facts.torch} is not made for those there)"
        for name, facts in hosts.items()
        if not usable_gpus(facts)
    )


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
