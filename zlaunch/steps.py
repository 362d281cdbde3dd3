"""Level 5: a launcher's fields become a step: what its ranks are given, on this machine and on others."""

from __future__ import annotations

import dataclasses
import inspect
import os
import secrets
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from . import worlds
from .access import Access
from .allocation import places_of, shown, wanted
from .errors import LaunchError
from .fields import check_fields, check_gpus, usable_gpus
from .model import HostFacts, HostPlan, Step, TaskKind, TemplateSpec
from .plan import Errand, LaunchPlan, count_workers, place_ranks, template_for
from .surroundings import ranks_environment, record_level
from .systems.detect import facts as detect_facts
from .systems.targets import TargetError, check_import

if TYPE_CHECKING:
    from .launcher import Launcher


def new_id() -> str:
    """Short enough to read aloud, random enough for one user's runs."""
    return secrets.token_hex(4)


def make_errands(
    launcher: Launcher, kind: TaskKind, argv: Sequence[str], preload: Sequence[str], groups: Collection[bool]
) -> dict[bool, Errand]:
    """A step for hosts here and for others, as ``groups`` wants; both are the same step, in other environments.

    Its process group is still open: ``with_backend``.
    """
    run, token = new_id(), new_id() + new_id()
    function = kind == "function"
    errands = {}
    for here in groups:
        step = Step(
            id=run,
            run_id=run,
            kind=kind,
            argv=tuple(argv),
            env=ranks_environment(
                launcher.extra_env_vars, launcher.env_file, None if here else tuple(launcher.copy_env_vars)
            ),
            inherit=not here,
            cwd=os.getcwd(),
            sys_path=tuple(path or os.getcwd() for path in sys.path),
            rendezvous=launcher.rendezvous,
            timeout=launcher.worker_timeout,
            log_token=token if function else "",
            log_level=record_level(launcher._handlers),
            max_restarts=launcher.max_restarts,
            gpus_per_worker=launcher.gpus_per_worker,
            gpu_memory_fraction=launcher.gpu_memory_fraction,
            unswap_rocr_hip=launcher.unswap_rocr_hip,
        )
        errands[here] = Errand(step, _template(launcher, step, preload))
    return errands


def _template(launcher: Launcher, step: Step, preload: Sequence[str]) -> TemplateSpec:
    return template_for(
        preload=preload,
        start_method=launcher.start_method,
        env=step.env,
        inherit=step.inherit,
        sys_path=step.sys_path,
        cwd=step.cwd,
    )


def with_backend(errands: Mapping[bool, Errand], backend: str | None) -> dict[bool, Errand]:
    """The same with the process group that a function finds."""
    return {
        here: Errand(msgspec.structs.replace(errand.step, backend=backend), errand.template)
        for here, errand in errands.items()
    }


def backend_for(launcher: Launcher, hosts: Sequence[HostPlan], facts: Mapping[int, HostFacts]) -> str | None:
    """The process group's backend: ``auto`` is nccl where every rank has its own GPU, since nccl shares none."""
    if launcher.backend != "auto":
        return launcher.backend
    enough = all(usable_gpus(facts[h.index]) >= h.workers * launcher.gpus_per_worker for h in hosts)
    return "nccl" if enough else "gloo"


def check_hosts(launcher: Launcher, kind: TaskKind, hosts: Sequence[HostPlan], facts: Mapping[int, HostFacts]) -> None:
    """Whether these hosts can do a step. Raises LaunchError or ValueError."""
    by_name = {host.name: facts[host.index] for host in hosts}
    workers, backend = {host.name: host.workers for host in hosts}, None
    if launcher.gpu_memory_fraction is not None and kind == "command":
        raise ValueError("gpu_memory_fraction is for functions, scripts and modules: in a program nobody would set it")
    if kind == "function":
        backend = backend_for(launcher, hosts, facts)
    check_gpus(backend, launcher.gpu_memory_fraction, launcher.gpus_per_worker, workers, by_name)
    if launcher.check_facts:
        launcher.check_facts(by_name)
    if kind != "function":
        return
    ours = sys.version_info[:2]
    for host in hosts:
        theirs = tuple(int(number) for number in facts[host.index].python.split(".")[:2])
        if theirs != ours:
            raise LaunchError(
                f"{host.name} has Python {facts[host.index].python}, and this is {sys.version.split()[0]}: a function "
                "travels as bytecode, which differs; name the same Python there (python=, --python), or run a script"
            )


def check_function(func: object) -> None:
    """Raises TypeError for what is no function, and for one whose call does not run it."""
    if not callable(func):
        raise TypeError(f"run takes a function and its arguments, not {func!r}")
    if inspect.iscoroutinefunction(func):
        raise TypeError(f"{func!r} is async, and nothing would await it: give a function that calls asyncio.run(...)")


def check_words(argv: Sequence[object]) -> None:
    """Raises TypeError for an argument of a script or program that is no text."""
    for word in argv:
        if not isinstance(word, str):
            raise TypeError(f"the arguments of a script or program are texts, not {word!r}")


def check_preload(modules: Sequence[str]) -> None:
    """Raises LaunchError for a module that is not there, before any host fails to import it."""
    for module in modules:
        try:
            check_import(module, [path or os.getcwd() for path in sys.path], f"preload {module!r}")
        except TargetError as error:
            raise LaunchError(str(error)) from None


def choose(mine: Sequence[str], hosts: int | None, hostnames: Sequence[str] | None) -> list[str]:
    """Of a launcher's hosts the first so many, or those named. Raises ValueError or TypeError."""
    chosen = list(mine)
    if hosts is not None:
        if not isinstance(hosts, int):
            raise TypeError(f"on(hosts={hosts!r}): a number of hosts; by name they are on(hostnames=[...])")
        if not 1 <= hosts <= len(mine):
            raise ValueError(f"on(hosts={hosts}): this launcher has {len(mine)} host(s)")
        chosen = chosen[:hosts]
    if hostnames is not None:
        unknown = [name for name in hostnames if name not in mine]
        if unknown:
            raise ValueError(f"on(hostnames=...): {', '.join(unknown)} not among {', '.join(mine)}")
        chosen = list(hostnames)
    return chosen


def among(started: Sequence[HostPlan], places: Sequence[HostPlan]) -> list[HostPlan]:
    """The same hosts as those that were started have them. Raises ValueError for others."""
    by_name = {host.name: host for host in started}
    missing = [place.name for place in places if place.name not in by_name]
    if missing:
        raise ValueError(f"{', '.join(missing)}: not among the hosts that were started ({', '.join(by_name)})")
    return [by_name[place.name] for place in places]


def can_count(launcher: Launcher, places: Sequence[HostPlan]) -> bool:
    """Whether it is known how many ranks each host gets before its agent has told what it has."""
    return isinstance(launcher.workers_per_host, int | list) or all(place.here for place in places)


def counted(launcher: Launcher, places: Sequence[HostPlan], facts: Mapping[int, HostFacts]) -> tuple[HostPlan, ...]:
    """The same hosts with their ranks. Raises LaunchError or ValueError."""
    names = [place.name for place in places]
    known = [facts[place.index] for place in places if place.index in facts]
    counts = count_workers(launcher.workers_per_host, names, known, launcher.gpus_per_worker)
    return tuple(msgspec.structs.replace(place, workers=n) for place, n in zip(places, counts, strict=True))


def _to_show(launcher: Launcher) -> tuple[Access, Sequence[HostPlan]]:
    """How agents would be started, and where; a scheduler is not asked."""
    access, scheduler = launcher._access(), wanted(launcher.hostnames, os.environ)
    if scheduler is None:
        return access, launcher._places()
    launch = launcher._launch()
    nodes, command = shown(scheduler, launcher.request, launch, os.environ)
    return dataclasses.replace(access, scheduler=scheduler, together=command, folder=launch.folder), places_of(nodes)


def make_plan(launcher: Launcher, kind: TaskKind, argv: Sequence[str]) -> LaunchPlan:
    """What a step would be, as far as it is known before anything is started."""
    check_fields(launcher)
    cluster = launcher._shared.cluster
    places: Sequence[HostPlan]
    if cluster:
        access, places = cluster.access, among(cluster.hosts, launcher._places())
    else:
        access, places = _to_show(launcher)
    facts = dict(cluster.facts) if cluster else {p.index: detect_facts() for p in places if p.here}
    plans = counted(launcher, places, facts) if can_count(launcher, places) or cluster else places
    errands = make_errands(launcher, kind, argv, launcher._preload_for(kind), {place.here for place in places})
    known = all(host.workers for host in plans)
    if kind == "function" and known and len(facts) == len(plans):
        errands = with_backend(errands, backend_for(launcher, plans, facts))
    address, per_rank = "127.0.0.1" if len(plans) == 1 else "", launcher.gpus_per_worker
    seats = place_ranks(plans, facts, address, bind=launcher.bind, gpus_per_worker=per_rank) if known else {}
    errand = errands[places[0].here]
    ranks = None
    if launcher.rendezvous == "mpi" and known:
        ranks = worlds.command(access, plans, errand.step.id, worlds.SHOWN, launcher.request.ranks)
    return LaunchPlan(
        hosts=tuple(plans),
        agents=access.commands(places, launcher.agent_timeout),
        step=errand.step,
        seats=tuple(seat for its in seats.values() for seat in its),
        template=errand.template,
        ranks=ranks,
    )
