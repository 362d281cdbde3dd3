"""Level 2: what ``--comm-backend`` and the system's family set: environment of the ranks, arguments of the launch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from .description import System
from .nearest import nearest
from .params import DescriptionError
from .visible import is_amds

if TYPE_CHECKING:
    from ..model import HostFacts

CommBackend = Literal["MPI", "NCCL", "RCCL"]
Maker = Literal["nvidia", "amd"]

_WORDS = ("MPI", "NCCL", "RCCL", "*CCL")
_OF_MAKER: dict[Maker, CommBackend] = {"nvidia": "NCCL", "amd": "RCCL"}
_AMD = re.compile(r"gfx|mi\d|cdna|rdna|vega|instinct|radeon|amd", re.IGNORECASE)
_NVIDIA = re.compile(
    r"sm_?\d|compute_|nvidia|cuda|pascal|volta|turing|ampere|ada|hopper|blackwell|rubin|tesla|rtx|gtx|quadro"
    r"|g?[pvtalhb]\d+",
    re.IGNORECASE,
)


def maker(gpu_arch: str) -> Maker | None:
    """Whose GPUs these are: ``sm_90``, ``ampere``, ``a100`` are NVIDIA's, ``gfx942``, ``mi300a`` AMD's."""
    if _AMD.match(gpu_arch):
        return "amd"
    return "nvidia" if _NVIDIA.match(gpu_arch) else None


def maker_of_host(facts: HostFacts) -> Maker | None:
    """The same of a host that was looked at; ``None`` where it has no GPU."""
    if not facts.gpus:
        return None
    return "amd" if is_amds(facts.gpus[0]) else "nvidia"


def comm_backend(word: str, system: System) -> CommBackend:
    """What ``--comm-backend WORD`` means on a system. Large and small letters are alike.

    ``NCCL`` on AMD's GPUs is ``RCCL``, as in PyTorch, which calls both ``nccl``. Where the nodes were not described and
    this machine has no GPU, the hosts may have one: ``check_hosts`` will tell.

    Raises:
        DescriptionError: there is no such backend, or the system's nodes can't do it.
    """
    name = _known(word)
    if name == "MPI":
        return "MPI"
    where = f"a node of {system.name}" if system.name else "a node"
    if not system.gpus_per_node and system.described("gpus_per_node"):
        raise _cannot(word, f"{where} has no GPU")
    whose = maker(system.gpu_arch)
    if whose is None and name == "*CCL" and system.gpus_per_node:
        raise DescriptionError(
            f"--comm-backend {word}: whose GPUs are {system.gpu_arch or 'those here'}?",
            "say NCCL or RCCL, or -p gpu_arch=",
        )
    return _resolve(word, whose, f"the GPUs of {where}")


def check_hosts(word: str, hosts: Mapping[str, HostFacts]) -> CommBackend:
    """As ``comm_backend``, of hosts that are there, by their names.

    Raises:
        DescriptionError: one of them can't do it, or they have GPUs of two makers.
    """
    name = _known(word)
    if name == "MPI":
        return "MPI"
    whose = {host: maker_of_host(facts) for host, facts in hosts.items()}
    without = [host for host, one in whose.items() if one is None]
    if without:
        raise _cannot(word, f"there is no GPU on {', '.join(without)}")
    means = {_resolve(word, one, f"the GPUs of {host}") for host, one in whose.items()}
    if len(means) > 1:
        amd = ", ".join(host for host, one in whose.items() if one == "amd")
        raise _cannot(word, f"the GPUs of {amd} are AMD's, the others' are NVIDIA's")
    return means.pop() if means else ("RCCL" if name == "RCCL" else "NCCL")


def _known(word: str) -> str:
    name = word.upper()
    if name not in _WORDS:
        raise DescriptionError(
            f"--comm-backend: there is no {word!r}", nearest(name, _WORDS) or f"there are {', '.join(_WORDS)}"
        )
    return name


def _resolve(word: str, whose: Maker | None, gpus: str) -> CommBackend:
    name = word.upper()
    if whose == "nvidia" and name == "RCCL":
        raise _cannot(word, f"{gpus} are NVIDIA's", "use NCCL, or *CCL for whichever the hosts have")
    if whose is None:
        return "RCCL" if name == "RCCL" else "NCCL"
    return _OF_MAKER[whose]


def _cannot(word: str, why: str, hint: str = "use MPI, or leave it out") -> DescriptionError:
    return DescriptionError(f"--comm-backend {word}: {why}", hint)


# --- settings -----------------------------------------------------------------------------------------------


class Libraries(NamedTuple):
    """What RCCL finds on a host."""

    ofi_plugin: bool = False
    """Whether ``librccl-net.so`` is in the loader's path; to force a plugin that is not there crashes RCCL."""
    rocm: tuple[int, int] | None = None


PLUGIN = "librccl-net.so"


def libraries(environ: Mapping[str, str], rocm: str = "/opt/rocm") -> Libraries:
    """Look for the OFI plugin in LD_LIBRARY_PATH and for ROCm's version in ROCM_PATH; only reads."""
    folders = [folder for folder in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    there = any(os.path.exists(os.path.join(folder, PLUGIN)) for folder in folders)
    try:
        text = Path(environ.get("ROCM_PATH") or rocm, ".info", "version").read_text(errors="replace")
    except OSError:
        text = environ.get("ROCM_VERSION", "")
    version = re.match(r"(\d+)\.(\d+)", text)
    return Libraries(there, (int(version[1]), int(version[2])) if version else None)


def environment(
    system: System, backend: CommBackend | None, environ: Mapping[str, str], found: Libraries | None = None
) -> dict[str, str]:
    """The system's settings for its ranks, without those that ``environ`` has already: the user knows better.

    Args:
        system: where they run.
        backend: what ``--comm-backend`` means there; ``None`` where it was not given.
        environ: the environment below; its TMPDIR is where folders are set.
        found: from ``libraries``.
    """
    folder = (environ.get("TMPDIR") or "/tmp").rstrip("/") or "/"
    settings = {
        setting.name: os.path.join(folder, setting.value) if setting.under_tmp else setting.value
        for setting in system.environment
        if not setting.backends or backend in setting.backends
    }
    if system.ofi_plugin and backend in ("NCCL", "RCCL") and found and found.ofi_plugin:
        settings["NCCL_NET_PLUGIN"] = PLUGIN
        if found.rocm:  # of an unknown version's plugin we don't know the name, and RCCL finds it by itself
            settings["NCCL_NET"] = "libfabric" if found.rocm >= (7, 1) else "AWS Libfabric"
    return {name: value for name, value in settings.items() if name not in environ}


def arguments(system: System, ranks_per_node: int, scheduler: str | None = None) -> tuple[tuple[str, str | None], ...]:
    """Options for the launch command, as key and value (``None``: a flag), in the table's order.

    Args:
        system: where it runs.
        ranks_per_node: some depend on it.
        scheduler: the one that is used, where it is not the system's; it knows no other's options.
    """
    used = scheduler or system.scheduler
    return tuple(
        (argument.key, argument.value(ranks_per_node) if callable(argument.value) else argument.value)
        for argument in system.arguments
        if argument.scheduler == used
    )


def as_words(options: tuple[tuple[str, str | None], ...]) -> list[str]:
    """``--exclusive``, ``-ofastload=on``: the words of an argv."""
    return [key if value is None else f"{key}={value}" for key, value in options]
