"""What a GPU is compiled for: from NVML, and from the tree in which the AMD driver describes its devices."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from zlaunch.systems.gpus import architecture


class Nvml(types.ModuleType):
    """NVIDIA's library as a machine with an A100 and a partitioned H100 has it."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.known = True

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"GPU-{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:
        assert handle.startswith("MIG-")
        return "GPU-1"

    def nvmlDeviceGetName(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(total=80 << 30)

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:
        if handle.startswith("MIG-") or not self.known:
            raise self.NVMLError("not supported")
        return (8, 0) if handle == "GPU-0" else (9, 0)


@pytest.mark.parametrize(
    ("visible", "arch"), [(None, "sm_80"), ("0", "sm_80"), ("1", "sm_90"), ("MIG-x", "sm_90"), ("", "")]
)
def test_nvidia(visible: str | None, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (tmp_path / "nvidiactl").touch()
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert architecture(env, tmp_path, tmp_path) == arch
    assert nvml.open == 0
    nvml.known = False
    assert architecture(env, tmp_path, tmp_path) == ""
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("number", "arch"),
    [("90402", "gfx942"), ("90010", "gfx90a"), ("90006", "gfx906"), ("100300", "gfx1030"), ("120001", "gfx1201")],
)
def test_amd(number: str, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = types.ModuleType("amdsmi")
    vars(smi).update(
        amdsmi_init=lambda: None,
        amdsmi_shut_down=lambda: None,
        amdsmi_get_processor_handles=lambda: [0],
        amdsmi_get_gpu_asic_info=lambda handle: {"market_name": "Instinct"},
        amdsmi_get_gpu_memory_total=lambda handle, kind: 64 << 30,
        amdsmi_get_gpu_device_uuid=lambda handle: "2fff74b5-0000-1000-80af",
        AmdSmiMemoryType=types.SimpleNamespace(VRAM=0),
    )
    monkeypatch.setitem(sys.modules, "amdsmi", smi)
    (tmp_path / "kfd").touch()
    for node, version in (("0", "0"), ("1", number), ("10", "110000")):
        (tmp_path / "nodes" / node).mkdir(parents=True)
        (tmp_path / "nodes" / node / "properties").write_text(f"simd_count 304\ngfx_target_version {version}\n")
    assert architecture({}, tmp_path, tmp_path / "nodes") == arch
    assert architecture({"ROCR_VISIBLE_DEVICES": ""}, tmp_path, tmp_path / "nodes") == ""
    assert architecture({}, tmp_path, tmp_path / "nothing") == ""


def test_a_machine_without_gpus(tmp_path: Path) -> None:
    assert architecture({}, tmp_path, tmp_path) == ""
