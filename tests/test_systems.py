"""What a machine is: control groups, NUMA, GPUs, laid out as files and values."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from zlaunch.model import Gpu
from zlaunch.systems.detect import facts, torch_version
from zlaunch.systems.gpus import select, visible_gpus
from zlaunch.systems.limits import numa_domains, parse_cpu_list, usable_cores, usable_memory

MASK = len(os.sched_getaffinity(0))
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def machine(root: Path, cgroup: str, mounts: str, **files: str) -> Path:
    return lay_out(root, {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **files})


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("100000 100000", 1), ("20000 100000", 1), ("max 100000", MASK), ("99900000 100000", MASK), ("", MASK)],
)
def test_a_quota_is_rounded_up_and_never_more_than_the_mask(tmp_path: Path, quota: str, cores: int) -> None:
    root = machine(tmp_path, "0::/job\n", V2, **{"sys/fs/cgroup/job/cpu.max": quota})
    assert usable_cores(root) == cores


def test_half_a_core_more_is_one_core_more(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/job\n", V2, **{"sys/fs/cgroup/job/cpu.max": "150000 100000"})
    assert usable_cores(root) == min(2, MASK)


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/slice/job\n",
        V2,
        **{
            "proc/meminfo": "MemTotal: 8388608 kB\n",
            "sys/fs/cgroup/slice/memory.max": "1073741824",
            "sys/fs/cgroup/slice/job/memory.max": "max",
            "sys/fs/cgroup/slice/cpu.max": "10000 100000",
        },
    )
    assert usable_memory(root) == 1 << 30
    assert usable_cores(root) == 1


def test_version_1_in_a_container_sees_its_own_part_of_the_tree(tmp_path: Path) -> None:
    mounts = (
        "32 31 0:29 /docker/ab /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
        "33 31 0:30 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    )
    root = machine(
        tmp_path,
        "4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n",
        mounts,
        **{
            "proc/meminfo": "MemTotal: 8388608 kB\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "4294967296\n",
        },
    )
    assert usable_cores(root) == 1
    assert usable_memory(root) == 4 << 30


def test_version_1_writes_a_huge_number_for_no_limit(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "4:memory:/\n2:cpu:/\n",
        "32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu\n33 31 0:30 / /cg/memory rw - cgroup cgroup rw,memory\n",
        **{
            "proc/meminfo": "MemTotal: 1024 kB\n",
            "cg/cpu/cpu.cfs_quota_us": "-1\n",
            "cg/cpu/cpu.cfs_period_us": "100000\n",
            "cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert usable_cores(root) == MASK
    assert usable_memory(root) == 1 << 20


def test_numa_nodes_count_where_a_core_of_ours_is(tmp_path: Path) -> None:
    folder = "sys/devices/system/node"
    root = lay_out(
        tmp_path,
        {
            f"{folder}/node0/cpulist": "0-3\n",
            f"{folder}/node1/cpulist": "4-7\n",
            f"{folder}/node2/cpulist": "\n",  # memory alone
        },
    )
    assert numa_domains(root, frozenset(range(8))) == 2
    assert numa_domains(root, frozenset({5})) == 1
    assert numa_domains(tmp_path / "nothing", frozenset({0})) == 1


def test_cpu_lists() -> None:
    assert parse_cpu_list("0-2,8\n") == {0, 1, 2, 8}
    assert parse_cpu_list("\n") == frozenset()


GPUS = (Gpu(0, "A", 80, "GPU-aa11"), Gpu(1, "A", 80, "GPU-aa22"), Gpu(2, "A", 80, "GPU-bb33"))


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("0,9,1", [0]),  # the first that is not there ends the list
        ("GPU-bb", [2]),
        ("GPU-aa", []),  # two begin like this
        ("1,1", []),
        ("none", []),
    ],
)
def test_visible_devices(wanted: str | None, left: list[int]) -> None:
    assert [gpu.index for gpu in select(GPUS, wanted)] == left


def test_no_gpu_is_visible_where_none_is_wanted() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}) == ()


class Nvml(types.ModuleType):
    """NVIDIA's library as a machine with two GPUs has it; the second has no memory of its own."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"GPU-{index}{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"Slice" if handle.startswith("MIG") else b"Big"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> types.SimpleNamespace:
        if handle == "GPU-11":
            raise self.NVMLError("not supported")
        return types.SimpleNamespace(total=80 << 30)


@pytest.mark.parametrize(
    ("env", "gpus"),
    [
        ({}, (Gpu(0, "Big", 80 << 30, "GPU-00"), Gpu(1, "Big", 0, "GPU-11"))),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (Gpu(1, "Big", 0, "GPU-11"),)),
        ({"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, (Gpu(0, "Slice", 80 << 30, "MIG-a"),)),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
    ],
)
def test_nvidia(env: dict[str, str], gpus: tuple[Gpu, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (tmp_path / "nvidiactl").touch()
    assert visible_gpus(env, tmp_path) == gpus
    assert nvml.open == 0


def test_a_driver_without_a_device_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()

    def refuse() -> None:
        raise nvml.NVMLError("driver not loaded")

    monkeypatch.setattr(nvml, "nvmlInit", refuse)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (tmp_path / "nvidiactl").touch()
    assert visible_gpus({}, tmp_path) == ()


def test_amd_hides_in_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = types.ModuleType("amdsmi")
    vars(smi).update(
        amdsmi_init=lambda: None,
        amdsmi_shut_down=lambda: None,
        amdsmi_get_processor_handles=lambda: [0, 1, 2],
        amdsmi_get_gpu_asic_info=lambda handle: {"market_name": "Instinct"},
        amdsmi_get_gpu_memory_total=lambda handle, kind: 64 << 30,
        amdsmi_get_gpu_device_uuid=lambda handle: f"uuid-{handle}",
        AmdSmiMemoryType=types.SimpleNamespace(VRAM=0),
    )
    monkeypatch.setitem(sys.modules, "amdsmi", smi)
    (tmp_path / "kfd").touch()
    hidden = {"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}
    assert [gpu.index for gpu in visible_gpus({}, tmp_path)] == [0, 1, 2]
    assert visible_gpus(hidden, tmp_path) == (Gpu(2, "Instinct", 64 << 30, "uuid-2"),)


def test_the_facts_of_this_machine() -> None:
    here = facts()
    assert here.hostname == os.uname().nodename
    assert here.pid == os.getpid()
    assert 1 <= here.cores <= MASK
    assert here.memory > 1 << 26
    assert here.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_torch_is_known_and_not_imported() -> None:
    code = (
        "import sys; from zlaunch.systems.detect import facts; print(facts().torch);"
        "assert not {'torch', 'zmq', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == torch_version() != ""
