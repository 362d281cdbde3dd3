"""GPUs that are there and cannot be had: a driver that does not answer is no machine without GPUs.

No GPU is here. The drivers' answers are recorded ones, but for one that is real: NVML on a machine that has a GPU's
file and no driver.
"""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest
from recorded_gpus import Amdsmi, Board, Instinct, Nvml, amd_machine, nvidia_machine

import zlaunch
from zlaunch.fields import check_gpus, usable_gpus
from zlaunch.model import Gpu, HostFacts, HostPlan
from zlaunch.plan import count_workers
from zlaunch.steps import backend_for
from zlaunch.systems.gpus import is_in_need, look
from zlaunch.systems.visible import Sight, is_amds

MISMATCH = "RM has detected an NVML/RM version mismatch."
UNLOADED = "Error code:\n\t34 | AMDSMI_STATUS_DRIVER_NOT_LOADED - Driver not loaded"


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """NVIDIA's library on a machine with two GPUs, of which one can be partitioned."""
    return nvidia_machine(monkeypatch, tmp_path, [Board("GPU-0"), Board("GPU-1", capability=(7, 0))])


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Amdsmi:
    """AMD's, on a machine with one."""
    return amd_machine(monkeypatch, tmp_path, [Instinct("0x2FFF74B500001000")])


def test_the_stand_in_is_called_as_the_library_is(nvml: Nvml) -> None:
    for name in (name for name in vars(Nvml) if name.startswith("nvml")):
        ours, theirs = (list(inspect.signature(getattr(one, name)).parameters) for one in (nvml, pynvml))
        assert ours == theirs, name


# --- what a driver says -----------------------------------------------------------------------------------------------


def test_a_driver_that_does_not_start(nvml: Nvml, tmp_path: Path) -> None:
    nvml.refused = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    sight = look({}, tmp_path)
    assert sight.gpus == ()
    assert sight.trouble == f"NVIDIA: there is a GPU, and its driver cannot be asked: {MISMATCH}"
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / name).unlink()  # a driver's own file without a GPU's: on a login node that is no trouble
    assert look({}, tmp_path).trouble == ""


def test_the_real_library_without_a_driver(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    if look({}, tmp_path).gpus:
        pytest.skip("this machine has a GPU")
    assert look({}, tmp_path).trouble.startswith("NVIDIA: there is a GPU, and its driver cannot be asked: ")


def test_a_driver_whose_files_are_still_to_be_made(nvml: Nvml, tmp_path: Path) -> None:
    """NVML makes them, when it is asked for the first time since the machine has started."""
    (tmp_path / "dev").mkdir()
    assert look({}, tmp_path / "dev") == Sight()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    assert len(look({}, tmp_path / "dev").gpus) == len(nvml.boards)


def test_a_gpu_that_is_lost_is_numbered(nvml: Nvml, tmp_path: Path) -> None:
    """And those who leave it out have the others."""
    nvml.boards[1].refused = pynvml.NVML_ERROR_GPU_IS_LOST
    sight = look({}, tmp_path)
    assert (sight.gpus, sight.trouble) == ((), "NVIDIA: the driver says of GPU 1: GPU is lost")
    assert nvml.open == 0
    sight = look({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path)
    assert ([gpu.uuid for gpu in sight.gpus], sight.trouble) == (["GPU-0"], "")


def test_gpus_that_another_job_has_been_given(nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a control group of Slurm's, say. NVML counts them and gives no handle; CUDA counts those that are left."""
    nvml.boards[0].refused = pynvml.NVML_ERROR_NO_PERMISSION
    for env in ({}, {"CUDA_VISIBLE_DEVICES": "0"}):
        sight = look(env, tmp_path)
        assert ([(gpu.index, gpu.uuid) for gpu in sight.gpus], sight.trouble) == ([(1, "GPU-1")], "")
    nvml.boards[1].refused = pynvml.NVML_ERROR_NO_PERMISSION
    assert look({}, tmp_path) == Sight(), "a job without any"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert look({}, tmp_path) == Sight((), "NVIDIA: the driver says of GPU 0: Insufficient Permissions")


@pytest.mark.parametrize(
    ("visible", "count", "trouble"),
    [
        (None, 2, ""),
        ("1,0", 2, ""),
        ("", 0, ""),
        ("-1", 0, ""),
        ("NoDevFiles", 0, ""),
        ("0,-1,7", 1, ""),
        ("0,2", 1, "NVIDIA: CUDA_VISIBLE_DEVICES=0,2 names 2, and there are GPUs 0 to 1"),
        ("9", 0, "NVIDIA: CUDA_VISIBLE_DEVICES=9 names 9, and there are GPUs 0 to 1"),
        ("GPU-7", 0, "NVIDIA: CUDA_VISIBLE_DEVICES=GPU-7 names GPU-7, and there are GPUs 0 to 1"),
        ("MIG-x", 1, ""),
    ],
)
def test_a_gpu_that_is_not_there(nvml: Nvml, tmp_path: Path, visible: str | None, count: int, trouble: str) -> None:
    nvml.boards[0].slices = [Board("MIG-x")] if visible == "MIG-x" else None
    sight = look({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, tmp_path)
    assert (len(sight.gpus), sight.trouble) == (count, trouble)


def test_a_slice_that_is_not_there(nvml: Nvml, tmp_path: Path) -> None:
    sight = look({"CUDA_VISIBLE_DEVICES": "MIG-gone"}, tmp_path)
    assert (sight.gpus, sight.trouble) == ((), "NVIDIA: the driver says of CUDA_VISIBLE_DEVICES=MIG-gone: Not Found")


def test_amdsmi_that_is_not_there_or_finds_no_driver(
    smi: Amdsmi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi.trouble = {"init": RuntimeError(UNLOADED)}
    assert look({}, tmp_path).trouble == (
        "AMD: there is a GPU, and its driver cannot be asked: "
        "Error code: 34 | AMDSMI_STATUS_DRIVER_NOT_LOADED - Driver not loaded"
    )
    smi.trouble = {"get_processor_handles": RuntimeError("AMDSMI_STATUS_BUSY")}
    assert look({}, tmp_path).trouble == "AMD: the driver says: AMDSMI_STATUS_BUSY"
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert look({}, tmp_path).trouble == (
        "AMD: there is a GPU, and the Python package that asks for it, amdsmi, is not installed"
    )
    (tmp_path / "kfd").unlink()
    assert look({}, tmp_path).trouble == ""


WITHOUT_LIBRARY = """
libraries = {}
print("libamd_smi.so: cannot open shared object file: No such file or directory")
print("Unable to find libamd_smi.so library try installing amd-smi-lib from your package manager")
libraries["libamd_smi.so"].amdsmi_free_name_value_pairs
"""


def test_amdsmi_without_the_driver_s_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As amdsmi 7 begins, recorded: what it prints would be in the answers of ``zlaunch info --json``."""
    (tmp_path / "kfd").touch()
    (tmp_path / "amdsmi.py").write_text(WITHOUT_LIBRARY)
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert look({}, tmp_path).trouble.startswith(
        "AMD: there is a GPU, and its driver cannot be asked: libamd_smi.so: cannot open shared object file: "
    )
    assert capsys.readouterr().out == ""


def test_a_gpu_of_which_amdsmi_does_not_tell_everything(smi: Amdsmi, tmp_path: Path) -> None:
    refused = RuntimeError("AMDSMI_STATUS_NO_PERM")
    names = ("get_gpu_asic_info", "get_gpu_memory_total", "get_gpu_device_bdf", "shut_down")
    smi.trouble = dict.fromkeys(names, refused)
    (gpu,) = look({}, tmp_path).gpus
    assert (gpu.name, gpu.memory, gpu.uuid, is_amds(gpu)) == (
        "AMD GPU",
        0,
        "2fff74b5-0000-1000-80af-000000000000",
        True,
    )
    smi.trouble["get_gpu_device_uuid"] = refused
    assert [is_amds(gpu) for gpu in look({}, tmp_path).gpus] == [True]


def test_amd_s_variables_name_what_is_not_there(smi: Amdsmi, tmp_path: Path) -> None:
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        sight = look({name: "3"}, tmp_path)
        assert (sight.gpus, sight.trouble) == ((), f"AMD: {name}=3 names 3, and there is only GPU 0")


def test_gpus_of_two_makers_on_one_host(nvml: Nvml, smi: Amdsmi, tmp_path: Path) -> None:
    """PyTorch is made for one of them; where it is not known for which, NVIDIA's count."""
    both, one = ["GPU-0", "GPU-1"], ["2fff74b500001000"]
    assert [gpu.uuid for gpu in look({}, tmp_path).gpus] == both
    assert [gpu.uuid for gpu in look({}, tmp_path, "2.9.0+cu128").gpus] == both
    assert [gpu.uuid for gpu in look({}, tmp_path, "2.9.0+rocm6.4").gpus] == one
    nvml.refused = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    sight = look({}, tmp_path)
    assert [gpu.uuid for gpu in sight.gpus] == one
    assert MISMATCH in sight.trouble


# --- who says it ------------------------------------------------------------------------------------------------------


def host(gpus: int = 0, trouble: str = "", torch: str = "2.9.0+cu128", uuid: str = "GPU-0") -> HostFacts:
    devices = tuple(Gpu(index, "G", 1, uuid) for index in range(gpus))
    return HostFacts(hostname="x", pid=1, cores=4, gpus=devices, gpu_trouble=trouble, torch=torch)


BROKEN = f"NVIDIA: there is a GPU, and its driver cannot be asked: {MISMATCH}"


def test_ranks_per_gpu_where_the_gpus_cannot_be_counted() -> None:
    with pytest.raises(zlaunch.LaunchError, match=f"'gpu'.* on b: {BROKEN}; give a number"):
        count_workers("gpu", ["a", "b"], [host(2), host(0, BROKEN)])
    with pytest.raises(zlaunch.LaunchError, match=f"'auto'.* on b: {BROKEN}; give a number"):
        count_workers("auto", ["a", "b"], [host(2), host(0, BROKEN)])
    with pytest.raises(zlaunch.LaunchError, match="names 9"):
        count_workers("auto", ["a"], [host(1, "NVIDIA: CUDA_VISIBLE_DEVICES=0,9 names 9, and there is only GPU 0")])
    assert count_workers(3, ["a"], [host(0, BROKEN)]) == [3]
    assert count_workers("auto", ["a"], [host(0, BROKEN, "2.9.0+cpu")]) == [1]  # it could not use them anyway


@pytest.mark.parametrize(
    ("torch", "trouble", "needs"),
    [
        ("2.9.0", BROKEN, True),
        ("2.9.0+cpu", BROKEN, False),
        ("2.9.0+rocm6.4", BROKEN, False),
        ("2.9.0+rocm6.4", "AMD: ...", True),
        ("2.9.0", "AMD: ...", False),  # the graphics of many a desktop's processor
        ("2.9.0+rocm6.4", f"{BROKEN}; AMD: ...", True),
        ("2.9.0", "", False),
    ],
)
def test_who_needs_which_gpus(torch: str, trouble: str, needs: bool) -> None:
    assert is_in_need(torch, trouble) is needs


def test_more_ranks_than_gpus_with_nccl() -> None:
    check_gpus("nccl", None, 2, {"a": 2, "b": 2}, {"a": host(4), "b": host(4)})
    with pytest.raises(zlaunch.LaunchError) as caught:
        check_gpus("nccl", None, 1, {"a": 4, "b": 6, "c": 2}, {"a": host(4), "b": host(4), "c": host(0, BROKEN)})
    assert str(caught.value) == (
        f"backend is 'nccl', and GPUs are missing on b (6 wanted, 4 there), c (2 wanted, 0 there, {BROKEN}); "
        "gloo needs none"
    )


@pytest.mark.parametrize(
    ("fraction", "each", "words"),
    [(0.5, 1, "gpu_memory_fraction is 0.5"), (None, 2, "gpus_per_worker is 2"), (0.5, 2, "gpus_per_worker is 2")],
)
def test_more_ranks_than_gpus_that_are_to_be_their_own(fraction: float | None, each: int, words: str) -> None:
    hosts = {"a": host(4)}
    check_gpus("gloo", fraction, each, {"a": 4 // each}, hosts)
    check_gpus("gloo", None, 1, {"a": 40}, hosts)
    wanted = 4 // each + 1
    with pytest.raises(zlaunch.LaunchError) as caught:
        check_gpus(None, fraction, each, {"a": wanted}, hosts)
    assert str(caught.value) == f"{words}, and GPUs are missing on a ({wanted * each} wanted, 4 there)"


@pytest.mark.parametrize(
    ("torch", "uuid", "usable"),
    [
        ("2.9.0+cu128", "GPU-0", 2),
        ("2.9.0+cpu", "GPU-0", 0),
        ("2.9.0+rocm6.4", "GPU-0", 0),
        ("2.9.0+rocm6.4", "2fff74b5", 2),
        ("2.9.0+cu128", "2fff74b5", 0),
        ("2.9.0", "2fff74b5", 2),  # nobody knows
        ("", "GPU-0", 2),
    ],
)
def test_gpus_that_the_pytorch_there_is_not_made_for(torch: str, uuid: str, usable: int) -> None:
    facts = host(2, torch=torch, uuid=uuid)
    assert usable_gpus(facts) == usable
    launcher = zlaunch.Launcher()
    assert backend_for(launcher, [HostPlan(0, "a", 2)], {0: facts}) == ("nccl" if usable else "gloo")
    if not usable:
        with pytest.raises(zlaunch.LaunchError) as caught:
            check_gpus("nccl", None, 1, {"a": 1}, {"a": facts})
        assert f"missing on a (PyTorch {torch} is not made for those there)" in str(caught.value)
        check_gpus("gloo", None, 2, {"a": 1}, {"a": facts})  # any program may be meant


def test_gpus_of_two_makers_in_one_group() -> None:
    with pytest.raises(zlaunch.LaunchError, match="the GPUs of b are AMD's"):
        amd = host(1, uuid="2fff74b5", torch="2.9.0+rocm6.4")
        check_gpus("nccl", None, 1, {"a": 1, "b": 1}, {"a": host(1), "b": amd})


def test_ranks_with_more_gpus_than_a_host_has() -> None:
    with pytest.raises(zlaunch.LaunchError, match="'gpu', with 2 each, and b has fewer"):
        count_workers("gpu", ["a", "b"], [host(4), host(1)], 2)
    with pytest.raises(zlaunch.LaunchError, match="some hosts have GPUs and b has fewer than 2"):
        count_workers("auto", ["a", "b"], [host(4), host(1)], 2)


def test_nccl_without_a_gpu_starts_nothing() -> None:
    launcher = zlaunch.Launcher(workers_per_host=2, backend="nccl", preload=(), view="none")
    if look().gpus:
        pytest.skip("this machine has a GPU")
    with pytest.raises(zlaunch.LaunchError, match=r"missing on localhost \(2 wanted, 0 there\)"):
        launcher.run(os.getpid)
    assert not (Path(os.environ["ZLAUNCH_LOG_DIR"])).exists()


@pytest.mark.parametrize("fraction", [0, 0.0, -0.5, 1.5, float("nan"), "x", True])
def test_a_share_of_memory_that_is_none(fraction: Any) -> None:
    with pytest.raises(ValueError, match=r"gpu_memory_fraction is .*; it is above 0 and at most 1"):
        zlaunch.Launcher(gpu_memory_fraction=fraction, view="none").run(int)


# --- from end to end --------------------------------------------------------------------------------------------------

OTHER_DEV = r"""
set -e
mount -t tmpfs none "$1"
for name in null zero full random urandom tty; do cp -a /dev/$name "$1"; done
mkdir "$1/shm" "$1/pts"; ln -s /proc/self/fd "$1/fd"; touch "$1/nvidia0" "$1/nvidiactl"
mount --bind "$1" /dev
shift
exec "$@"
"""
PROGRAM = """
import zlaunch
from zlaunch.cli.main import main
main(["info"])
main(["run", "-n", "gpu", "x.py"])
for wanted in ("gpu", 1):
    try:
        print(zlaunch.Launcher(workers_per_host=wanted, preload=(), backend=None, view="none").run(int)[0])
    except zlaunch.LaunchError as error:
        print(error)
"""


def test_a_machine_with_a_gpu_and_no_driver(tmp_path: Path) -> None:
    """In a mount namespace in which /dev has a GPU's file: everybody says what is wrong, and a number of ranks runs."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("a /dev of its own needs root and unshare")
    (tmp_path / "dev").mkdir()
    (tmp_path / "x.py").touch()
    words = ["unshare", "--mount", "sh", "-c", OTHER_DEV, "sh", str(tmp_path / "dev"), sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    trouble = "NVIDIA: there is a GPU, and its driver cannot be asked: "
    said = " ".join(done.stdout.split())
    assert f"GPUs none to be had {trouble}" in said, done.stderr
    assert f"-n gpu: no GPU is visible on this machine ({trouble}" in done.stderr
    assert f"workers_per_host is 'gpu', and they cannot be counted on localhost: {trouble}" in said
    assert done.stdout.endswith("\n0\n")
