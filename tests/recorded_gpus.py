"""Recorded stand-ins for NVIDIA's and AMD's libraries, for machines that none of ours is.

No GPU is here. What is answered was written after nvidia-ml-py 13 and amdsmi 7: names, parameters, types, and the
errors, which are nvidia-ml-py's own. A test holds the stand-in's parameters against the real library's.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest


def refusal(code: int) -> Exception:
    """What nvidia-ml-py raises for one of NVML's numbers."""
    error: Exception = pynvml.NVMLError(code)
    return error


@dataclass(eq=False)
class Board:
    """A GPU of NVIDIA's, or a slice of one; it is its own handle."""

    uuid: str
    name: str | bytes = "NVIDIA H100 80GB HBM3"
    memory: int = 80 << 30
    """0: as of GPUs that share the CPU's, it is not told."""
    capability: tuple[int, int] = (9, 0)
    slices: list[Board] | None = None
    """``None``: it is not partitioned."""
    refused: int = 0
    """NVML's number for why it cannot be had."""
    busy: int = 0
    used: int = 600 << 20
    processes: dict[int, int | None] = field(default_factory=dict)

    @property
    def is_slice(self) -> bool:
        return self.uuid.startswith("MIG-")


class Nvml(types.ModuleType):
    """nvidia-ml-py on a machine with these boards."""

    NVMLError = pynvml.NVMLError
    NVMLError_NoPermission = pynvml.NVMLError_NoPermission

    def __init__(self, boards: Sequence[Board]) -> None:
        super().__init__("pynvml")
        self.boards = list(boards)
        self.open = 0
        self.refused = 0
        """NVML's number for why it does not start."""

    def nvmlInit(self) -> None:
        if self.refused:
            raise refusal(self.refused)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Board:
        if self.boards[index].refused:
            raise refusal(self.boards[index].refused)
        return self.boards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Board:
        for board in self.boards:
            for one in (board, *(board.slices or ())):
                if one.uuid == uuid:
                    return one
        raise refusal(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetName(self, handle: Board) -> str | bytes:
        return handle.name

    def nvmlDeviceGetUUID(self, handle: Board) -> str:
        return handle.uuid

    def nvmlDeviceGetMemoryInfo(self, handle: Board, version: object = None) -> SimpleNamespace:
        if not handle.memory:
            raise refusal(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=handle.memory, used=handle.used)

    def nvmlDeviceGetPciInfo(self, handle: Board) -> SimpleNamespace:
        return SimpleNamespace(busId="FFFFFFFF:3B:00.0")

    def nvmlDeviceGetCudaComputeCapability(self, handle: Board) -> tuple[int, int]:
        if handle.is_slice or not handle.capability[0]:
            raise refusal(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return handle.capability

    def nvmlDeviceGetMigMode(self, device: Board) -> list[int]:
        if device.capability < (8, 0):
            raise refusal(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(device.slices is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Board) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Board, index: int) -> Board:
        place = index - 1  # the first place is empty
        if device.slices is None or not 0 <= place < len(device.slices):
            raise refusal(pynvml.NVML_ERROR_NOT_FOUND)
        return device.slices[place]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, migDevice: Board) -> Board:
        return next(board for board in self.boards if migDevice in (board.slices or ()))

    def nvmlDeviceGetUtilizationRates(self, handle: Board) -> SimpleNamespace:
        if handle.is_slice:
            raise refusal(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=handle.busy, memory=3)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Board) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in handle.processes.items()]


@dataclass(eq=False)
class Instinct:
    """A GPU of AMD's; it is its own handle."""

    serial: str
    """As the library writes it: ``0x`` and 16 digits."""
    memory: int = 64 << 30
    busy: int | str = 0
    """``N/A`` where it is not told."""
    used: int = 6 << 30
    processes: dict[int, int] = field(default_factory=dict)


class Amdsmi(types.ModuleType):
    """amdsmi on a machine with these GPUs."""

    AmdSmiMemoryType = SimpleNamespace(VRAM=0)

    def __init__(self, gpus: Sequence[Instinct]) -> None:
        super().__init__("amdsmi")
        self.gpus = list(gpus)
        self.open = 0
        self.trouble: dict[str, Exception] = {}
        """Functions, by their names without ``amdsmi_``, that raise this."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        error = super().__getattribute__("trouble").get(name.removeprefix("amdsmi_")) if callable(found) else None
        if error is None:
            return found

        def fail(*_: object) -> None:
            raise error

        return fail

    def amdsmi_init(self) -> None:
        self.open += 1

    def amdsmi_shut_down(self) -> None:
        self.open -= 1

    def amdsmi_get_processor_handles(self) -> list[Instinct]:
        return self.gpus

    def amdsmi_get_gpu_asic_info(self, handle: Instinct) -> dict[str, object]:
        return {"market_name": "AMD Instinct MI300A", "asic_serial": handle.serial, "vendor_name": "AMD"}

    def amdsmi_get_gpu_device_uuid(self, handle: Instinct) -> str:
        return f"{handle.serial[2:4].lower()}ff74b5-0000-1000-80af-000000000000"

    def amdsmi_get_gpu_device_bdf(self, handle: Instinct) -> str:
        return "ffff:c1:00.0"

    def amdsmi_get_gpu_memory_total(self, handle: Instinct, kind: object) -> int:
        return handle.memory

    def amdsmi_get_gpu_activity(self, handle: Instinct) -> dict[str, object]:
        return {"gfx_activity": handle.busy, "umc_activity": 1, "mm_activity": "N/A"}

    def amdsmi_get_gpu_memory_usage(self, handle: Instinct, kind: object) -> int:
        return handle.used

    def amdsmi_get_gpu_process_list(self, handle: Instinct) -> list[dict[str, object]]:
        return [
            {"name": "python", "pid": pid, "mem": 9, "memory_usage": {"gtt_mem": 1, "cpu_mem": 2, "vram_mem": size}}
            for pid, size in handle.processes.items()
        ]


def nvidia_machine(monkeypatch: pytest.MonkeyPatch, dev: Path, boards: Sequence[Board]) -> Nvml:
    """``dev`` stands for /dev."""
    library = Nvml(boards)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    for name in ("nvidiactl", *(f"nvidia{index}" for index in range(len(boards)))):
        (dev / name).touch()
    return library


def amd_machine(monkeypatch: pytest.MonkeyPatch, dev: Path, gpus: Sequence[Instinct]) -> Amdsmi:
    """As above."""
    library = Amdsmi(gpus)
    monkeypatch.setitem(sys.modules, "amdsmi", library)
    (dev / "kfd").touch()
    return library
