"""Level 2: how busy GPUs are, and whose bytes are on them. NVIDIA's answer through NVML, AMD's through amdsmi.

Neither makes a context on a GPU, and neither is imported where the machine has no such device. A call may take long
where a GPU is in trouble: ask in a thread that nobody waits for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from ..model import Gpu
from . import amd, nvidia
from .detect import torch_version
from .gpus import look
from .visible import Folder, is_amds


class Device(Struct, frozen=True):
    """One GPU, at one moment."""

    busy: float | None
    """Percent of the time in which it computed; ``None`` where it does not say, as slices of a GPU don't."""
    used: int
    """Bytes."""
    processes: Mapping[int, int | None]
    """The processes on it, and the bytes of each where they are told. Of a container's driver it may be empty."""


class Meter(ABC):
    """An open way to the GPUs that ``gpus`` names; in their order."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self.gpus = tuple(gpus)

    @abstractmethod
    def read(self) -> tuple[Device, ...]:
        """All GPUs now. Raises what the driver's library raises."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the driver's library."""


def may_have_gpus(dev: Folder = "/dev") -> bool:
    """Whether it is worth to ask."""
    return nvidia.may_be_there(dev) or amd.may_be_there(dev)


def open_meter(env: Mapping[str, str] | None = None, dev: Folder = "/dev") -> Meter | None:
    """For the GPUs that a process with this environment (default: ours) can use; ``None`` where there are none."""
    gpus = look(env, dev, torch_version()).gpus
    with suppress(Exception):
        if gpus:
            return _Amd(gpus) if is_amds(gpus[0]) else _Nvidia(gpus)
    return None


class _Nvidia(Meter):
    def __init__(self, gpus: Sequence[Gpu]) -> None:
        super().__init__(gpus)
        import pynvml

        pynvml.nvmlInit()
        self._nvml: Any = pynvml
        try:
            self._handles = [self._handle(gpu) for gpu in gpus]
        except BaseException:
            self.close()
            raise

    def read(self) -> tuple[Device, ...]:
        return tuple(self._device(handle) for handle in self._handles)

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _handle(self, gpu: Gpu) -> Any:
        if gpu.uuid:
            return self._nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        return self._nvml.nvmlDeviceGetHandleByIndex(gpu.index)

    def _device(self, handle: Any) -> Device:
        nvml = self._nvml
        busy, used, processes = None, 0, {}
        with suppress(nvml.NVMLError):
            busy = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        with suppress(nvml.NVMLError):
            used = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
        with suppress(nvml.NVMLError):
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                processes[int(process.pid)] = process.usedGpuMemory
        return Device(busy, used, processes)


class _Amd(Meter):
    def __init__(self, gpus: Sequence[Gpu]) -> None:
        super().__init__(gpus)
        amdsmi = amd.import_amdsmi()
        amdsmi.amdsmi_init()
        self._smi: Any = amdsmi
        try:
            handles = amdsmi.amdsmi_get_processor_handles()
            self._handles = [handles[gpu.index] for gpu in gpus]
        except BaseException:
            self.close()
            raise

    def read(self) -> tuple[Device, ...]:
        return tuple(self._device(handle) for handle in self._handles)

    def close(self) -> None:
        self._smi.amdsmi_shut_down()

    def _device(self, handle: Any) -> Device:
        smi = self._smi
        busy, used, processes = None, 0, {}
        with suppress(Exception):
            busy = float(smi.amdsmi_get_gpu_activity(handle)["gfx_activity"])
        with suppress(Exception):
            used = int(smi.amdsmi_get_gpu_memory_usage(handle, smi.AmdSmiMemoryType.VRAM))
        with suppress(Exception):
            for process in smi.amdsmi_get_gpu_process_list(handle):
                memory = process["memory_usage"]["vram_mem"]
                processes[int(process["pid"])] = int(memory)
        return Device(busy, used, processes)
