"""Level 1: the words of the house as frozen values. Everyone may use them; they know no one.

Times are seconds. A time called ``at`` is on a monotonic clock: that of the host while it travels from an agent,
that of the supervisor once its core has corrected it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from signal import Signals
from typing import Literal

from msgspec import Struct

StreamName = Literal["out", "err"]
TaskKind = Literal["function", "script", "module", "command"]
StartMethod = Literal["fork", "spawn"]
Bind = Literal["auto", "none", "numa", "core"]


class FateKind(StrEnum):
    """How a rank ended."""

    RETURNED = "returned"
    """It gave its result, or its program ended with status 0."""
    RAISED = "raised"
    """An exception left the user's code."""
    UNPICKLABLE = "unpicklable"
    """The task could not be read on the host, or its result could not be written."""
    EXITED = "exited"
    """It ended with an exit status and without a result."""
    SIGNALED = "signaled"
    """A signal killed it."""
    LOST = "lost"
    """Its host, its agent or its fork template is gone; nobody saw it end."""


class Fate(Struct, frozen=True, kw_only=True):
    """What became of one rank."""

    rank: int
    local_rank: int
    hostname: str
    pid: int
    """0 where the rank never started."""
    kind: FateKind
    at: float
    exit_code: int | None = None
    """``None`` after a signal, and where nobody knows. Of a rank that was lost: what its MPI launcher told."""
    signal: int | None = None
    out_of_memory: bool = False
    stopped: bool = False
    """True where we ended it, because of another rank's failure, a cancellation or a time limit."""
    symptom: bool = False
    """True where its error only says that a peer is gone."""
    text: str = ""
    """The traceback, or what is known instead of one."""
    launcher: str = ""
    """Of a rank that was lost: the MPI launcher, whose end that was and not the host's."""

    @property
    def ok(self) -> bool:
        """Whether the rank did what was asked."""
        return self.kind is FateKind.RETURNED

    @property
    def status(self) -> int:
        """The exit status as a shell gives it: 128+N for signal N, 125 for a rank that was lost without one."""
        if self.signal is not None:
            return 128 + self.signal
        if self.kind is FateKind.LOST:
            return self.exit_code or 125
        return 1 if self.exit_code is None else self.exit_code


class Gpu(Struct, frozen=True):
    """One GPU of a host."""

    index: int
    name: str
    memory: int
    """Bytes."""
    uuid: str = ""
    domain: int = -1
    """The number of the NUMA domain that it is at; -1: unknown."""


class Domain(Struct, frozen=True):
    """A NUMA domain of a host."""

    number: int
    """The kernel's; -1 where it knows none."""
    cores: tuple[tuple[int, ...], ...]
    """Each as its hardware threads; only those that may be used."""


class HostFacts(Struct, frozen=True, kw_only=True):
    """What an agent found on its host."""

    hostname: str
    pid: int
    cores: int
    """Usable ones: the affinity mask, not the machine's."""
    numa_domains: int = 1
    domains: tuple[Domain, ...] = ()
    memory: int = 0
    """Bytes."""
    gpus: tuple[Gpu, ...] = ()
    gpu_trouble: str = ""
    """Why there are fewer than the machine, or its environment, says: a driver that does not answer, in its words."""
    python: str = ""
    torch: str = ""
    version: str = ""
    boot_id: str = ""
    absent: tuple[str, ...] = ()
    """Of the folders in the launcher's ``sys.path``, those that are not there."""


class HostPlan(Struct, frozen=True):
    """One host of a launcher: its place in the list, the name that the user gave, and its ranks."""

    index: int
    name: str
    workers: int
    """0 while nobody knows: what the host has is told by its agent."""
    here: bool = True
    """Whether it is this very machine, which needs no ssh, and whose ranks inherit the whole environment."""


class Seat(Struct, frozen=True, kw_only=True):
    """Where one rank sits: all that differs between the ranks of a step."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    nodes: int
    hostname: str
    master_addr: str
    master_port: int
    restart_count: int = 0
    threads: int = 1
    """The host's usable cores over its ranks: OMP_NUM_THREADS where the user set none. 0 while nobody knows."""
    cpus: tuple[int, ...] = ()
    """The cores that it is bound to; empty: to none."""
    interface: str = "lo"
    """The network interface that reaches the other hosts: GLOO_SOCKET_IFNAME where the user set none; may be empty."""


class Step(Struct, frozen=True, kw_only=True):
    """What all ranks of a step share. It travels once per host, as the first frame of the step's letter."""

    id: str
    run_id: str
    kind: TaskKind
    argv: tuple[str, ...] = ()
    """A script's path, a module's name or a program, with its arguments; empty for a function."""
    env: dict[str, str]
    """The whole environment of the ranks, before what zlaunch itself sets; with ``inherit``, what goes on top of their
    host's own."""
    inherit: bool = False
    """On other hosts than the launcher's: the environment that their agent was started in comes below ``env``, and
    where ``cwd`` is not there, the ranks start in the home directory."""
    cwd: str
    sys_path: tuple[str, ...] = ()
    backend: str | None = None
    """The process group to make before a function: nccl, gloo, mpi, ucc; ``None`` for none."""
    rendezvous: Literal["tcp", "mpi"] = "tcp"
    """With ``mpi`` each rank is a process of an MPI world, and rank 0's address comes to it over MPI."""
    timeout: float = 600.0
    log_token: str = ""
    """Marks a logging record within a rank's stdout; fresh for every step. Empty: ``logging`` is untouched."""
    log_level: int = 20
    max_restarts: int = 0
    gpus_per_worker: int = 1
    gpu_memory_fraction: float | None = None
    unswap_rocr_hip: bool = False


class TemplateSpec(Struct, frozen=True, kw_only=True):
    """What a fork template must have done before it forks; two equal keys can share one template."""

    key: str
    preload: tuple[str, ...]
    start_method: StartMethod
    env: dict[str, str]
    inherit: bool = False
    """As a step's."""
    sys_path: tuple[str, ...]
    cwd: str


class Survivor(Struct, frozen=True):
    """A process that would not die."""

    hostname: str
    pid: int
    command: str


class RankUsage(Struct, frozen=True):
    """What one rank used lately, all its processes together."""

    rank: int
    cpu: float
    """Percent of one core, over the time since the sample before: 250 is two cores and a half."""
    memory: int
    """Bytes in memory (RSS); what several processes share is counted in each of them, as ``top`` does."""
    gpu: float | None = None
    """Percent of the time in which its GPU was busy, for whomever; the mean where it uses several."""
    gpu_memory: int | None = None
    """Bytes on its GPUs."""
    gpus: tuple[int, ...] = ()
    """Which GPUs it uses, by their place in its host's facts."""


class AllocationRequest(Struct, frozen=True, kw_only=True):
    """What a scheduler is asked for, where we are in no job of its."""

    nodes: int | None = None
    """``None``: one, or all of the job that we are in."""
    name: str = ""
    queue: str | None = None
    account: str | None = None
    reservation: str | None = None
    dependency: str | None = None
    minutes: int | None = None
    exclusive: bool = False
    ranks_per_node: int | None = None
    gpus_per_node: int | None = None
    extra: tuple[tuple[str, str | None], ...] = ()
    """Arguments as the scheduler spells them, each with its value or none; a ``~`` before the name removes one."""
    step: tuple[tuple[str, str | None], ...] = ()
    """The same for the command that starts the agents within the job."""
    ranks: tuple[tuple[str, str | None], ...] = ()
    """The same for the command that starts MPI processes there."""


class AgentCommand(Struct, frozen=True, kw_only=True):
    """How a launch back end starts agents: a value, so that ``--dry-run`` can print what would run."""

    hosts: tuple[int, ...]
    """Whose agents it starts, by index: one, or all at once."""
    argv: tuple[str, ...]
    env: dict[str, str] | None
    """``None``: the environment of the process that starts it."""
    cwd: str | None
    stdin_is_link: bool
    """Whether end-of-file on the agent's stdin means that the supervisor is gone."""
    files: dict[str, str] = {}
    """Scripts that it needs, by their paths; in a folder of its own, that is made before and removed after."""


class RanksCommand(Struct, frozen=True, kw_only=True):
    """How a site's MPI launcher starts a process in the place of every rank, which calls for the rank at its agent."""

    argv: tuple[str, ...]
    """The number of the attempt is still missing, as its last word."""
    env: dict[str, str] | None
    """``None``: the environment of the process that starts it."""
    tells_aborts: bool = False
    """Whether its status is that of an ``MPI_Abort``, whose rank waits to be ended."""

    @property
    def title(self) -> str:
        """The launcher's name."""
        return self.argv[0].rsplit("/", 1)[-1]


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; a number that has no name is ``signal 77``."""
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def span_words(numbers: Iterable[int]) -> str:
    """``0,2-3`` for 0, 2 and 3."""
    words: list[str] = []
    first = last = -2
    for number in [*sorted(numbers), -2]:
        if number == last + 1 and last >= 0:
            last = number
            continue
        if last >= 0:
            words.append(str(first) if first == last else f"{first}-{last}")
        first = last = number
    return ",".join(words)
