"""Level 2, pure: the systems that zlaunch knows, as data: their nodes by queue, and the settings of their families.

Numbers and settings of the systems at LLNL are those of HPC-launcher's tables, the others' come from their centres'
public documentation. A number that no source gives is 0, which reads as unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

COLLECTIVES = ("NCCL", "RCCL")


class Node(NamedTuple):
    """The shape of a node."""

    cores: int
    gpus: int
    arch: str
    memory: float
    """GB of each GPU."""
    numa: int
    usable_cores: int = 0
    """Those that jobs get, or had better use; 0: all."""
    usable_memory: float = 1.0
    """The share of a GPU's memory that its programs can have."""


class Setting(NamedTuple):
    """An environment variable that ranks on a system need."""

    name: str
    value: str
    why: str = ""
    """The reason, where the source gives one."""
    backends: tuple[str, ...] = ()
    """With which ``--comm-backend`` alone; empty: always."""
    under_tmp: bool = False
    """Whether the value is a name in the folder for temporary files."""


class Argument(NamedTuple):
    """An argument for the scheduler's launch command."""

    scheduler: str
    """The scheduler that understands it."""
    key: str
    value: str | Callable[[int], str] | None = None
    """May depend on the ranks per node; ``None`` for a flag."""
    why: str = ""


class Family(NamedTuple):
    """What systems of one make share."""

    environment: tuple[Setting, ...] = ()
    arguments: tuple[Argument, ...] = ()
    ofi_plugin: bool = False
    """Whether RCCL is to be told of the OFI plugin, where it is there."""


class Known(NamedTuple):
    """One system of the table."""

    scheduler: str
    queues: Mapping[str, Node]
    """The first is the default. The name of the only one may be empty: then no source names it."""
    family: str = ""
    arguments: tuple[Argument, ...] = ()
    """Its own, beside those of its family."""


# --- families -----------------------------------------------------------------------------------------------


def packed_cores(ranks_per_node: int) -> str:
    """jsrun's ``--bind`` for a node of two sockets, of whose cores 16 each are used."""
    return f"packed:{max(1, 16 // max(1, -(-ranks_per_node // 2)))}"


_CHANNELS = Setting("NCCL_MIN_NCHANNELS", "24", "AMD's advice: collectives are faster with more channels")
_MIOPEN_FOLDERS = (
    Setting("MIOPEN_USER_DB_PATH", "MIOpen_user_db", under_tmp=True),
    Setting("MIOPEN_CUSTOM_CACHE_DIR", "MIOpen_custom_cache", under_tmp=True),
)
_SLINGSHOT = "faster on Slingshot"

FAMILIES: dict[str, Family] = {
    "el-capitan": Family(
        environment=(
            Setting("NCCL_NET_GDR_LEVEL", "3", "it hangs otherwise"),
            _CHANNELS,
            Setting("MIOPEN_DEBUG_DISABLE_FIND_DB", "0"),
            Setting("MIOPEN_DISABLE_CACHE", "0"),
            *_MIOPEN_FOLDERS,
            Setting("FI_MR_CACHE_MONITOR", "userfaultfd", "RCCL hangs otherwise"),
            Setting("FI_CXI_DEFAULT_TX_SIZE", "1024"),
            Setting("FI_CXI_DEFAULT_CQ_SIZE", "131072"),
            Setting("FI_CXI_DISABLE_HOST_REGISTER", "1"),
            Setting("FI_CXI_RX_MATCH_MODE", "hybrid"),
            Setting("NCCL_CROSS_NIC", "1"),
            Setting("NCCL_SOCKET_IFNAME", "hsi0"),
            Setting("PYTORCH_MIOPEN_SUGGEST_NHWC", "1"),
            Setting("PYTORCH_MIOPEN_SUGGEST_NHWC_BATCHNORM", "1"),
            Setting("TENSILE_SOLUTION_SELECTION_METHOD", "2"),
            Setting("FI_CXI_RDZV_PROTO", "alt_read", _SLINGSHOT, COLLECTIVES),
            Setting("FI_CXI_RDZV_THRESHOLD", "0", backends=COLLECTIVES),
            Setting("FI_CXI_RDZV_GET_MIN", "0", backends=COLLECTIVES),
            Setting("FI_CXI_RDZV_EAGER_SIZE", "0", backends=COLLECTIVES),
        ),
        arguments=(
            Argument("flux", "--exclusive"),
            Argument("flux", "-ofastload", "on", _SLINGSHOT),
            Argument("flux", "--setattr", "rdzv_get_en=0", _SLINGSHOT),
            Argument("flux", "-ompibind", "omp_proc_bind,omp_places"),
        ),
        ofi_plugin=True,
    ),
    "corona": Family(environment=(_CHANNELS, *_MIOPEN_FOLDERS), arguments=(Argument("flux", "--exclusive"),)),
    "cts2": Family(environment=(Setting("MPICH_OFI_NIC_POLICY", "GPU"),)),
    "sierra": Family(
        environment=(
            Setting("IBV_FORK_SAFE", "1", "InfiniBand may hang where an MPI process forks"),
            Setting("HCOLL_ENABLE_SHARP", "0", "hangs in Bcast"),
            Setting("OMPI_MCA_coll_hcoll_enable", "0", "hangs in Bcast"),
            Setting("PAMI_MAX_NUM_CACHED_PAGES", "0", "a defect of Spectrum MPI"),
            Setting("NVSHMEM_MPI_LIB_NAME", "libmpi_ibm.so", "NVSHMEM is to load Spectrum MPI"),
        ),
        arguments=(
            Argument("lsf", "--bind", packed_cores, "powers of 2 are faster than the 22 cores of a socket"),
            Argument("lsf", "--smpiargs", "-gpu"),
        ),
    ),
}

# --- systems ------------------------------------------------------------------------------------------------

_MI250X = Node(64, 8, "gfx90a", 64, 4)
_MI300A = Node(96, 4, "gfx942", 128, 4, usable_memory=0.8)
"""The GPUs' memory is the CPUs' too, and programs that take all of it run out of it."""
_MI50 = Node(48, 8, "gfx906", 32, 2)
_H100 = Node(112, 4, "sm_90", 80, 8)
_SIERRA = Node(44, 4, "sm_70", 16, 2, usable_cores=32)
_CRAY_MI250X = Node(64, 8, "gfx90a", 64, 4, usable_cores=56)


def _alike(node: Node, *queues: str) -> dict[str, Node]:
    return dict.fromkeys(queues, node)


_EL_CAPITAN = Known("flux", _alike(_MI300A, "pbatch", "pdebug"), "el-capitan")
_SIERRAS = Known("lsf", _alike(_SIERRA, "pbatch", "pdebug"), "sierra")

KNOWN: dict[str, Known] = {
    "tioga": Known("flux", {"pdebug": _MI250X, "mi300a": _MI300A}, "el-capitan"),
    "tuolumne": _EL_CAPITAN,
    "elcap": _EL_CAPITAN,
    "rzadams": _EL_CAPITAN,
    "tenaya": _EL_CAPITAN,
    "rzvernal": Known("flux", _alike(_MI250X, "pdebug", "pllm"), "el-capitan"),
    "corona": Known("flux", _alike(_MI50, "pbatch", "pdebug"), "corona"),
    "matrix": Known(
        "slurm",
        _alike(_H100, "pbatch", "pdebug", "erl"),
        "cts2",
        (Argument("slurm", "--mpibind", "off"), Argument("slurm", "--gpu-bind", "none")),
    ),
    "rzvector": Known("slurm", _alike(_H100, "pbatch", "pdebug"), "cts2"),
    "ipa": Known(
        "slurm",
        {
            "a100": Node(32, 2, "sm_80", 40, 1),
            "aa100": Node(16, 2, "sm_80", 40, 2),
            "av100": Node(32, 2, "sm_70", 32, 2),
            "v100": Node(16, 2, "sm_70", 32, 2),
        },
        "cts2",
    ),
    "lassen": Known("lsf", _alike(_SIERRA, "pbatch", "pdebug", "standby"), "sierra"),
    "sierra": _SIERRAS,
    "rzansel": _SIERRAS,
    "frontier": Known("slurm", {"": _CRAY_MI250X}),
    "summit": Known("lsf", {"": Node(42, 6, "sm_70", 16, 2)}),
    "lumi-g": Known("slurm", {"standard-g": _CRAY_MI250X}),
    "polaris": Known("pbs", {"": Node(32, 4, "sm_80", 40, 0)}),
    "leonardo": Known("slurm", {"boost_usr_prod": Node(32, 4, "sm_80", 64, 0)}),
    "perlmutter": Known("slurm", {"": Node(64, 4, "sm_80", 0, 0)}),
}
"""By the host name without digits."""
