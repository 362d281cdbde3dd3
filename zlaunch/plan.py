"""Level 3, pure: job + hosts -> who runs what where. No process, no socket, no file."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import LaunchError
from .model import AgentCommand, Bind, HostFacts, HostPlan, RanksCommand, Seat, StartMethod, Step, TemplateSpec
from .systems.gpus import is_in_need
from .torchenv.binding import shares

WorkersPerHost = int | list[int] | Literal["auto", "gpu", "cpu"]

IMPORT_VARIABLES = (
    "PYTHON*",
    "LD_*",
    "TORCH*",
    "PYTORCH*",
    "CUDA*",
    "NVIDIA*",
    "HIP*",
    "ROCR*",
    "HSA*",
    "OMP_*",
    "KMP_*",
    "GOMP_*",
    "MKL_*",
    "OPENBLAS_*",
    "ATEN_*",
    "DNNL_*",
    "ONEDNN_*",
    "PATH",
    "HOME",
)
"""Variables that matter while Python starts and torch is imported: where one of them has changed, a template is of no
use any more. All others are set after the fork."""


@dataclass(frozen=True)
class LaunchPlan:
    """All that would happen, as values: what ``--dry-run`` prints."""

    hosts: tuple[HostPlan, ...]
    agents: tuple[AgentCommand, ...]
    step: Step
    seats: tuple[Seat, ...]
    """With port 0: the port is chosen by rank 0's host when the step starts. Of hosts whose agents must count their
    ranks first there are none."""
    template: TemplateSpec
    ranks: RanksCommand | None = None
    """What calls for the ranks, where an MPI launcher does."""


@dataclass(frozen=True)
class Errand:
    """What some hosts of a step are given: this machine's ranks inherit our environment, others' their own host's."""

    step: Step
    template: TemplateSpec


def count_workers(
    wanted: WorkersPerHost, names: Sequence[str], facts: Sequence[HostFacts], gpus_per_worker: int = 1
) -> list[int]:
    """Ranks per host. Raises LaunchError where a host cannot have what is wanted, or ValueError for nonsense."""
    if isinstance(wanted, list):
        if len(wanted) != len(names):
            hosts = "host" if len(names) == 1 else "hosts"
            raise ValueError(f"workers_per_host has {len(wanted)} numbers for {len(names)} {hosts}")
        counts = list(wanted)
    elif wanted == "cpu":
        counts = [f.cores for f in facts]
    elif wanted == "gpu":
        without = [name for name, f in zip(names, facts, strict=True) if not f.gpus]
        check_drivers("workers_per_host is 'gpu'", dict(zip(names, facts, strict=True)))
        if without:
            raise LaunchError(
                f"workers_per_host is 'gpu', and there is no GPU on {', '.join(without)}; "
                "give a number, 'cpu' or 'auto' there"
            )
        counts = [len(f.gpus) // gpus_per_worker for f in facts]
        few = [name for name, n in zip(names, counts, strict=True) if not n]
        if few:
            raise LaunchError(f"workers_per_host is 'gpu', with {gpus_per_worker} each, and {', '.join(few)} has fewer")
    elif wanted == "auto":
        in_need = {name: f for name, f in zip(names, facts, strict=True) if is_in_need(f.torch, f.gpu_trouble)}
        check_drivers("workers_per_host is 'auto', one rank per GPU", in_need)
        counts = [len(f.gpus) // gpus_per_worker for f in facts]
        if not any(counts):
            counts = [f.numa_domains for f in facts]
        elif not all(counts):
            without = [name for name, n in zip(names, counts, strict=True) if not n]
            has = "has none" if gpus_per_worker == 1 else f"has fewer than {gpus_per_worker}"
            raise LaunchError(f"some hosts have GPUs and {', '.join(without)} {has}; say workers_per_host")
    elif isinstance(wanted, int) and not isinstance(wanted, bool):
        counts = [wanted] * len(names)
    else:
        raise ValueError(f"workers_per_host is {wanted!r}; it is a number, a list of them, 'auto', 'gpu' or 'cpu'")
    for name, count in zip(names, counts, strict=True):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"workers_per_host gives {count!r} workers to {name}; it takes 1 at least")
    return counts


def check_drivers(wanted: str, hosts: Mapping[str, HostFacts]) -> None:
    """Raises LaunchError for hosts whose GPUs cannot be counted, in the words of their drivers."""
    troubles = [f"{name}: {facts.gpu_trouble}" for name, facts in hosts.items() if facts.gpu_trouble]
    if troubles:
        raise LaunchError(f"{wanted}, and they cannot be counted on {'; on '.join(troubles)}; give a number, or 'cpu'")


def place_ranks(
    hosts: Sequence[HostPlan],
    facts: Mapping[int, HostFacts],
    master_addr: str = "",
    *,
    bind: Bind = "none",
    gpus_per_worker: int = 1,
) -> dict[int, tuple[Seat, ...]]:
    """Seats by host index: ranks are counted host by host. Address and port of rank 0 are found when they start."""
    world_size = sum(host.workers for host in hosts)
    seats: dict[int, tuple[Seat, ...]] = {}
    first = 0
    for node, host in enumerate(hosts):
        cpus: list[tuple[int, ...]] = [()] * host.workers
        threads = 0
        if known := facts.get(host.index):
            threads = max(1, known.cores // host.workers)
            cpus = shares(known.domains, _near(known, host.workers, gpus_per_worker), bind)
        seats[host.index] = tuple(
            Seat(
                rank=first + local,
                local_rank=local,
                world_size=world_size,
                local_world_size=host.workers,
                node_rank=node,
                nodes=len(hosts),
                hostname=host.name,
                master_addr=master_addr,
                master_port=0,
                threads=min(threads, len(cpus[local]) or threads),
                cpus=cpus[local],
            )
            for local in range(host.workers)
        )
        first += host.workers
    return seats


def _near(facts: HostFacts, workers: int, gpus_per_worker: int) -> list[int]:
    """For each local rank the NUMA domain of its first GPU; -1 where it has none."""
    firsts = [facts.gpus[place].domain for place in range(0, len(facts.gpus), gpus_per_worker)]
    return [*firsts[:workers], *[-1] * (workers - len(firsts))]


def template_for(
    *,
    preload: Sequence[str],
    start_method: StartMethod,
    env: Mapping[str, str],
    sys_path: Sequence[str],
    cwd: str,
    inherit: bool = False,
) -> TemplateSpec:
    """The template that a step needs. Two steps whose keys are equal share one.

    With torch alone preloaded, only the variables that Python and torch read at import count; a module of the user's
    may read anything, so with one of those the whole environment, the path and the directory count.
    """
    preload = () if start_method == "spawn" else tuple(preload)
    plain = set(preload) <= {"torch"}
    counted = {k: v for k, v in env.items() if not plain or _matters(k)}
    facts = [preload, start_method, sorted(counted.items()), [] if plain else [list(sys_path), cwd]]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return TemplateSpec(
        key=key,
        preload=preload,
        start_method=start_method,
        env=dict(env),
        inherit=inherit,
        sys_path=tuple(sys_path),
        cwd=cwd,
    )


_matters = re.compile("|".join(map(fnmatch.translate, IMPORT_VARIABLES))).match
