"""--comm-backend, and what a system's family sets in the ranks' environment and on the launch command."""

from __future__ import annotations

from pathlib import Path

import pytest

from zlaunch.model import Gpu, HostFacts
from zlaunch.systems.communication import (
    Libraries,
    arguments,
    as_words,
    check_hosts,
    comm_backend,
    environment,
    libraries,
    maker,
)
from zlaunch.systems.description import System, describe
from zlaunch.systems.params import DescriptionError, parse_params


def facts(*uuids: str) -> HostFacts:
    return HostFacts(hostname="h", pid=1, cores=6, gpus=tuple(Gpu(i, "G", 1, uuid) for i, uuid in enumerate(uuids)))


def on(host: str, p: str = "", here: HostFacts | None = None, gpu_arch: str = "") -> System:
    return describe(
        host, {}, queue=None, params=parse_params(p.split()), file={}, facts=here or facts(),
        gpu_arch=gpu_arch,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "whose"),
    [
        ("sm_70 sm_90 sm_100 SM90 a100 A100 v100 h100 h200 b200 gh200 gb200 l40 l40s t4 p100", "nvidia"),
        ("ampere hopper volta ada blackwell nvidia compute_90 rtx4090", "nvidia"),
        ("gfx90a gfx942 mi250x MI300A mi50 cdna3 amd instinct", "amd"),
        ("tpu_v5 x", None),
    ],
)
def test_whose_gpus(names: str, whose: str | None) -> None:
    assert {name: maker(name) for name in names.split()} == dict.fromkeys(names.split(), whose)
    assert maker("") is None


@pytest.mark.parametrize(
    ("system", "word", "means"),
    [
        (on("tuolumne1"), "RCCL", "RCCL"),
        (on("tuolumne1"), "*CCL", "RCCL"),
        (on("tuolumne1"), "NCCL", "RCCL"),
        (on("tuolumne1"), "MPI", "MPI"),
        (on("matrix1"), "*CCL", "NCCL"),
        (on("matrix1"), "nccl", "NCCL"),
        (on("desk"), "MPI", "MPI"),
        (on("desk"), "NCCL", "NCCL"),  # a login node says nothing of the others
        (on("desk"), "RCCL", "RCCL"),
        (on("desk"), "*CCL", "NCCL"),
        (on("desk", "gpu_arch=mi300a"), "*CCL", "RCCL"),
        (on("desk", "gpus_per_node=8 gpu_arch=a100"), "*CCL", "NCCL"),
        (on("desk", "gpus_per_node=8 gpu_arch=strange"), "RCCL", "RCCL"),
        (on("desk", here=facts("GPU-1"), gpu_arch="sm_90"), "*CCL", "NCCL"),
    ],
)
def test_what_a_backend_means(system: System, word: str, means: str) -> None:
    assert comm_backend(word, system) == means


@pytest.mark.parametrize(
    ("system", "word", "said"),
    [
        (on("matrix1"), "RCCL", "--comm-backend RCCL: the GPUs of a node of matrix are NVIDIA's; use NCCL"),
        (on("desk", "gpu_arch=a100"), "RCCL", "the GPUs of a node are NVIDIA's"),
        (on("desk", "gpus_per_node=0"), "*CCL", "--comm-backend *CCL: a node has no GPU; use MPI"),
        (on("desk", "gpus_per_node=8 gpu_arch=strange"), "*CCL", "whose GPUs are strange?; say NCCL or RCCL"),
        (on("desk"), "NCLL", "--comm-backend: there is no 'NCLL'; did you mean NCCL?"),
        (on("desk"), "gloo", "there are MPI, NCCL, RCCL, *CCL"),
    ],
)
def test_what_a_system_cannot_do(system: System, word: str, said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        comm_backend(word, system)
    assert said in str(caught.value)


def test_hosts_that_are_there_are_asked() -> None:
    nvidia, amd, none = facts("GPU-1"), facts("2fff74b5-0000-1000-80af"), facts()
    assert check_hosts("*CCL", {"a": nvidia, "b": nvidia}) == "NCCL"
    assert check_hosts("*CCL", {"a": amd}) == check_hosts("NCCL", {"a": amd}) == "RCCL"
    assert check_hosts("MPI", {"a": none}) == "MPI"
    for word, hosts, said in (
        ("NCCL", {"a": nvidia, "b": none, "c": none}, "there is no GPU on b, c"),
        ("RCCL", {"a": nvidia}, "the GPUs of a are NVIDIA's"),
        ("*CCL", {"a": nvidia, "b": amd}, "the GPUs of b are AMD's, the others' are NVIDIA's"),
    ):
        with pytest.raises(DescriptionError, match=said):
            check_hosts(word, hosts)


# --- settings -----------------------------------------------------------------------------------------------

EL_CAPITAN = {
    "NCCL_NET_GDR_LEVEL": "3",
    "NCCL_MIN_NCHANNELS": "24",
    "MIOPEN_DEBUG_DISABLE_FIND_DB": "0",
    "MIOPEN_DISABLE_CACHE": "0",
    "MIOPEN_USER_DB_PATH": "/var/tmp/me/MIOpen_user_db",
    "MIOPEN_CUSTOM_CACHE_DIR": "/var/tmp/me/MIOpen_custom_cache",
    "FI_MR_CACHE_MONITOR": "userfaultfd",
    "FI_CXI_DEFAULT_TX_SIZE": "1024",
    "FI_CXI_DEFAULT_CQ_SIZE": "131072",
    "FI_CXI_DISABLE_HOST_REGISTER": "1",
    "FI_CXI_RX_MATCH_MODE": "hybrid",
    "NCCL_CROSS_NIC": "1",
    "NCCL_SOCKET_IFNAME": "hsi0",
    "PYTORCH_MIOPEN_SUGGEST_NHWC": "1",
    "PYTORCH_MIOPEN_SUGGEST_NHWC_BATCHNORM": "1",
    "TENSILE_SOLUTION_SELECTION_METHOD": "2",
}
RCCL = {
    "FI_CXI_RDZV_PROTO": "alt_read",
    "FI_CXI_RDZV_THRESHOLD": "0",
    "FI_CXI_RDZV_GET_MIN": "0",
    "FI_CXI_RDZV_EAGER_SIZE": "0",
}
TMP = {"TMPDIR": "/var/tmp/me/"}


@pytest.mark.parametrize("host", ["tioga1", "tuolumne1", "elcap1", "rzadams1", "tenaya1", "rzvernal1"])
def test_the_el_capitan_family(host: str) -> None:
    assert environment(on(host), None, TMP) == EL_CAPITAN
    assert environment(on(host), "MPI", TMP) == EL_CAPITAN
    assert environment(on(host), "RCCL", TMP) == {**EL_CAPITAN, **RCCL}
    words = as_words(arguments(on(host), 4))
    assert words == [
        "--exclusive",
        "-ofastload=on",
        "--setattr=rdzv_get_en=0",
        "-ompibind=omp_proc_bind,omp_places",
    ]


@pytest.mark.parametrize(
    ("found", "plugin"),
    [
        (Libraries(), {}),
        (Libraries(rocm=(7, 1)), {}),
        (Libraries(True, (7, 1)), {"NCCL_NET_PLUGIN": "librccl-net.so", "NCCL_NET": "libfabric"}),
        (Libraries(True, (10, 0)), {"NCCL_NET_PLUGIN": "librccl-net.so", "NCCL_NET": "libfabric"}),
        (Libraries(True, (6, 4)), {"NCCL_NET_PLUGIN": "librccl-net.so", "NCCL_NET": "AWS Libfabric"}),
        (Libraries(True), {"NCCL_NET_PLUGIN": "librccl-net.so"}),
    ],
)
def test_a_plugin_is_forced_only_where_it_is_there(found: Libraries, plugin: dict[str, str]) -> None:
    assert environment(on("tuolumne1"), "RCCL", TMP, found) == {**EL_CAPITAN, **RCCL, **plugin}
    assert environment(on("tuolumne1"), None, TMP, found) == EL_CAPITAN
    assert environment(on("corona1"), "RCCL", TMP, found).get("NCCL_NET") is None


def test_the_plugin_and_rocm_are_found_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "rocm" / ".info").mkdir(parents=True)
    env = {"LD_LIBRARY_PATH": f"/nowhere::{tmp_path}/lib", "ROCM_PATH": f"{tmp_path}/rocm"}
    assert libraries(env) == Libraries(False, None)
    (tmp_path / "lib" / "librccl-net.so").touch()
    (tmp_path / "rocm" / ".info" / "version").write_text("7.1.0-42\n")
    assert libraries(env) == Libraries(True, (7, 1))
    assert libraries({"ROCM_VERSION": "6.4.1"}, rocm=str(tmp_path)) == Libraries(False, (6, 4))


def test_the_other_families() -> None:
    assert environment(on("corona1"), "RCCL", {}) == {
        "NCCL_MIN_NCHANNELS": "24",
        "MIOPEN_USER_DB_PATH": "/tmp/MIOpen_user_db",
        "MIOPEN_CUSTOM_CACHE_DIR": "/tmp/MIOpen_custom_cache",
    }
    assert as_words(arguments(on("corona1"), 8)) == ["--exclusive"]
    for host in ("matrix1", "rzvector1", "ipa1"):
        assert environment(on(host), "NCCL", {}) == {"MPICH_OFI_NIC_POLICY": "GPU"}
    assert as_words(arguments(on("matrix1"), 4)) == ["--mpibind=off", "--gpu-bind=none"]
    assert arguments(on("rzvector1"), 4) == ()
    for host in ("lassen1", "sierra1", "rzansel1"):
        assert environment(on(host), "NCCL", {}) == {
            "IBV_FORK_SAFE": "1",
            "HCOLL_ENABLE_SHARP": "0",
            "OMPI_MCA_coll_hcoll_enable": "0",
            "PAMI_MAX_NUM_CACHED_PAGES": "0",
            "NVSHMEM_MPI_LIB_NAME": "libmpi_ibm.so",
        }
    assert environment(on("summit1"), "NCCL", {}) == environment(on("desk"), None, {}) == {}


@pytest.mark.parametrize(("ranks", "packed"), [(1, 16), (2, 16), (3, 8), (4, 8), (6, 5), (40, 1), (0, 16)])
def test_jsrun_packs_by_the_ranks_of_a_socket(ranks: int, packed: int) -> None:
    assert as_words(arguments(on("lassen1"), ranks)) == [f"--bind=packed:{packed}", "--smpiargs=-gpu"]


def test_another_scheduler_knows_none_of_these_options() -> None:
    assert arguments(on("tuolumne1"), 4, "slurm") == ()
    assert arguments(on("tuolumne1", "scheduler=slurm"), 4) == ()


def test_what_the_user_has_set_stays() -> None:
    assert "NCCL_CROSS_NIC" not in environment(on("tuolumne1"), None, {"NCCL_CROSS_NIC": "0"})
