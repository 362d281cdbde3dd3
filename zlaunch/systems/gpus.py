"""Level 2: the GPUs of this machine that a process may use, without torch and without a CUDA context.

NVIDIA's answer through NVML, AMD's through amdsmi, and both only where the machine has such devices, so that
asking costs nothing elsewhere. What the ``*_VISIBLE_DEVICES`` variables hide is hidden here too. Where a device is
there and its driver does not answer, that is no machine without GPUs: it is told in words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from msgspec import Struct

from ..model import Gpu
from .cores import domain_of

Folder: TypeAlias = str | os.PathLike[str]

_LONGEST = 300
"""Characters of what a driver's library says."""


class Sight(Struct, frozen=True):
    """What is seen of GPUs."""

    gpus: tuple[Gpu, ...] = ()
    trouble: str = ""
    """Why there are fewer than the machine, or the environment, says; it begins with whose GPUs are meant."""


def visible_gpus(env: Mapping[str, str] | None = None, dev: Folder = "/dev") -> tuple[Gpu, ...]:
    """The GPUs that a process with this environment (default: ours) can use; empty where there are none."""
    return look(env, dev).gpus


def look(env: Mapping[str, str] | None = None, dev: Folder = "/dev", torch: str = "") -> Sight:
    """The GPUs that a process with this environment (default: ours) can use, and what is wrong with others.

    Args:
        torch: the version of the PyTorch that is to use them. On a machine that has GPUs of two makers it says which.
    """
    variables = os.environ if env is None else env
    first, second = (_amd, _nvidia) if "+rocm" in torch else (_nvidia, _amd)
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
    env: Mapping[str, str] | None = None,
    dev: Folder = "/dev",
    topology: Folder = "/sys/class/kfd/kfd/topology/nodes",
) -> str:
    """``sm_90``, ``gfx942``: what the first GPU is compiled for; empty where there is none, or nobody says."""
    gpus = visible_gpus(env, dev)
    if not gpus:
        return ""
    return _nvidia_architecture(gpus[0], dev) or _amd_architecture(dev, topology)


def select(gpus: Sequence[Gpu], wanted: str | None) -> tuple[Gpu, ...]:
    """What a ``*_VISIBLE_DEVICES`` value leaves of ``gpus``, in its order; ``None`` (unset) leaves all.

    A word is an index into ``gpus`` or the beginning of a uuid that only one of them has. As in the CUDA
    driver, the first word that names none ends the list, and a device named twice leaves nothing of it.
    """
    if wanted is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for word in wanted.split(","):
        found = _named(gpus, word.strip())
        if found is None:
            break
        if found in chosen:
            return ()
        chosen.append(found)
    return tuple(chosen)


def _named(gpus: Sequence[Gpu], word: str) -> Gpu | None:
    if word.isdigit():
        return gpus[int(word)] if int(word) < len(gpus) else None
    alike = [gpu for gpu in gpus if word and gpu.uuid.lower().startswith(word.lower())]
    return alike[0] if len(alike) == 1 else None


def _unnamed(gpus: Sequence[Gpu], name: str, env: Mapping[str, str]) -> str:
    """The words for a device that a variable names and nobody has; ``-1``, ``none`` and the like hide all."""
    wanted = env.get(name)
    words = [word.strip() for word in (wanted or "").split(",")]
    for word in words:
        if _named(gpus, word) is None:
            if not word.isdigit() and not word.upper().startswith(("GPU-", "MIG-")):
                return ""
            count = len(gpus)
            has = {0: "there is none", 1: "there is only GPU 0"}.get(count, f"there are GPUs 0 to {count - 1}")
            return f"{name}={wanted} names {word}, and {has}"
    return ""


# --- NVIDIA -------------------------------------------------------------------------------------------------


def _nvidia(env: Mapping[str, str], dev: Folder) -> Sight:
    if not may_have_nvidia(dev):
        return Sight()
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:
        return Sight((), _broken("NVIDIA", "nvidia-ml-py", error) if _has_nvidia(dev) else "")
    index = -1
    try:
        wanted = env.get("CUDA_VISIBLE_DEVICES")
        if wanted is not None and wanted.strip().startswith("MIG-"):
            return Sight(_nvidia_slice(pynvml, wanted))
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            gpus.append(_nvidia_gpu(pynvml, index))  # one by one: the index says which has failed
        trouble = _unnamed(gpus, "CUDA_VISIBLE_DEVICES", env)
        return Sight(select(gpus, wanted), f"NVIDIA: {trouble}" if trouble else "")
    except pynvml.NVMLError as error:
        which = f" of GPU {index}" if index >= 0 else ""
        if wanted is not None and wanted.strip().startswith("MIG-"):
            which = f" of CUDA_VISIBLE_DEVICES={wanted}"
        return Sight((), f"NVIDIA: the driver says{which}: {_words(error)}")
    finally:
        pynvml.nvmlShutdown()


def _has_nvidia(dev: Folder) -> bool:
    """Whether there is a GPU's own file, and not only one of a driver that may have none."""
    with suppress(OSError):
        return any(re.fullmatch(r"nvidia\d+", name) for name in os.listdir(dev))
    return False


def _broken(whose: str, package: str, error: Exception) -> str:
    """A driver, or its library, that does not even begin."""
    if isinstance(error, ModuleNotFoundError):
        return f"{whose}: there is a GPU, and the Python package that asks for it, {package}, is not installed"
    return f"{whose}: there is a GPU, and its driver cannot be asked: {_words(error)}"


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def may_have_nvidia(dev: Folder) -> bool:
    """Whether NVML is worth asking; ``dxg`` is how Windows shows its GPU to WSL."""
    with suppress(OSError):
        return any(name.startswith("nvidia") or name == "dxg" for name in os.listdir(dev))
    return False


def _nvidia_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name, memory = _text(nvml.nvmlDeviceGetName(handle)), _nvidia_memory(nvml, handle)
    return Gpu(index, name, memory, _nvidia_uuid(nvml, handle), _nvidia_domain(nvml, handle))


def _nvidia_slice(nvml: Any, wanted: str) -> tuple[Gpu, ...]:
    """A slice of a partitioned GPU. CUDA uses the first one that is named, whatever follows it."""
    uuid = wanted.split(",", maxsplit=1)[0].strip()
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    return (Gpu(0, _text(nvml.nvmlDeviceGetName(handle)), _nvidia_memory(nvml, handle), uuid),)


def _nvidia_memory(nvml: Any, handle: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # memory shared with the CPU (GB10, Thor) has no number of its own
        return 0


def _nvidia_uuid(nvml: Any, handle: Any) -> str:
    try:
        return _text(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError:
        return ""


def _nvidia_domain(nvml: Any, handle: Any) -> int:
    try:
        return domain_of(_text(nvml.nvmlDeviceGetPciInfo(handle).busId))
    except (nvml.NVMLError, AttributeError):  # the latter: a stand-in, or an NVML of long ago
        return -1


def _nvidia_architecture(gpu: Gpu, dev: Folder) -> str:
    if not may_have_nvidia(dev):
        return ""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return ""
    try:
        if gpu.uuid.startswith("MIG-"):
            handle = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
        else:
            handle = pynvml.nvmlDeviceGetHandleByIndex(gpu.index)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    except pynvml.NVMLError:
        return ""
    finally:
        pynvml.nvmlShutdown()
    return f"sm_{major}{minor}"


# --- AMD ----------------------------------------------------------------------------------------------------


def _amd(env: Mapping[str, str], dev: Folder) -> Sight:
    if not may_have_amd(dev):
        return Sight()
    try:
        import amdsmi

        amdsmi.amdsmi_init()
    except Exception as error:
        return Sight((), _broken("AMD", "amdsmi", error))
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        found = tuple(_amd_gpu(amdsmi, index, handle) for index, handle in enumerate(handles))
    except Exception as error:
        return Sight((), f"AMD: the driver says: {_words(error)}")
    finally:
        amdsmi.amdsmi_shut_down()
    # ROCR_VISIBLE_DEVICES hides devices below HIP, which then counts what is left.
    left = select(found, env.get("ROCR_VISIBLE_DEVICES"))
    second = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in env else "CUDA_VISIBLE_DEVICES"
    trouble = _unnamed(found, "ROCR_VISIBLE_DEVICES", env) or _unnamed(left, second, env)
    return Sight(select(left, env.get(second)), f"AMD: {trouble}" if trouble else "")


def may_have_amd(dev: Folder) -> bool:
    """Whether amdsmi is worth asking."""
    return os.path.exists(os.path.join(dev, "kfd"))


def _amd_gpu(amdsmi: Any, index: int, handle: Any) -> Gpu:
    name = str(amdsmi.amdsmi_get_gpu_asic_info(handle).get("market_name", "AMD GPU"))
    memory = int(amdsmi.amdsmi_get_gpu_memory_total(handle, amdsmi.AmdSmiMemoryType.VRAM))
    domain = -1
    with suppress(Exception):
        domain = domain_of(str(amdsmi.amdsmi_get_gpu_device_bdf(handle)))
    return Gpu(index, name, memory, str(amdsmi.amdsmi_get_gpu_device_uuid(handle)), domain)


def _amd_architecture(dev: Folder, topology: Folder) -> str:
    """From the kernel driver, which has always told it; amdsmi does so since ROCm 6.

    A node of the topology that is no GPU has the version 0. 90402 is gfx942, and 90010 gfx90a: the last two pairs of
    digits are written as hexadecimal ones.
    """
    if not may_have_amd(dev):
        return ""
    nodes: list[str] = []
    with suppress(OSError):
        nodes = sorted((name for name in os.listdir(topology) if name.isdigit()), key=int)
    for node in nodes:
        with suppress(OSError), open(os.path.join(topology, node, "properties"), encoding="ascii") as file:
            for line in file:
                name, _, number = line.strip().partition(" ")
                if name == "gfx_target_version" and number.isdigit() and int(number):
                    major, rest = divmod(int(number), 10_000)
                    return f"gfx{major}{rest // 100:x}{rest % 100:x}"
    return ""


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
