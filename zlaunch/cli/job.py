"""Level 6: the options become a ``Job``, once, at the door. Whatever is wrong with them is said here, before
anything starts; nobody behind this module sees a word of the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from ..model import AllocationRequest, Bind
from ..systems import targets
from ..systems.params import DescriptionError
from ..view.settings import ViewName
from .grammar import UsageError, Words
from .papers import Papers, papers
from .values import Values, Workers
from .where import where
from .xargs import xargs

Kind = Literal["script", "module", "command"]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What ``zlaunch run`` was asked for. Times are in seconds."""

    kind: Kind
    argv: tuple[str, ...]
    """The script's path, the module's name or the program, and its arguments."""
    name: str
    home: str | None
    """The folder that Python puts first into the ranks' ``sys.path``; ``None`` for a program."""
    hosts: tuple[str, ...] | None
    """``None``: this machine, or a scheduler's nodes."""
    scheduler: str
    """Whose nodes they are; empty: nobody's."""
    inside: str
    """The scheduler's job that we are in, whose nodes are taken; else empty."""
    request: AllocationRequest
    """What a scheduler is asked for."""
    papers: Papers | None
    """What is written, and submitted; ``None`` for a run that is started at once and leaves no script."""
    notes: tuple[str, ...]
    """What the user should hear first."""
    workers: Workers
    """Ranks per host; several numbers are for one host each."""
    ssh_config: str | None
    python: str | None
    setup: str | None
    host_timeout: float
    agent_timeout: float
    gpus_per_worker: int
    gpu_memory_fraction: float | None
    unswap_rocr_hip: bool
    rendezvous: Literal["tcp", "mpi"]
    comm_backend: str | None
    """That the hosts are to be able to use."""
    env: tuple[tuple[str, str], ...]
    """What the ranks' environment has on top of ours: that of the .env file, then that of --env."""
    time_limit: float | None
    grace: float
    max_restarts: int
    preload: tuple[str, ...]
    start_method: Literal["fork", "spawn"]
    bind: Bind
    out: str | None
    err: str | None
    color_stderr: bool
    log_dir: str | None
    ranks: str | None
    """Whose lines the console shows: ``all``, ``none``, ``0,4-7``; ``None`` for what the view thinks best."""
    view: ViewName
    verbose: bool
    dry_run: bool
    detach: bool
    """Whether it outlives the terminal."""
    save_hostlist: bool


def job(words: Words, environ: Mapping[str, str]) -> Job:
    """Understand a command line.

    Raises:
        UsageError: it cannot be meant, or names a script, module, program or file that is not there.
    """
    try:
        return _job(words, environ)
    except (targets.TargetError, DescriptionError) as error:
        raise UsageError(error.message, error.hint) from None


def _job(words: Words, environ: Mapping[str, str]) -> Job:
    given = Values(words.given)
    _, variables = xargs(given)
    env = {**variables, **dict(given.env(environ))}
    place = where(given, environ, {**environ, **env})
    hosts = place.hosts
    env = {**place.settings, **env}
    ranks_env = {**environ, **env}
    home = targets.home(words.command, given.flag("module"))
    search = targets.search_path(home, ranks_env)
    verbose = given.flag("verbose")
    without_command = partial(
        Job,
        home=home,
        hosts=hosts.names,
        scheduler=place.scheduler,
        inside=place.inside,
        notes=place.notes,
        workers=place.workers,
        ssh_config=hosts.ssh_config,
        python=hosts.python,
        setup=hosts.setup,
        host_timeout=given.seconds("host-timeout", 4.5, least=1.5),
        agent_timeout=given.seconds("agent-timeout", 60.0, least=1.0),
        gpus_per_worker=given.integer("gpus-per-proc", 1, least=1),
        gpu_memory_fraction=given.fraction("fraction-max-gpu-mem"),
        unswap_rocr_hip=given.flag("unswap-rocr-hip-vis-dev"),
        rendezvous="mpi" if given.text("rdv") == "mpi" else "tcp",
        comm_backend=given.text("comm-backend"),
        env=tuple(env.items()),
        time_limit=given.minutes("time-limit"),
        grace=given.seconds("grace", 30.0),
        max_restarts=given.integer("max-restarts", 0),
        preload=given.modules("preload", ("torch",), search),
        start_method="spawn" if given.text("start-method") == "spawn" else "fork",
        bind=given.bind(),
        out=given.target("out"),
        err=given.target("err"),
        color_stderr=given.flag("color-stderr"),
        ranks=given.ranks("ranks"),
        view=given.view(),
        verbose=verbose,
        dry_run=given.flag("dry-run"),
        detach=given.flag("detach"),
        save_hostlist=verbose or given.flag("save-hostlist"),
    )
    # The command comes last, so that of two mistakes the one that was typed first is told.
    kind: Kind = "command"
    argv = words.command
    own = given.text("batch-script")
    if own is None:
        here = hosts.names is None and not place.scheduler  # else the hosts may have a program that we have not
        kind, argv = _command(words.command, given.flag("module"), search, ranks_env if here else None)
    said = given.plain("job-name")
    name = said or (Path(argv[0]).name if argv else Path(own or "").name)
    log_dir = given.log_dir(environ)
    paper = papers(given, words, place, name, log_dir)
    return without_command(
        kind=kind,
        argv=argv,
        name=name,
        request=msgspec.structs.replace(place.request, name=said or ("" if own else _CONTROL.sub("?", name))),
        papers=paper,
        log_dir=paper.below(log_dir) if paper else log_dir,
    )


def _command(
    command: tuple[str, ...], is_module: bool, search: Sequence[str], env: Mapping[str, str] | None
) -> tuple[Kind, tuple[str, ...]]:
    """A ``.py`` file is a script; with -m it is a module; anything else is a program, looked for in ``env``'s PATH."""
    if not command or not command[0]:
        raise UsageError("there is no COMMAND: what is to run on every rank?", "for example: zlaunch run -n 2 train.py")
    first = command[0]
    if is_module:
        targets.check_module(first, search)
        return "module", command
    if first.endswith(".py"):
        targets.check_script(first)
        return "script", command
    if env is not None:
        targets.check_program(first, env)
    return "command", command
