"""Level 3, pure: the environment that a rank finds, and which of a host's GPUs it sees.

What is set is what torchrun sets, so that accelerate, Lightning, DeepSpeed and ``torch.distributed`` know where they
are. What is removed would tell them that they are somewhere else: the place that an MPI launcher or a scheduler gave
to the process that started us, and that all our ranks would inherit alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from types import MappingProxyType

from ..model import Seat, Step

STALE = {
    "OMPI_COMM_WORLD_*": "Open MPI's place of a process: DeepSpeed asserts that it agrees with LOCAL_RANK",
    "OMPI_UNIVERSE_SIZE": "Open MPI: an MPI_Init in the rank would look for a parent that is not its own",
    "OMPI_APP_CTX_NUM_PROCS": "Open MPI's description of the program that it has started",
    "OMPI_NUM_APP_CTX": "as above",
    "OMPI_FIRST_RANKS": "as above",
    "OMPI_COMMAND": "as above: MPI_INFO_ENV would tell it",
    "OMPI_ARGV": "as above",
    "OMPI_FILE_LOCATION": "the folder of that process's session, which is removed with it",
    "OMPI_MCA_initial_wdir": "that process's directory",
    "OMPI_MCA_ess*": "Open MPI's start-up of one process, as above",
    "OMPI_MCA_orte*": "Open MPI's start-up of one process, as above",
    "PMIX_*": "the process's place for PMIx, as above",
    "PMI_*": "MPICH's and Slurm's place of a process: accelerate takes it for the rank on the CPU",
    "PMI2_*": "as PMI_*",
    "MPI_LOCALRANKID": "Hydra's local rank",
    "MPI_LOCALNRANKS": "Hydra's number of local ranks",
    "MV2_COMM_WORLD_*": "MVAPICH's place of a process",
    "PALS_RANKID": "PALS's place of a process",
    "PALS_LOCAL_*": "PALS's place of a process",
    "JSM_NAMESPACE_*": "jsrun's place of a process",
    "FLUX_TASK_*": "Flux's place of a task",
    "SLURM_PROCID": "srun's rank: Lightning and others take it for ours",
    "SLURM_LOCALID": "srun's local rank",
    "SLURM_NODEID": "srun's number of the node, which is that of the agent's task",
    "SLURM_GTIDS": "srun's ranks on this node",
    "SLURM_TASK_PID": "srun's process of the task",
    "TORCHELASTIC_*": "another torchrun around us; its error file would be written by our ranks",
}
"""Variables that ranks must not inherit, each with the reason; a star at the end stands for any ending."""

_STALE_NAMES = frozenset(name for name in STALE if not name.endswith("*"))
_STALE_STARTS = tuple(name[:-1] for name in STALE if name.endswith("*"))

_OF_JOBS = ("SLURM_", "FLUX_", "LSB_", "PBS_", "SGE_", "PE_HOSTFILE", "COBALT_", "LOADL_", "JSM_", "PALS_")
"""How those variables begin by which Open MPI and Hydra find a scheduler's job around them."""

_GIVEN = """
RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME
MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS
TORCHELASTIC_USE_AGENT_STORE ZLAUNCH_RUN_ID ZLAUNCH_HOSTNAME
"""
OWN = frozenset(_GIVEN.split())
"""Variables that every rank is given, whatever anybody has set."""

PATH_LISTS = ("PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "PYTHONPATH")
"""Lists of folders of which a host needs its own: what is copied to it comes before them, and not in their place."""


def rank_environment(
    step: Step, seat: Seat, host_env: Mapping[str, str] | None = None, calling: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Everything that the rank at ``seat`` finds in its environment, on top of the step's own.

    ``host_env`` is the environment that the host's agent was started in; it counts with ``step.inherit`` only.
    ``calling`` is what an MPI launcher has said to this very rank.
    """
    env = inherited_environment(step.env, without_stale(host_env or {})) if step.inherit else step.env
    env = {**env, **calling}
    env = env if step.unswap_rocr_hip else swap_rocr_hip(env)
    if step.gpus_per_worker > 1:
        env.update(_own_devices(env, seat, step.gpus_per_worker))
    rank, world = str(seat.rank), str(seat.world_size)
    env |= {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": str(seat.local_rank),
        "LOCAL_WORLD_SIZE": str(seat.local_world_size),
        "NODE_RANK": str(seat.node_rank),
        "GROUP_RANK": str(seat.node_rank),
        "GROUP_WORLD_SIZE": str(seat.nodes),
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": world,
        "ROLE_NAME": "default",
        "MASTER_ADDR": seat.master_addr,
        "MASTER_PORT": str(seat.master_port),
        "TORCHELASTIC_RUN_ID": step.run_id,
        "TORCHELASTIC_RESTART_COUNT": str(seat.restart_count),
        "TORCHELASTIC_MAX_RESTARTS": str(step.max_restarts),
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "ZLAUNCH_RUN_ID": step.run_id,
        "ZLAUNCH_HOSTNAME": seat.hostname,
    }
    env.setdefault("OMP_NUM_THREADS", str(max(1, seat.threads)))
    if seat.interface:
        env.setdefault("GLOO_SOCKET_IFNAME", seat.interface)
        if step.rendezvous == "mpi" and seat.nodes > 1 and "OMPI_MCA_btl_tcp_if_exclude" not in env:
            # Open MPI takes all interfaces, also Docker's, whose address all hosts have: ranks would call themselves.
            env.setdefault("OMPI_MCA_btl_tcp_if_include", seat.interface)
    if step.kind == "command":
        env.setdefault("PYTHONUNBUFFERED", "1")  # a Python that we can't reach into would hold back 8 KiB of lines
    return env


def inherited_environment(env: Mapping[str, str], host_env: Mapping[str, str]) -> dict[str, str]:
    """A host's own environment with ``env`` on top; of lists of folders, the host's entries follow those of ``env``."""
    merged = {**host_env, **env}
    for name in PATH_LISTS:
        if name in env and name in host_env:
            entries = [*env[name].split(":"), *host_env[name].split(":")]
            merged[name] = ":".join(dict.fromkeys(entry for entry in entries if entry))
    return merged


def is_stale(name: str) -> bool:
    """Whether a variable tells of a place that another launcher gave."""
    return name in _STALE_NAMES or name.startswith(_STALE_STARTS)


def without_stale(environ: Mapping[str, str]) -> dict[str, str]:
    """What of a process's own environment ranks may inherit."""
    return {name: value for name, value in environ.items() if not is_stale(name)}


def outside_of_mpi(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for an mpirun that is told its hosts, and goes there by ssh.

    It is as if the process that starts it were no MPI's itself, since they do not nest, and in no job: of one it would
    take the job's own hosts and slots, and refuse all others.
    """
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_OF_JOBS) and (not is_stale(name) or name.startswith("TORCHELASTIC_"))
    }


def swap_rocr_hip(env: dict[str, str]) -> dict[str, str]:
    """The environment with ROCR_VISIBLE_DEVICES moved into HIP_VISIBLE_DEVICES; it must be so before torch is imported.

    ROCR_VISIBLE_DEVICES filters in the runtime, below HIP, whose own variable then counts within what is left: where
    both are set, the result is the node's devices that were left. Lists of UUIDs stay as they are. Where nothing is
    left it is -1: HIP would take an empty list for none at all, and without ROCR_VISIBLE_DEVICES give all the node has.

    HIP obeys CUDA_VISIBLE_DEVICES in the place of its own, so that counts likewise, but where it is Slurm's copy of
    ROCR_VISIBLE_DEVICES: of the devices that are left it can't be meant.
    """
    rocr = _entries(env.get("ROCR_VISIBLE_DEVICES", ""))
    if not rocr or not all(entry.isdecimal() for entry in rocr):
        return env
    cuda = env.get("CUDA_VISIBLE_DEVICES")
    hip = env.get("HIP_VISIBLE_DEVICES", cuda if cuda != env["ROCR_VISIBLE_DEVICES"] else None)
    if hip is not None:
        known = {str(place): device for place, device in enumerate(rocr)}
        rocr = [known[place] for place in takewhile(known.__contains__, _entries(hip))]
    rest = {key: value for key, value in env.items() if key != "ROCR_VISIBLE_DEVICES"}
    return rest | {"HIP_VISIBLE_DEVICES": ",".join(rocr) or "-1"}


def _own_devices(env: dict[str, str], seat: Seat, count: int) -> dict[str, str]:
    names = [name for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if env.get(name)]
    own = {}
    for name in names or ["CUDA_VISIBLE_DEVICES"]:  # ROCm obeys it too
        devices = _entries(env.get(name, "")) or [str(i) for i in range(count * seat.local_world_size)]
        own[name] = ",".join(devices[count * seat.local_rank : count * (seat.local_rank + 1)])
    return own


def _entries(devices: str) -> list[str]:
    return [entry.strip() for entry in devices.split(",") if entry.strip()]
