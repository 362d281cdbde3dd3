"""Level 2: the GPUs of this machine that a process may use, without torch and without a CUDA context.

NVIDIA's answer through NVML, AMD's through amdsmi, and both only where the machine has such devices, so that
asking costs nothing elsewhere. What the ``*_VISIBLE_DEVICES`` variables hide is hidden here too. Where a device is
there and its driver does not answer, that is no machine without GPUs: it is told in words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ..model import Gpu
from . import amd, nvidia
from .visible import Folder, Sight, is_amds


def look(env: Mapping[str, str] | None = None, dev: Folder = "/dev", torch: str = "") -> Sight:
    """The GPUs that a process with this environment (default: ours) can use, and what is wrong with others.

    Args:
        torch: the version of the PyTorch that is to use them. On a machine that has GPUs of two makers it says which.
    """
    variables = os.environ if env is None else env
    first, second = (amd.look, nvidia.look) if "+rocm" in torch else (nvidia.look, amd.look)
    sight = first(variables, dev)
    if sight.gpus:
        return sight
    other = second(variables, dev)
    return Sight(other.gpus, "; ".join(filter(None, (sight.trouble, other.trouble))))


def is_in_need(torch: str, trouble: str) -> bool:
    """Whether a PyTorch of this version is made for the GPUs that are in trouble: without them it would be slow."""
    whose = "AMD: " if "+rocm" in torch else "NVIDIA: "
    return "+cpu" not in torch and (trouble.startswith(whose) or f"; {whose}" in trouble)


def architecture(
    gpus: Sequence[Gpu], dev: Folder = "/dev", topology: Folder = "/sys/class/kfd/kfd/topology/nodes"
) -> str:
    """``sm_90``, ``gfx942``: what the first of them is compiled for; empty where there is none, or nobody says."""
    if not gpus:
        return ""
    return amd.architecture(dev, topology) if is_amds(gpus[0]) else nvidia.architecture(gpus[0], dev)
