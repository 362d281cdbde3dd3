"""Level 6: where a job runs and how large it is: on hosts that were named, on this machine, or on a scheduler's nodes;
and what the scheduler is asked for. Nothing of the scheduler's is run here, and only files are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..backends import schedulers
from ..backends.scheduler import Job, Refused, Scheduler
from ..model import AllocationRequest, HostFacts
from ..systems import communication
from ..systems.description import System, describe
from ..systems.detect import facts
from ..systems.gpus import architecture
from ..systems.params import SCHEDULERS, parse_params
from ..systems.sizes import Asked, Size, size
from ..systems.userfile import read_systems, systems_file
from .grammar import Given, UsageError
from .hosts import NAME_THEM, HostOptions
from .values import Values, Workers
from .xargs import Argument, xargs

_ONLY_SCHEDULERS = ("queue", "account", "reservation", "dependency", "exclusive", "bg", "batch-script")
_SUBMITS = ("bg", "batch-script")
_BINDING = frozenset(("--bind", "-ompibind"))
"""Launch arguments of known systems that bind what an MPI launcher starts; agents have all of a host to share out, and
ranks are theirs."""
_OF_RANKS = _BINDING | {"--smpiargs"}


@dataclass(frozen=True, kw_only=True)
class Where:
    """The answer."""

    scheduler: str
    """Whose nodes the hosts are; empty where they are none's."""
    inside: str
    """The scheduler's job that we are in, whose nodes are the hosts; empty where there is none, or none is used."""
    attended: bool
    """Whether zlaunch itself must be run within a job, and this one waits for it."""
    hosts: HostOptions
    workers: Workers
    request: AllocationRequest
    settings: Mapping[str, str]
    """Variables that ranks need on this system, below those that the user sets."""
    notes: tuple[str, ...]
    """What the user should hear."""


def where(given: Values, environ: Mapping[str, str], ranks_env: Mapping[str, str]) -> Where:
    """Decide.

    Raises:
        UsageError, DescriptionError: options that exclude one another, or cannot be served here.
    """
    arguments, _ = xargs(given)
    here = Here(given, environ)
    asked = _asked(given)
    sized = size(asked, here.system) if here.is_described else None
    name = _scheduler(given, environ, here, arguments, sized)
    scheduler = schedulers.of(name) if name else None
    hosts = HostOptions(given, scheduled=bool(scheduler))
    in_job = scheduler.job_in(environ) if scheduler and not any(map(given.flag, _SUBMITS)) else None
    notes = _left_aside(given, arguments, scheduler, in_job)
    if scheduler:
        sized = sized or size(asked, here.system)
    if sized:
        notes += [*here.system.notes, *sized.notes]
        _check_hosts(given, sized, name)
    word = given.last("comm-backend")
    settings: Mapping[str, str] = {}
    if scheduler or word:
        backend = communication.comm_backend(word.text, here.system) if word else None
        if word and not scheduler and not hosts.names:
            communication.check_hosts(word.text, {"this machine": here.facts})
        settings = communication.environment(here.system, backend, ranks_env, communication.libraries(ranks_env))
    request = AllocationRequest()
    if scheduler and sized:
        request = _request(given, arguments, sized, here.system, scheduler, in_job=in_job)
        _check_request(given, request, scheduler, environ)
    return Where(
        scheduler=name,
        inside=in_job.id if in_job else "",
        attended=_is_attended(given, scheduler, in_job),
        hosts=hosts,
        workers=_workers(given, hosts, name, sized),
        request=request,
        settings=settings,
        notes=tuple(notes),
    )


class Here:
    """This machine, and the system that a job from here runs on; looked at when somebody asks."""

    def __init__(self, given: Values, environ: Mapping[str, str]) -> None:
        self._given, self._environ = given, environ
        self.params = parse_params([one.text for one in given.all("system-params")])
        self._facts: HostFacts | None = None
        self._system: System | None = None

    @property
    def is_described(self) -> bool:
        """Whether the user's words of size are about a system, and not about a machine's own count."""
        return any(map(self._given.flag, ("gpus-at-least", "gpumem-at-least", "system-params")))

    @property
    def facts(self) -> HostFacts:
        """What was detected."""
        self._facts = self._facts or facts()
        return self._facts

    @property
    def system(self) -> System:
        """What the nodes are."""
        if self._system is None:
            self._system = describe(
                self.facts.hostname,
                self._environ,
                queue=self._given.plain("queue"),
                params=self.params,
                file=read_systems(systems_file(self._environ)),
                facts=self.facts,
                gpu_arch=architecture(self.facts.gpus),
                scheduler=schedulers.here(self._environ)[0],
            )
        return self._system


# --- whose nodes ----------------------------------------------------------------------------------------------------


def _scheduler(
    given: Values, environ: Mapping[str, str], here: Here, arguments: tuple[Argument, ...], sized: Size | None
) -> str:
    only = _only_schedulers(given, arguments)
    listed = given.last("hosts") or given.last("hostfile")
    said = _said(given, here)
    if listed:
        if only:
            raise UsageError(
                f"{listed.spelling} names hosts, and {only.spelling} is for a scheduler, which finds its own",
                "leave one out",
            )
        return ""
    local = given.last("local") or given.last("standalone")
    if local and said in schedulers.TABLE:
        title = schedulers.of(said).title
        raise UsageError(f"{local.spelling} means this machine, and {title}'s nodes are asked for", "leave one out")
    if local or said == "none":
        submits = next((given.last(key) for key in _SUBMITS if given.flag(key)), None)
        if submits:
            words = local.spelling if local else "--scheduler"
            raise UsageError(f"{submits.spelling} needs a scheduler, and {words} means this machine", "leave one out")
        return ""
    in_job = schedulers.job_in(environ)
    if said or in_job:
        return said or (in_job[0].name if in_job else "")
    counts = given.nodes()
    many = (counts[1] if counts else 0) > 1 or (sized is not None and (sized.nodes or 1) > 1)
    if there := schedulers.configured(environ):
        return there.name if many or only else ""
    if only:
        raise UsageError(
            f"{only.spelling} is for a scheduler, and none that zlaunch can use is configured here",
            "Slurm is where sbatch is on PATH and a slurm.conf is there, LSF where bsub is, Flux where flux is and a "
            "broker listens; --scheduler slurm takes that for granted",
        )
    return ""


def _said(given: Values, here: Here) -> str:
    """A scheduler's name or ``none``, where that was said."""
    word = given.last("scheduler")
    if word:
        return SCHEDULERS[word.text.lower()]
    name = str(here.params.get("scheduler", ""))
    if name not in ("", "none", *schedulers.TABLE):
        known = ", ".join(schedulers.TABLE)
        raise UsageError(f"-p scheduler={name}: zlaunch does not know how to use it", f"there are none, {known}")
    return name


def _only_schedulers(given: Values, arguments: tuple[Argument, ...]) -> Given | None:
    """The first option that only a scheduler can serve."""
    found = [one for key in _ONLY_SCHEDULERS if (one := given.last(key))]
    return found[0] if found else given.last("xargs") if arguments else None


def _left_aside(
    given: Values, arguments: tuple[Argument, ...], scheduler: Scheduler | None, in_job: Job | None
) -> list[str]:
    found = [one.spelling for key in _ONLY_SCHEDULERS if (one := given.last(key))]
    if not scheduler:
        found += ["-x " + " ".join(name for name, _ in arguments)] if arguments else []
    if not found or (scheduler and not in_job):
        return []
    why = "no scheduler is asked"
    if scheduler and in_job:
        why = f"we are in {scheduler.title}'s job {in_job.id}, whose nodes are taken as they are"
    return [f"{why}; left aside: {', '.join(found)}"]


def _is_attended(given: Values, scheduler: Scheduler | None, in_job: Job | None) -> bool:
    """MPI processes are started by commands that some schedulers have within a job only."""
    is_mpi, submits = given.text("rdv") == "mpi", any(map(given.flag, (*_SUBMITS, "setup-only")))
    return is_mpi and scheduler is not None and bool(scheduler.inside) and not in_job and not submits


# --- how large ------------------------------------------------------------------------------------------------------


def _asked(given: Values) -> Asked:
    counts = given.nodes()
    listed = given.last("hosts") or given.last("hostfile")
    by_size = next((one for key in ("gpus-at-least", "gpumem-at-least") if (one := given.last(key))), None)
    if listed and by_size:
        raise UsageError(f"{by_size.spelling} finds the number of hosts, and {listed.spelling} names them", "use -n")
    gpus = given.last("gpus-at-least")
    return Asked(
        nodes=counts[1] if counts else None,
        procs_per_node=_procs(given),
        gpus_at_least=given.integer("gpus-at-least", 1, least=1) if gpus else None,
        gpumem_at_least=given.gigabytes("gpumem-at-least"),
        gpus_per_proc=given.integer("gpus-per-proc", 1, least=1),
    )


def _procs(given: Values) -> int | Literal["gpu", "cpu", "auto"] | None:
    workers = given.workers(here=False)
    return None if isinstance(workers, tuple) else workers


def _check_hosts(given: Values, sized: Size, scheduler: str) -> None:
    """Of this machine there is one."""
    by_size = given.last("gpus-at-least") or given.last("gpumem-at-least")
    if by_size and not scheduler and (sized.nodes or 1) > 1:
        raise UsageError(
            f"{by_size.spelling} {by_size.text}: {sized.nodes} hosts are needed, and this machine is one",
            f"--scheduler slurm asks for them; {NAME_THEM}",
        )


def _workers(given: Values, hosts: HostOptions, scheduler: str, sized: Size | None) -> Workers:
    if scheduler and sized:
        return sized.workers
    said = given.workers(here=hosts.names is None) or hosts.slots
    return sized.workers if sized and said == "auto" else said


def _request(
    given: Values,
    arguments: tuple[Argument, ...],
    sized: Size,
    system: System,
    scheduler: Scheduler,
    *,
    in_job: Job | None,
) -> AllocationRequest:
    """What a scheduler is asked for; within one of its jobs, how many of its nodes are taken."""
    minutes = given.minutes("time-limit")
    counted = isinstance(sized.workers, int)
    own, mpi = given.flag("batch-script"), given.text("rdv") == "mpi"  # one's own directives hold but for what was said
    in_step = [one for one in arguments if in_job or _is_of_steps(one[0].lstrip("~"), scheduler, mpi=mpi)]
    of_system = communication.arguments(system, sized.ranks_per_node, scheduler.name)
    known = {name for name, _ in of_system} - _OF_RANKS
    said = {name.lstrip("~") for name, _ in arguments}
    step = [one for one in of_system if one[0] in (known if mpi else known - said)]
    theirs = [one for one in arguments if one in in_step or one[0].lstrip("~") in known]
    ranks = [one for one in of_system if one[0] not in _BINDING | said]
    return AllocationRequest(
        nodes=_nodes(given, sized, in_job),
        queue=given.plain("queue"),
        account=given.plain("account"),
        reservation=given.plain("reservation"),
        dependency=given.plain("dependency"),
        minutes=None if minutes is None else math.ceil(minutes / 60),
        # All cores of a node are wanted, and how many it has nobody knows here.
        exclusive=given.flag("exclusive") or (sized.workers == "cpu" and not system.described("cores_per_node")),
        ranks_per_node=sized.ranks_per_node if counted and (not own or given.flag("procs-per-node")) else None,
        gpus_per_node=sized.gpus_per_node if system.described("gpus_per_node") and not own else None,
        extra=tuple(argument for argument in arguments if argument not in in_step),
        step=tuple(step if mpi else step + theirs),
        ranks=tuple(ranks + theirs) if mpi else (),
    )


def _is_of_steps(name: str, scheduler: Scheduler, *, mpi: bool) -> bool:
    """Whether an argument is for what starts programs in a job: MPI processes, where there are such, else agents."""
    return name in scheduler.of_steps or (mpi and scheduler.of_ranks.match(name) is not None)


def _check_request(given: Values, request: AllocationRequest, scheduler: Scheduler, environ: Mapping[str, str]) -> None:
    try:
        scheduler.options(request, environ)
    except Refused as refused:
        one = given.last(refused.about)
        raise UsageError(f"{one.spelling if one else refused.about} {refused.message}", refused.hint) from None


def _nodes(given: Values, sized: Size, in_job: Job | None) -> int | None:
    counts, one = given.nodes(), given.last("nodes")
    if counts is None or one is None or counts[0] == counts[1]:
        return sized.nodes
    if in_job is None:
        raise UsageError(f"{one.spelling} {one.text}: how many nodes shall there be?", f"write -N {counts[1]}")
    return min(counts[1], max(counts[0], in_job.size)) if in_job.size else counts[0]
