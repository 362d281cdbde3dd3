"""What ranks use of GPUs, and how little a driver in trouble matters.

No GPU is here: NVML's and amdsmi's answers are stand-ins, written after what the libraries' manuals say that they give
on machines with 8 GPUs, with a partitioned one, and in a container.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from bed.programs import until

from zlaunch.agent.gpus import CONTEXT, FRESH, GpuWatch, Share, gpu_share
from zlaunch.agent.processes import RankProcess
from zlaunch.agent.usage import UsageSampler
from zlaunch.protocol.messages import Usage
from zlaunch.systems.gpu_usage import Device, Meter, open_meter


class Nvml(types.ModuleType):
    """NVIDIA's library, as it answers on a machine with 8 GPUs, the last of which is partitioned."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.processes: dict[str, list[tuple[int, int | None]]] = {}
        self.used: dict[str, int] = {}

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 8

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"GPU-{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"H100"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(total=80 << 30, used=self.used.get(handle, 600 << 20))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> types.SimpleNamespace:
        if handle.startswith("MIG-"):
            raise self.NVMLError("not supported")
        return types.SimpleNamespace(gpu=10 * int(handle[-1]), memory=3)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(pid=p, usedGpuMemory=u) for p, u in self.processes.get(handle, [])]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nvml:
    library = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    (tmp_path / "nvidiactl").touch()
    return library


def read(tmp_path: Path, **env: str) -> tuple[Device, ...]:
    meter = open_meter(env, tmp_path)
    assert meter is not None
    try:
        return meter.read()
    finally:
        meter.close()


def test_eight_gpus(nvml: Nvml, tmp_path: Path) -> None:
    nvml.processes = {"GPU-3": [(70, 5 << 30), (71, 1 << 30), (9999, 20 << 30)], "GPU-4": [(70, 2 << 30)]}
    devices = read(tmp_path)
    assert nvml.open == 0
    assert len(devices) == 8
    assert gpu_share(devices, {70, 71}, 0) == Share(35.0, 8 << 30, (3, 4)), "with its child; others' bytes are not its"
    assert gpu_share(devices, {80}, 0) == Share(), "it uses none"
    chosen = read(tmp_path, CUDA_VISIBLE_DEVICES="4,3")
    assert gpu_share(chosen, {71}, 0) == Share(30.0, 1 << 30, (1,)), "by the place in the host's facts"


def test_a_slice_of_a_partitioned_gpu_does_not_say_how_busy_it_is(nvml: Nvml, tmp_path: Path) -> None:
    nvml.processes = {"MIG-a": [(70, 5 << 30)]}
    devices = read(tmp_path, CUDA_VISIBLE_DEVICES="MIG-a")
    assert gpu_share(devices, {70}, 0) == Share(None, 5 << 30, (0,))


def test_bytes_that_the_driver_keeps_for_itself_are_unknown(nvml: Nvml, tmp_path: Path) -> None:
    nvml.processes = {"GPU-1": [(70, None)]}
    assert gpu_share(read(tmp_path), {70}, 1) == Share(10.0, None, (1,))


def test_in_a_container_that_hides_processes_a_gpu_is_its_places(nvml: Nvml, tmp_path: Path) -> None:
    nvml.used = {"GPU-2": 30 << 30}
    devices = read(tmp_path)
    assert gpu_share(devices, {70}, 2) == Share(20.0, 30 << 30, (2,))
    assert gpu_share(devices, {70}, 0) == Share(), "600 MiB are the driver's own"
    assert gpu_share(devices, {70}, 12) == Share()
    assert devices[0].used < CONTEXT


def test_amd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi = types.ModuleType("amdsmi")
    told = {"name": "python", "pid": 70, "mem": 9, "memory_usage": {"gtt_mem": 1, "cpu_mem": 2, "vram_mem": 5 << 30}}
    vars(smi).update(
        amdsmi_init=lambda: None,
        amdsmi_shut_down=lambda: None,
        amdsmi_get_processor_handles=lambda: [0, 1],
        amdsmi_get_gpu_asic_info=lambda handle: {"market_name": "Instinct"},
        amdsmi_get_gpu_memory_total=lambda handle, kind: 64 << 30,
        amdsmi_get_gpu_device_uuid=lambda handle: f"uuid-{handle}",
        amdsmi_get_gpu_activity=lambda handle: {"gfx_activity": 40 + handle, "umc_activity": 1, "mm_activity": "N/A"},
        amdsmi_get_gpu_memory_usage=lambda handle, kind: 6 << 30,
        amdsmi_get_gpu_process_list=lambda handle: [told] if handle else [],
        AmdSmiMemoryType=types.SimpleNamespace(VRAM=0),
    )
    monkeypatch.setitem(sys.modules, "amdsmi", smi)
    (tmp_path / "kfd").touch()
    assert gpu_share(read(tmp_path), {70}, 1) == Share(41.0, 5 << 30, (1,))
    assert read(tmp_path, HIP_VISIBLE_DEVICES="1") == (Device(41.0, 6 << 30, {70: 5 << 30}),)


def test_without_a_gpu_no_thread_is_made() -> None:
    before = threading.active_count()
    watch = GpuWatch(there=lambda: False)
    watch.ask(1.0)
    assert threading.active_count() == before
    assert watch.seen(1.0) == ()


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Slow(Meter):
    """A driver whose answers cost much."""

    def __init__(self) -> None:
        super().__init__(())
        self.asked = 0

    def read(self) -> tuple[Device, ...]:
        burn(0.02)
        self.asked += 1
        return (Device(float(self.asked), 0, {}),)

    def close(self) -> None:
        """There is nothing to let go of."""


def test_a_driver_whose_answers_cost_much_is_asked_less_often() -> None:
    meter = Slow()
    watch = GpuWatch(opened=lambda: meter, there=lambda: True)
    watch.ask(100.0)
    until(lambda: watch._pause > 0, "its answer")
    assert watch._pause >= 10.0
    watch.ask(109.0)
    assert watch._question == 100.0
    watch.ask(100.0 + watch._pause)
    until(lambda: meter.asked == 2, "the second answer")
    assert watch.seen(100.0 + 2 * watch._pause) != (), "which counts until there is a newer one"


class Stuck(Meter):
    """A driver that answers once, and then hangs."""

    def __init__(self) -> None:
        super().__init__(())
        self.released = threading.Event()
        self.asked = 0

    def read(self) -> tuple[Device, ...]:
        self.asked += 1
        if self.asked > 1:
            self.released.wait(20)
            raise OSError("it fell off its bus")
        return (Device(50.0, 7 << 30, {}),)

    def close(self) -> None:
        """There is nothing to let go of."""


def test_a_driver_that_hangs_holds_up_nobody() -> None:
    meter = Stuck()
    watch = GpuWatch(opened=lambda: meter, there=lambda: True)
    watch.ask(100.0)
    until(lambda: watch.seen(100.0) != (), "its answer")
    assert watch.seen(100.0 + FRESH) == (Device(50.0, 7 << 30, {}),)
    watch.ask(150.0)
    until(lambda: meter.asked == 2, "the question that hangs")
    for now in range(151, 160):
        watch.ask(float(now))
        assert watch.seen(float(now)) == (), "what is old is told no more"
    meter.released.set()
    until(lambda: watch._pause > 10, "the error, after which it is left alone for a while")


class Ready(Slow):
    """A driver that has this process on its second GPU."""

    def read(self) -> tuple[Device, ...]:
        return (Device(5.0, 0, {}), Device(75.0, 9 << 30, {os.getpid(): 8 << 30}))


def test_samples_have_what_the_driver_told_before() -> None:
    watch = GpuWatch(opened=Ready, there=lambda: True)
    rank = RankProcess(("run", 0), 3, None, os.getpid())  # type: ignore[arg-type]
    sent: list[Usage] = []
    sampler = UsageSampler({(("run", 0), 3): rank}, sent.append, watch)
    now = sampler.deadline() or 0.0
    sampler.tick(now)
    until(lambda: watch.seen(now) != (), "its answer")
    sampler.tick(sampler.deadline() or 0.0)
    first, second = (usage.ranks[0] for usage in sent)
    assert (first.gpu, first.gpu_memory, first.gpus) == (None, None, ())
    assert (second.gpu, second.gpu_memory, second.gpus) == (75.0, 8 << 30, (1,))
