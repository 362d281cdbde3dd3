"""What needs a GPU of NVIDIA's and a PyTorch for CUDA: ``pytest tests/gpu`` on a machine that has them.

These tests have not run yet: none of the machines on which zlaunch was written so far has lent a GPU. They were
written after the manuals of CUDA, NVML and PyTorch, and a failure here may be the test's own. Elsewhere all of them are
skipped, with the reason; the suite (``pytest``) leaves the folder out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from bed.programs import until

import zlaunch
from zlaunch.systems.gpus import look

SIGHT = look(torch=torch.__version__)
GPUS = SIGHT.gpus
_WHY = "this PyTorch is not made for CUDA" if torch.version.cuda is None else SIGHT.trouble or "there is no GPU"
pytestmark = pytest.mark.skipif(torch.version.cuda is None or not GPUS, reason=_WHY)

GIBIBYTE = 1 << 30
SLACK = 300 << 20
"""Bytes by which a GPU's used memory may differ without anybody holding it."""


def launcher(**fields: Any) -> zlaunch.Launcher:
    return zlaunch.Launcher(**{"workers_per_host": "gpu", "view": "none", "log_dir": None, "grace_period": 5, **fields})


@pytest.fixture(scope="module")
def ranks() -> Iterator[zlaunch.Launcher]:
    """Agents that stay, one rank for each GPU."""
    with launcher() as started:
        yield started


@pytest.fixture(autouse=True)
def _nothing_left() -> None:
    """In the place of the suite's own: the agents stay for the module."""


def used() -> int:
    """Bytes in use on the first GPU, by the driver's account."""
    import pynvml

    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(GPUS[0].index)).used)
    finally:
        pynvml.nvmlShutdown()


# --- which device is whose --------------------------------------------------------------------------------------------


def test_a_rank_for_each_gpu_and_a_gpu_for_each_rank(ranks: zlaunch.Launcher) -> None:
    def work() -> tuple[int, int, int, str]:
        device = torch.cuda.current_device()
        torch.ones(1, device="cuda")
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return int(os.environ["LOCAL_RANK"]), device, torch.cuda.device_count(), uuid.removeprefix("GPU-")

    seen = list(ranks.run(work))
    assert [(local, device, count) for local, device, count, _ in seen] == [
        (local, local, len(GPUS)) for local in range(len(GPUS))
    ]
    assert [uuid for *_, uuid in seen] == [gpu.uuid.removeprefix("GPU-") for gpu in GPUS]


def test_ranks_with_several_gpus_see_their_own() -> None:
    def work() -> tuple[int, int]:
        torch.cuda.set_device(0)
        return torch.cuda.device_count(), torch.cuda.current_device()

    each = max(1, len(GPUS) // 2)
    if each == 1:
        pytest.skip(f"four GPUs are needed, and there are {len(GPUS)}")
    assert set(launcher(gpus_per_worker=each, backend=None).run(work)) == {(each, 0)}


def test_a_script_that_chooses_by_its_local_rank(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import os, torch\ntorch.cuda.set_device(int(os.environ['LOCAL_RANK']))\n"
        "print(torch.ones(2, device='cuda').sum().item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "zlaunch", "run", "--local", "-n", "gpu", "--log-dir", "none", str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2.0") >= 1  # lines that ranks print alike are shown once


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function", "script"])
def test_the_share_of_memory_is_in_force(tmp_path: Path, kind: str) -> None:
    total = GPUS[0].memory
    text = (
        "import torch\n"
        f"small = torch.empty({total // 20}, dtype=torch.uint8, device='cuda')\n"
        "try:\n"
        f"    torch.empty({total // 5}, dtype=torch.uint8, device='cuda')\n"
        "except torch.OutOfMemoryError:\n"
        "    print('bounded')\n"
        "else:\n"
        "    raise SystemExit(3)\n"
    )
    made = launcher(workers_per_host=1, backend=None, gpu_memory_fraction=0.1)
    if kind == "function":
        made.run(exec, text)
    else:
        (tmp_path / "s.py").write_text(text)
        made.run_script(str(tmp_path / "s.py"))


def test_memory_is_free_again_after_each_step(ranks: zlaunch.Launcher) -> None:
    def take() -> float:
        return torch.ones(GIBIBYTE // 4, device="cuda").sum().item()

    one = ranks.on(workers_per_host=1, backend=None)
    one.run(int)
    before = used()
    for _ in range(3):
        assert one.run(take)[0] == GIBIBYTE // 4
        until(lambda: used() < before + SLACK, "its memory")  # the driver may take it back a little later


def test_a_rank_that_fails_leaves_no_memory(ranks: zlaunch.Launcher) -> None:
    def fail() -> None:
        torch.ones(GIBIBYTE // 4, device="cuda")
        torch.cuda.synchronize()
        os.kill(os.getpid(), signal.SIGKILL)

    before = used()
    with pytest.raises(zlaunch.WorkerFailedError):
        ranks.on(workers_per_host=1, backend=None).run(fail)
    until(lambda: used() < before + SLACK, "its memory")


def test_the_template_holds_no_gpu(ranks: zlaunch.Launcher) -> None:
    """Its forks could not use CUDA otherwise; between steps nothing of ours is on a GPU."""
    import pynvml

    def parent() -> int:
        torch.ones(1, device="cuda")
        return os.getppid()

    templates = set(ranks.run(parent))
    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(gpu.index) for gpu in GPUS]
        on_gpus = {one.pid for handle in handles for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    finally:
        pynvml.nvmlShutdown()
    assert not templates & on_gpus
    for template in templates:
        for fd in os.listdir(f"/proc/{template}/fd"):
            with suppress(FileNotFoundError):  # it has been closed since
                assert not os.readlink(f"/proc/{template}/fd/{fd}").startswith("/dev/nvidia")


# --- process groups ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, len(GPUS) or 1])
def test_a_group_of_nccl(ranks: zlaunch.Launcher, count: int) -> None:
    def work() -> tuple[str, float, str]:
        total = torch.ones(4, device="cuda") * (dist.get_rank() + 1)
        dist.all_reduce(total)
        bound = dist.distributed_c10d._get_default_group().bound_device_id
        return dist.get_backend(), total[0].item(), str(bound)

    expected = float(sum(range(1, count + 1)))
    seen = list(ranks.on(workers_per_host=count).run(work))
    assert seen == [("nccl", expected, f"cuda:{local}") for local in range(count)]


def test_more_ranks_than_gpus() -> None:
    """nccl shares no GPU, which is said before anything starts; ``auto`` takes gloo, which copies through the host."""

    def work() -> tuple[str, float]:
        torch.cuda.set_device(0)
        total = torch.ones(1, device="cuda")
        dist.all_reduce(total)
        return dist.get_backend(), total.item()

    many = len(GPUS) + 1
    with pytest.raises(zlaunch.LaunchError, match=rf"localhost \({many} wanted, {len(GPUS)} there\)"):
        launcher(workers_per_host=many, backend="nccl").run(work)
    assert set(launcher(workers_per_host=many).run(work)) == {("gloo", float(many))}


def test_a_rank_that_fails_in_a_group_of_nccl(ranks: zlaunch.Launcher) -> None:
    def work() -> None:
        dist.all_reduce(torch.ones(1, device="cuda"))
        if dist.get_rank() == 0:
            raise LookupError("the cause")
        dist.all_reduce(torch.ones(1, device="cuda"))
        torch.cuda.synchronize()

    with pytest.raises(LookupError, match="the cause"):
        ranks.run(work)


# --- around it --------------------------------------------------------------------------------------------------------


def test_cuda_in_the_process_that_launches() -> None:
    program = (
        "import torch, zlaunch\n"
        "torch.ones(1, device='cuda')\n"
        "def work(): return torch.cuda.is_initialized(), torch.ones(3, device='cuda').sum().item()\n"
        "print(zlaunch.Launcher(workers_per_host=1, backend=None, view='none', log_dir=None).run(work)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "(False, 3.0)\n", done.stderr


def test_usage_tells_of_the_gpu(tmp_path: Path) -> None:
    """A rank that computes for ten seconds: its GPU is busy, and the gibibyte that it holds is its own."""
    script = tmp_path / "s.py"
    script.write_text(
        "import time, torch\n"
        f"held = torch.ones({GIBIBYTE // 4}, device='cuda')\n"
        "matrix, end = torch.ones(4096, 4096, device='cuda'), time.monotonic() + 10\n"
        "while time.monotonic() < end:\n    matrix @ matrix\n    torch.cuda.synchronize()\n"
    )
    words = ["run", "--local", "-n", "1", "--log-dir", "none", "--view", "json", str(script)]
    done = subprocess.run(
        [sys.executable, "-m", "zlaunch", *words], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    events = [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "usage"]
    uses = [use for event in events for use in event["ranks"] if use["gpu_memory"] is not None]
    assert uses, done.stdout
    assert max(use["gpu_memory"] for use in uses) >= GIBIBYTE
    assert max(use["gpu"] or 0.0 for use in uses) > 20
    assert uses[-1]["gpus"] == [0]


def test_info_names_the_gpus() -> None:
    words = [sys.executable, "-m", "zlaunch", "info", "--json"]
    told = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert [gpu["uuid"] for gpu in told["gpus"]] == [gpu.uuid for gpu in GPUS]
    major, minor = torch.cuda.get_device_capability(0)
    assert told["gpu_arch"] == f"sm_{major}{minor}"
