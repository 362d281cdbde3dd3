"""What ranks use of GPUs, and how little a driver in trouble matters.

No GPU is here: NVML's and amdsmi's answers are recorded ones.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from bed.programs import until
from recorded_gpus import Board, Instinct, Nvml, amd_machine, nvidia_machine

from zlaunch.agent.gpus import CONTEXT, FRESH, GpuWatch, Share, gpu_share
from zlaunch.agent.processes import RankProcess
from zlaunch.agent.usage import UsageSampler
from zlaunch.protocol.messages import Usage
from zlaunch.systems.gpu_usage import Device, Meter, open_meter

NOBODY = (1 << 22) + 1
"""More than the kernel gives."""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nvml:
    """A machine with 8 GPUs, of which the last may be partitioned."""
    return nvidia_machine(monkeypatch, tmp_path, [Board(f"GPU-{place}", busy=10 * place) for place in range(8)])


def read(tmp_path: Path, **env: str) -> tuple[Device, ...]:
    meter = open_meter(env, tmp_path)
    assert meter is not None
    try:
        return meter.read()
    finally:
        meter.close()


def test_eight_gpus(nvml: Nvml, tmp_path: Path) -> None:
    nvml.boards[3].processes = {70: 5 << 30, 71: 1 << 30, 9999: 20 << 30}
    nvml.boards[4].processes = {70: 2 << 30}
    devices = read(tmp_path)
    assert nvml.open == 0
    assert len(devices) == 8
    assert gpu_share(devices, {70, 71}, 0) == Share(35.0, 8 << 30, (3, 4)), "with its child; others' bytes are not its"
    assert gpu_share(devices, {80}, 0) == Share(), "it uses none"
    chosen = read(tmp_path, CUDA_VISIBLE_DEVICES="4,3")
    assert gpu_share(chosen, {71}, 0) == Share(30.0, 1 << 30, (1,)), "by the place in the host's facts"


def test_a_slice_of_a_partitioned_gpu_does_not_say_how_busy_it_is(nvml: Nvml, tmp_path: Path) -> None:
    nvml.boards[7].slices = [Board("MIG-a", processes={70: 5 << 30})]
    devices = read(tmp_path, CUDA_VISIBLE_DEVICES="MIG-a")
    assert gpu_share(devices, {70}, 0) == Share(None, 5 << 30, (0,))


def test_bytes_that_the_driver_keeps_for_itself_are_unknown(nvml: Nvml, tmp_path: Path) -> None:
    nvml.boards[1].processes = {70: None}
    assert gpu_share(read(tmp_path), {70}, 1) == Share(10.0, None, (1,))


def test_in_a_container_that_hides_processes_a_gpu_is_its_places(nvml: Nvml, tmp_path: Path) -> None:
    nvml.boards[2].used = 30 << 30
    devices = read(tmp_path)
    assert gpu_share(devices, {70}, 2) == Share(20.0, 30 << 30, (2,))
    assert gpu_share(devices, {70}, 0) == Share(), "600 MiB are the driver's own"
    assert gpu_share(devices, {70}, 12) == Share()
    assert devices[0].used < CONTEXT


def test_in_a_container_that_is_told_the_machine_s_numbers_it_is_too(nvml: Nvml, tmp_path: Path) -> None:
    """A driver that knows no namespaces of pids tells numbers that no process here has."""
    nvml.boards[2].used, nvml.boards[2].processes = 30 << 30, {NOBODY: 29 << 30}
    assert gpu_share(read(tmp_path), {70}, 2) == Share(20.0, 30 << 30, (2,))
    nvml.boards[2].processes[os.getpid()] = 1 << 30
    assert gpu_share(read(tmp_path), {70}, 2) == Share(), "somebody else's"


def test_amd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus = [Instinct("0x0A", busy="N/A"), Instinct("0x0B", busy=41, processes={70: 5 << 30})]
    smi = amd_machine(monkeypatch, tmp_path, gpus)
    assert gpu_share(read(tmp_path), {70}, 1) == Share(41.0, 5 << 30, (1,))
    assert read(tmp_path, HIP_VISIBLE_DEVICES="1") == (Device(41.0, 6 << 30, {70: 5 << 30}),)
    assert read(tmp_path, HIP_VISIBLE_DEVICES="0") == (Device(None, 6 << 30, {}),)
    assert smi.open == 0


def test_the_gpus_that_are_told_of_are_those_that_count(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a machine with both makers' GPUs: those that the PyTorch there is made for, as in the host's facts."""
    amd_machine(monkeypatch, tmp_path, [Instinct("0x0B", busy=41)])
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.9.0+rocm6.4'\n")
    assert len(read(tmp_path)) == 8
    monkeypatch.syspath_prepend(tmp_path)
    assert read(tmp_path) == (Device(41.0, 6 << 30, {}),)


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


def test_what_it_costs_to_find_the_driver_delays_no_answer() -> None:
    """NVML's start takes far longer than its answers do."""

    def opened() -> Meter:
        burn(0.1)
        return Ready()

    watch = GpuWatch(opened=opened, there=lambda: True)
    watch.ask(100.0)
    until(lambda: watch._pause > 0, "its answer")
    assert watch._pause < 10


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
