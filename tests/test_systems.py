"""What a machine is: control groups, NUMA, GPUs, laid out as files and values."""

import os
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from recorded_gpus import Board, Instinct, amd_machine, nvidia_machine

from zlaunch.model import Gpu
from zlaunch.systems.detect import facts, torch_version
from zlaunch.systems.gpus import look
from zlaunch.systems.limits import numa_domains, parse_cpu_list, usable_cores, usable_memory
from zlaunch.systems.visible import Sight, select

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
        ("\N{SUPERSCRIPT TWO}", []),  # a digit, and no number
    ],
)
def test_visible_devices(wanted: str | None, left: list[int]) -> None:
    assert [gpu.index for gpu in select(GPUS, wanted)] == left


def test_no_gpu_is_visible_where_none_is_wanted() -> None:
    assert look({"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}).gpus == ()


@pytest.mark.parametrize(
    ("env", "gpus"),
    [
        ({}, (Gpu(0, "Big", 80 << 30, "GPU-00"), Gpu(1, "Big", 0, "GPU-11"))),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (Gpu(1, "Big", 0, "GPU-11"),)),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
    ],
)
def test_nvidia(env: dict[str, str], gpus: tuple[Gpu, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of long ago gives bytes; a GPU that shares the CPU's memory has none of its own."""
    nvml = nvidia_machine(monkeypatch, tmp_path, [Board("GPU-00", "Big"), Board("GPU-11", b"Big", memory=0)])
    assert look(env, tmp_path).gpus == gpus
    assert nvml.open == 0


SLICES = (Board("MIG-a", "Slice", 10 << 30), Board("MIG-b", "Slice", 20 << 30))


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("MIG-b,MIG-a", (Gpu(0, "Slice", 20 << 30, "MIG-b"),)),  # named: the first
        (None, (Gpu(1, "Slice", 10 << 30, "MIG-a"),)),  # one slice, and nothing beside it
        ("0,1", (Gpu(1, "Slice", 10 << 30, "MIG-a"),)),
        ("0,2,3", (Gpu(0, "Big", 80 << 30, "GPU-0"), Gpu(3, "Big", 80 << 30, "GPU-3"))),
        ("GPU-2", ()),
    ],
)
def test_of_a_partitioned_gpu_cuda_has_one_slice(
    visible: str | None, gpus: tuple[Gpu, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its user guide has it; a GPU that is partitioned, and has no slice yet, is no use to anybody."""
    boards = [Board("GPU-0", "Big"), Board("GPU-1", "Big", slices=[*SLICES]), Board("GPU-2", "Big", slices=[])]
    nvidia_machine(monkeypatch, tmp_path, [*boards, Board("GPU-3", "Big", capability=(7, 0))])
    sight = look({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, tmp_path)
    assert sight.gpus == gpus
    assert sight.trouble == ("" if gpus else "NVIDIA: GPU 2 is partitioned (MIG), and has no slice")


def test_a_driver_without_a_device_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_machine(monkeypatch, tmp_path, []).refused = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert look({}, tmp_path) == Sight()


def test_amd_hides_in_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    amd_machine(monkeypatch, tmp_path, [Instinct(f"0x{place}FFF74B500001000") for place in range(3)])
    hidden = {"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}
    copied = {"ROCR_VISIBLE_DEVICES": "1,2", "CUDA_VISIBLE_DEVICES": "1,2"}  # as Slurm sets all that it knows
    assert [gpu.index for gpu in look(copied, tmp_path).gpus] == [1, 2]
    assert [gpu.index for gpu in look({}, tmp_path).gpus] == [0, 1, 2]
    assert look(hidden, tmp_path).gpus == (Gpu(2, "AMD Instinct MI300A", 64 << 30, "2fff74b500001000"),)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [("GPU-1FFF74B500001000", [1]), ("GPU-2fff,0", [2, 0]), ("GPU-1fff,1", []), ("1fff", []), ("AMD", [])],
)
def test_amd_s_gpus_by_their_uuids(
    wanted: str, left: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ROCm's and PyTorch's way to write them: ``GPU-`` and the serial number."""
    amd_machine(monkeypatch, tmp_path, [Instinct(f"0x{place}FFF74B500001000") for place in range(3)])
    assert [gpu.index for gpu in look({"ROCR_VISIBLE_DEVICES": wanted}, tmp_path).gpus] == left


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
