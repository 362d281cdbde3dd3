"""Level 2: NVIDIA's GPUs as NVML tells of them: which of them CUDA finds, and what they are compiled for.

NVML does not know the variables that CUDA obeys, and counts what CUDA leaves out: GPUs that a control group has given
to another job, and partitioned ones (MIG), of which a process gets one slice (NVIDIA's MIG user guide). Its order is
that of the bus, and CUDA's is that, too, where all GPUs are alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..model import Gpu
from .cores import domain_of
from .visible import Folder, Sight, broken, select, unnamed, words_of

_FILE = re.compile(r"nvidia\d+")
"""A GPU's own in /dev."""


def look(env: Mapping[str, str], dev: Folder) -> Sight:
    """NVIDIA's GPUs that a process with this environment can use, and what is wrong with others."""
    if not may_be_there(dev):
        return Sight()
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:
        return Sight((), broken("NVIDIA", "nvidia-ml-py", error) if _has_one(dev) else "")
    wanted = env.get("CUDA_VISIBLE_DEVICES")
    is_slice = wanted is not None and wanted.strip().startswith("MIG-")
    try:
        if wanted is not None and is_slice:
            return Sight(_slice(pynvml, wanted))
        sight = _found(pynvml, env, dev)
        return Sight(sight.gpus, f"NVIDIA: {sight.trouble}" if sight.trouble else "")
    except pynvml.NVMLError as error:
        which = f" of CUDA_VISIBLE_DEVICES={wanted}" if is_slice else ""
        return Sight((), f"NVIDIA: the driver says{which}: {words_of(error)}")
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _found(nvml: Any, env: Mapping[str, str], dev: Folder) -> Sight:
    """The GPUs, or the one slice of a partitioned GPU, that CUDA finds.

    NVML counts those too that a control group has given to another job; CUDA does not, and its indices leave them out.
    """
    found: list[Gpu] = []
    lost: dict[int, str] = {}
    refused = ""
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            found.append(_gpu(nvml, index))
        except nvml.NVMLError_NoPermission as error:
            refused = refused or f"the driver says of GPU {index}: {words_of(error)}"
        except nvml.NVMLError as error:
            found.append(Gpu(index, "", 0))
            lost[index] = f"the driver says of GPU {index}: {words_of(error)}"
    if not found:
        return Sight((), "" if _may_open_one(dev) else refused)
    chosen = select(found, env.get("CUDA_VISIBLE_DEVICES"))
    for gpu in chosen:
        if gpu.index in lost:
            return Sight((), lost[gpu.index])
    return _whole(nvml, chosen, unnamed(found, "CUDA_VISIBLE_DEVICES", env))


def _whole(nvml: Any, gpus: Sequence[Gpu], trouble: str) -> Sight:
    """Without those that are partitioned. Where one of them has a slice, CUDA uses that, and nothing beside it."""
    whole: list[Gpu] = []
    empty: list[Gpu] = []
    for gpu in gpus:
        slices = _slices(nvml, gpu)
        if slices:
            return Sight(slices[:1], trouble)
        (whole if slices is None else empty).append(gpu)
    if empty and not whole:
        trouble = trouble or f"GPU {empty[0].index} is partitioned (MIG), and has no slice"
    return Sight(tuple(whole), trouble)


def _slices(nvml: Any, gpu: Gpu) -> tuple[Gpu, ...] | None:
    """Those that are ours; ``None`` of a GPU that is not partitioned."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(gpu.index)
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return None
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:  # not one of those that can be
        return None
    slices = []
    for place in range(count):
        with suppress(nvml.NVMLError):  # there is none at this place, or it is another's
            one = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            name, uuid = _text(nvml.nvmlDeviceGetName(one)), _text(nvml.nvmlDeviceGetUUID(one))
            slices.append(Gpu(gpu.index, name, _memory(nvml, one), uuid, gpu.domain))
    return tuple(slices)


def _may_open_one(dev: Folder) -> bool:
    """Whether a GPU's file is for us: then it was not its mode, but a control group that has refused it."""
    with suppress(OSError):
        names = [name for name in os.listdir(dev) if _FILE.fullmatch(name)]
        return any(os.access(os.path.join(dev, name), os.R_OK | os.W_OK) for name in names)
    return False


def _has_one(dev: Folder) -> bool:
    """Whether there is a GPU's own file, and not only one of a driver that may have none."""
    with suppress(OSError):
        return any(_FILE.fullmatch(name) for name in os.listdir(dev))
    return False


def may_be_there(dev: Folder) -> bool:
    """Whether NVML is worth asking; ``dxg`` is how Windows shows its GPU to WSL.

    A machine that has just started may have the driver and none of its files yet: NVML has them made.
    """
    with suppress(OSError):
        if any(name.startswith("nvidia") or name == "dxg" for name in os.listdir(dev)):
            return True
    return os.path.exists(os.path.join(dev, "../proc/driver/nvidia"))


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name, memory = _text(nvml.nvmlDeviceGetName(handle)), _memory(nvml, handle)
    return Gpu(index, name, memory, _uuid(nvml, handle), _domain(nvml, handle))


def _slice(nvml: Any, wanted: str) -> tuple[Gpu, ...]:
    """A slice of a partitioned GPU. CUDA uses the first one that is named, whatever follows it."""
    uuid = wanted.split(",", maxsplit=1)[0].strip()
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    return (Gpu(0, _text(nvml.nvmlDeviceGetName(handle)), _memory(nvml, handle), uuid),)


def _memory(nvml: Any, handle: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # memory shared with the CPU (GB10, Thor) has no number of its own
        return 0


def _uuid(nvml: Any, handle: Any) -> str:
    try:
        return _text(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError:
        return ""


def _domain(nvml: Any, handle: Any) -> int:
    try:
        return domain_of(_text(nvml.nvmlDeviceGetPciInfo(handle).busId))
    except (nvml.NVMLError, AttributeError):  # the latter: a stand-in, or an NVML of long ago
        return -1


def architecture(gpu: Gpu, dev: Folder) -> str:
    """``sm_90``; empty where the driver does not say."""
    if not may_be_there(dev):
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
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return f"sm_{major}{minor}"


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
