"""Level 2: the GPUs of this machine that a process may use, without torch and without a CUDA context.

NVIDIA's answer through NVML, AMD's through amdsmi, and both only where the machine has such devices, so that
asking costs nothing elsewhere. What the ``*_VISIBLE_DEVICES`` variables hide is hidden here too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from ..model import Gpu

Folder: TypeAlias = str | os.PathLike[str]


def visible_gpus(env: Mapping[str, str] | None = None, dev: Folder = "/dev") -> tuple[Gpu, ...]:
    """The GPUs that a process with this environment (default: ours) can use; empty where there are none."""
    variables = os.environ if env is None else env
    return _nvidia(variables, dev) or _amd(variables, dev)


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


# --- NVIDIA -------------------------------------------------------------------------------------------------


def _nvidia(env: Mapping[str, str], dev: Folder) -> tuple[Gpu, ...]:
    if not _may_have_nvidia(dev):
        return ()
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return ()
    try:
        wanted = env.get("CUDA_VISIBLE_DEVICES")
        if wanted is not None and wanted.strip().startswith("MIG-"):
            return _nvidia_slice(pynvml, wanted)
        count = pynvml.nvmlDeviceGetCount()
        return select([_nvidia_gpu(pynvml, index) for index in range(count)], wanted)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _may_have_nvidia(dev: Folder) -> bool:
    """``dxg`` is how Windows shows its GPU to WSL."""
    with suppress(OSError):
        return any(name.startswith("nvidia") or name == "dxg" for name in os.listdir(dev))
    return False


def _nvidia_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(index, _text(nvml.nvmlDeviceGetName(handle)), _nvidia_memory(nvml, handle), _nvidia_uuid(nvml, handle))


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


def _nvidia_architecture(gpu: Gpu, dev: Folder) -> str:
    if not _may_have_nvidia(dev):
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


def _amd(env: Mapping[str, str], dev: Folder) -> tuple[Gpu, ...]:
    if not os.path.exists(os.path.join(dev, "kfd")):
        return ()
    try:
        import amdsmi

        amdsmi.amdsmi_init()
    except Exception:
        return ()
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        found = tuple(_amd_gpu(amdsmi, index, handle) for index, handle in enumerate(handles))
    except Exception:
        return ()
    finally:
        amdsmi.amdsmi_shut_down()
    # ROCR_VISIBLE_DEVICES hides devices below HIP, which then counts what is left.
    left = select(found, env.get("ROCR_VISIBLE_DEVICES"))
    return select(left, env.get("HIP_VISIBLE_DEVICES", env.get("CUDA_VISIBLE_DEVICES")))


def _amd_gpu(amdsmi: Any, index: int, handle: Any) -> Gpu:
    name = str(amdsmi.amdsmi_get_gpu_asic_info(handle).get("market_name", "AMD GPU"))
    memory = int(amdsmi.amdsmi_get_gpu_memory_total(handle, amdsmi.AmdSmiMemoryType.VRAM))
    return Gpu(index, name, memory, str(amdsmi.amdsmi_get_gpu_device_uuid(handle)))


def _amd_architecture(dev: Folder, topology: Folder) -> str:
    """From the kernel driver, which has always told it; amdsmi does so since ROCm 6.

    A node of the topology that is no GPU has the version 0. 90402 is gfx942, and 90010 gfx90a: the last two pairs of
    digits are written as hexadecimal ones.
    """
    if not os.path.exists(os.path.join(dev, "kfd")):
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
