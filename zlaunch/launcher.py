"""Level 5: the public API. ``Launcher(...).run(function)``, and what else can be done with agents and steps."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar

from . import worlds
from .access import Access, config_path
from .allocation import allocate, places_of, private_folder, wanted
from .asking import Holder
from .backends.scheduler import Launch
from .cluster import Cluster
from .errors import LaunchError
from .fields import check_fields, hosts_of
from .model import AllocationRequest, Bind, HostFacts, HostPlan, StartMethod, TaskKind
from .plan import LaunchPlan
from .protocol.envelope import Buffer
from .protocol.letter import dump_task
from .protocol.travel import modules_by_value
from .result import LaunchResult, Run, interrupt, waited
from .steps import (
    among,
    backend_for,
    can_count,
    check_function,
    check_hosts,
    check_preload,
    check_words,
    choose,
    counted,
    make_errands,
    make_plan,
    with_backend,
)
from .surroundings import DEFAULT_ENV_VARS_FOR_COPY, ranks_environment, say, view_settings
from .systems.detect import facts as detect_facts
from .systems.targets import check_module, check_program, check_script, search_path
from .view.settings import HandlerFactory, ViewName, ViewSettings

P = ParamSpec("P")
R = TypeVar("R")

Backend = Literal["auto", "nccl", "gloo", "mpi", "ucc"]
Where = Literal["auto", "local", "slurm", "lsf", "flux"]
Workers = Literal["auto", "gpu", "cpu"]
Dump = Callable[..., Sequence[Buffer]]
"""Pickles a task; is given the folders that a host has not."""

DEFAULT_LOG_DIR = "zlaunch_logs"


@dataclass
class Launcher:
    """Where functions, scripts and programs run, and how.

    Attributes:
        hostnames: ``"local"`` is this machine; ``"slurm"``, ``"flux"`` and ``"lsf"`` are nodes of theirs: of the job
            that we are in, or of one that is asked for; ``"auto"`` the nodes of the job that we are in, or this
            machine. Or a list of names or addresses, each of which is reached by ``ssh`` unless it means this machine:
            ``["node1", "me@node2", "localhost"]``.
        workers_per_host: ranks per host: a number, one per host, ``"gpu"`` (one per GPU), ``"cpu"`` (the usable cores)
            or ``"auto"`` (one per GPU; without any, one per NUMA domain).
        backend: the process group that is made before a function and destroyed after it. ``"auto"``: nccl where there
            are GPUs, else gloo; ``None``: none.
        rendezvous: how ranks find each other: ``"tcp"``; or ``"mpi"``: they are processes of an MPI world as well.
        ssh_config_file: for hosts that are reached by ssh; default: what ``ssh`` itself reads.
        python: the interpreter on hosts that are reached by ssh; default: the path of the one here.
        setup: what their shell does first: ``"module load cuda"``.
        host_timeout: seconds without a sign of life after which a host is lost; 1.5 at least.
        bind: to which cores ranks are bound: ``"core"`` to a share of their own, in the NUMA domain of their GPU,
            ``"numa"`` to all of that domain, ``"none"``; ``"auto"``: as ``"core"`` on hosts of several domains.
        worker_timeout: seconds that a collective of the process group may take.
        agent_timeout: seconds that agents may take to start.
        copy_env_vars: shell patterns of variables that ranks on other hosts get on top of those of their own host;
            those here inherit them all.
        extra_env_vars: more of them, which win over those.
        env_file: a ``.env`` file of still more, which win over all.
        gpus_per_worker: where more than 1, each rank sees only its own GPUs.
        gpu_memory_fraction: of its GPU's memory that a rank may allocate, above 0 and up to 1.
        unswap_rocr_hip: leave ``ROCR_VISIBLE_DEVICES`` where it is.
        preload: modules that are imported once per host before ranks are forked.
        start_method: ``"fork"``, or ``"spawn"`` for a new interpreter per rank.
        grace_period: seconds from SIGTERM to SIGKILL.
        time_limit: seconds that a step may run.
        max_restarts: how often a failed step is started again, as a whole.
        log_dir: where the files per rank go; ``None`` or ``""`` for none.
        view: how the console shows it: ``"live"`` (a table; auto: on a terminal), ``"plain"``, ``"json"``, ``"none"``.
    """

    hostnames: Where | list[str] = "auto"
    workers_per_host: Workers | int | list[int] = "auto"
    backend: Backend | None = "auto"
    rendezvous: Literal["tcp", "mpi"] = "tcp"
    ssh_config_file: str | Path | None = None
    worker_timeout: float = 600
    agent_timeout: float = 60
    copy_env_vars: tuple[str, ...] = DEFAULT_ENV_VARS_FOR_COPY
    extra_env_vars: dict[str, str] | None = None
    env_file: str | Path | None = None
    gpus_per_worker: int = 1
    gpu_memory_fraction: float | None = None
    unswap_rocr_hip: bool = False
    preload: tuple[str, ...] = ("torch",)
    start_method: StartMethod = "fork"
    grace_period: float = 30
    time_limit: float | None = None
    max_restarts: int = 0
    log_dir: str | Path | None = DEFAULT_LOG_DIR
    view: ViewName = "auto"
    python: str | None = None
    setup: str | None = None
    host_timeout: float = 4.5
    bind: Bind = "auto"

    view_settings: ViewSettings | None = field(default=None, init=False, repr=False, compare=False)
    """What the command line says of the view beyond ``log_dir`` and ``view``; wins over both."""
    request: AllocationRequest = field(default=AllocationRequest(), init=False, repr=False, compare=False)
    """What a scheduler is asked for, outside of its jobs."""
    check_facts: Callable[[dict[str, HostFacts]], object] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    """Is shown what the hosts of each step have, by their names; raises ValueError where that will not do."""
    _handlers: HandlerFactory | None = field(default=None, init=False, repr=False, compare=False)
    _shared: _Shared = field(
        default_factory=lambda: _Shared(),  # noqa: PLW0108 - defined below
        init=False,
        repr=False,
        compare=False,
    )

    # --- steps ------------------------------------------------------------------------------------------------------

    def run(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> LaunchResult[R]:
        """Run a function on every rank and wait for what the ranks return.

        Raises:
            Exception: what the rank that failed first raised, as its own type, with a ``RemoteTraceback`` as its cause.
            ZlaunchError: see ``zlaunch.errors``.
            KeyboardInterrupt: after all ranks have been ended; a second one kills them at once.
        """
        return waited(lambda: self.submit(func, *args, **kwargs))

    def submit(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """As ``run``, without waiting. Raises SerializationError, LaunchError or ValueError before anything starts."""
        check_function(func)
        name = getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or repr(func)
        return self._submit("function", (), functools.partial(dump_task, func, args, kwargs), name)

    def run_script(self, path: str | os.PathLike[str], *argv: str) -> LaunchResult[None]:
        """Run a Python script on every rank, as ``python path argv...`` would. No process group is made for it.

        Raises:
            WorkerFailedError: a rank's exit status was not 0.
            FileNotFoundError: there is no such script, or none that can be run; nothing has been started.
        """
        return waited(lambda: self.submit_script(path, *argv))

    def run_module(self, name: str, *argv: str) -> LaunchResult[None]:
        """Run a module on every rank, as ``python -m name argv...`` would. Raises as ``run_script``."""
        return waited(lambda: self.submit_module(name, *argv))

    def run_command(self, *argv: str) -> LaunchResult[None]:
        """Run any program on every rank. Raises as ``run_script``."""
        return waited(lambda: self.submit_command(*argv))

    def submit_script(self, path: str | os.PathLike[str], *argv: str, name: str | None = None) -> Run[None]:
        """``run_script`` without waiting; ``name`` is what the run is called, by default the script."""
        check_script(os.fspath(path))
        return self._submit("script", (os.fspath(path), *argv), None, name or Path(path).name)

    def submit_module(self, module: str, *argv: str, name: str | None = None) -> Run[None]:
        """``run_module`` without waiting; ``name`` as for a script."""
        check_module(module, search_path(os.getcwd(), ranks_environment(self.extra_env_vars, self.env_file)))
        return self._submit("module", (module, *argv), None, name or module)

    def submit_command(self, *argv: str, name: str | None = None) -> Run[None]:
        """``run_command`` without waiting; ``name`` as for a script."""
        if not argv:
            raise ValueError("run_command takes a program and its arguments")
        if any(place.here for place in self._places()):  # another host may well have what we have not
            check_program(argv[0], ranks_environment(self.extra_env_vars, self.env_file))
        return self._submit("command", argv, None, name or Path(argv[0]).name)

    # --- agents that stay -------------------------------------------------------------------------------------------

    def start(self) -> Launcher:
        """Start the agents, and keep them for many steps, until ``stop``. Does nothing where they are there already."""
        check_fields(self)
        with self._shared.lock:
            cluster = self._shared.cluster
            wait = cluster.wait_started if cluster else None
            if wait is None:
                self._shared.cluster, wait = self._new_cluster(self._places(), self.preload)
        try:  # without the lock: somebody may want to stop what takes so long
            wait()
        except BaseException:
            self._shared.cluster = None
            raise
        return self

    def stop(self) -> None:
        """End all steps and agents, and wait for it; who waits for a scheduler's nodes waits no longer."""
        for holder in list(self._shared.holders):
            holder.give_up()
        with self._shared.lock:
            cluster, self._shared.cluster = self._shared.cluster, None
        if cluster:
            cluster.stop()

    def __enter__(self) -> Launcher:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        cluster = self._shared.cluster
        try:
            for run in cluster.pending() if cluster else ():
                if exc is not None:
                    run.cancel()
                run.exception()
        finally:
            self.stop()

    def on(
        self,
        hosts: int | None = None,
        hostnames: Sequence[str] | None = None,
        **changes: Any,
    ) -> Launcher:
        """The same agents, another size: a launcher for the first ``hosts`` hosts, or for those named.

        Args:
            hosts: how many.
            hostnames: which; they must be hosts of this launcher.
            changes: any other field: ``workers_per_host=1``, ``backend=None``, ``max_restarts=2``.

        Raises:
            ValueError: more hosts than there are, or one that isn't there.
            TypeError: a field that does not exist.
            LaunchError: the hosts are a scheduler's, and have not been given yet.
        """
        if self._shared.cluster is None and wanted(self.hostnames, os.environ):
            raise LaunchError("on() is for agents that are there: with Launcher(...) as cluster: cluster.on(...)")
        mine = [plan.name for plan in self._places()]
        chosen = choose(mine, hosts, hostnames)
        if isinstance(self.workers_per_host, list) and "workers_per_host" not in changes:
            counts = dict(zip(mine, self.workers_per_host, strict=True))
            changes["workers_per_host"] = [counts[name] for name in chosen]
        other = dataclasses.replace(self, hostnames=chosen, **changes)
        other.view_settings, other._handlers, other._shared = self.view_settings, self._handlers, self._shared
        other.request, other.check_facts = self.request, self.check_facts
        return other

    def set_logging_handlers(
        self, handler_factory: Callable[[], list[logging.Handler]] | Literal["auto"] | None
    ) -> Launcher:
        """Have all output and records handled by the handlers that ``handler_factory`` makes, in place of the console.

        Records carry ``hostname`` and ``local_rank``; printed lines are INFO (stdout) and ERROR (stderr) records.
        ``"auto"`` is the default again; ``None`` shows nothing. The files in ``log_dir`` are written in any case.
        Where agents are there already, it is so from now on, for all who share them. Raises what the factory raises.
        """
        chosen = list if handler_factory is None else handler_factory
        self._handlers = None if chosen == "auto" else chosen
        if cluster := self._shared.cluster:
            cluster.desk.set_handlers(self._handlers)
        return self

    def plan(self, kind: TaskKind = "function", *argv: str) -> LaunchPlan:
        """What a step would be: hosts, agents, environment, seats. Starts nothing. Raises as ``submit``."""
        return make_plan(self, kind, argv)

    # --- the inside -------------------------------------------------------------------------------------------------

    def _submit(self, kind: TaskKind, argv: Sequence[str], dump: Dump | None, name: str) -> Run[Any]:
        check_fields(self)
        check_words(argv)
        places = self._places()
        tasks: dict[bool, Sequence[Buffer]] = dict.fromkeys((True, False), dump() if dump else ())
        cluster = self._shared.cluster
        alone = cluster is None
        world = worlds.find(self, kind)
        if cluster is None:
            if places and (all(place.here for place in places) or can_count(self, places)):
                here = {place.index: detect_facts() for place in places if place.here}
                plans = counted(self, places, here)
                check_hosts(self, kind, [host for host in plans if host.here], here)
            cluster, start = self._new_cluster(places, self._preload_for(kind))
            start()
        else:
            cluster.wait_started()
        submitted = ""
        try:
            hosts = counted(self, among(cluster.hosts, places or cluster.hosts), cluster.facts)
            check_hosts(self, kind, hosts, cluster.facts)
            preload = self._preload_for(kind) if alone else self.preload
            errands = make_errands(self, kind, argv, preload, {host.here for host in hosts})
            submitted = errands[hosts[0].here].step.id
            if dump:
                errands = with_backend(errands, backend_for(self, hosts, cluster.facts))
                folders = errands[hosts[0].here].step.sys_path
                absent = tuple(set().union(*(cluster.absent(host, folders) for host in hosts)))
                if modules_by_value(absent):
                    tasks[False] = dump(absent)
            ranks = worlds.command(cluster.access, hosts, submitted, world, self.request.ranks) if world else None
            return cluster.submit(
                errands,
                tasks,
                hosts,
                name=name,
                grace=self.grace_period,
                time_limit=self.time_limit,
                alone=alone,
                ranks=ranks,
                bind=self.bind,
                patience=self.agent_timeout,
            )
        except BaseException:
            if run := cluster.runs.get(submitted):  # a Ctrl-C between its start and our knowing of it
                interrupt(run)
            if alone:
                cluster.stop()
            raise

    def _new_cluster(
        self, places: tuple[HostPlan, ...], preload: tuple[str, ...]
    ) -> tuple[Cluster, Callable[[], None]]:
        """A cluster, and how it is started."""
        check_fields(self)
        check_preload(preload)
        settings = self.view_settings or view_settings(self.view, self.log_dir, DEFAULT_LOG_DIR, self._handlers)
        errands = make_errands(self, "function", (), preload, {place.here for place in places} or {False})
        templates = {here: errand.template for here, errand in errands.items()}
        scheduler, access = wanted(self.hostnames, os.environ), self._access()
        if scheduler is None:
            cluster = Cluster(places, access, settings)
        else:
            launch = self._launch(private_folder(os.environ))
            nodes = allocate(scheduler, self.request, launch, os.environ, say, begun=self._shared.holders.add)
            access = dataclasses.replace(
                access, scheduler=scheduler, together=nodes.command, folder=nodes.folder, allocation=nodes
            )
            try:
                places = places_of(nodes.nodes)
                if can_count(self, places):
                    counted(self, places, {})
                cluster = Cluster(places, access, settings, nodes.release)
            except BaseException:
                nodes.release()
                raise
        return cluster, functools.partial(cluster.start, templates, self.agent_timeout, os.getcwd())

    def _access(self) -> Access:
        return Access(config_path(self.ssh_config_file), self.python, self.setup, self.host_timeout)

    def _launch(self, folder: str = "<folder>") -> Launch:
        return Launch(self._access().interpreter, self.setup, folder, mpi=self.rendezvous == "mpi")

    def _preload_for(self, kind: TaskKind) -> tuple[str, ...]:
        """A program of its own has no use for our torch."""
        return () if kind == "command" else self.preload

    def _places(self) -> tuple[HostPlan, ...]:
        """Our hosts, with their ranks still to be counted; none as long as a scheduler has not told of them."""
        cluster, names = self._shared.cluster, self.hostnames
        if wanted(names, os.environ):
            return cluster.hosts if cluster else ()
        known = {host.name: host.here for host in cluster.hosts} if cluster else {}
        if known and not isinstance(names, str) and known.keys() >= set(names) and len(set(names)) == len(names) > 0:
            return tuple(HostPlan(i, name, 0, known[name]) for i, name in enumerate(names))
        return hosts_of(names)


@dataclass
class _Shared:
    """What a launcher and those made of it by ``on`` have in common."""

    cluster: Cluster | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    holders: weakref.WeakSet[Holder] = field(default_factory=weakref.WeakSet)
    """What waits for a scheduler's nodes, or has."""

    def __reduce__(self) -> tuple[type[_Shared], tuple[()]]:
        return _Shared, ()  # a launcher that travels with an object that has it is another one: the agents are ours
