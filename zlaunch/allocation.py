"""Level 5: the nodes that a scheduler gives: of the job that we are in, or of one that we ask for, and wait for."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from .asking import Holder, answer, send
from .backends import schedulers
from .backends.scheduler import Command, Launch, Nodes, Refused, Scheduler
from .errors import LaunchError
from .model import AllocationRequest, HostPlan

OLD = 7 * 86400.0
"""Seconds after which a folder that is still there has been left behind."""
MOMENT = 1.0
"""Seconds that a step gets at least."""


@dataclass
class Allocation:
    """Nodes of a job."""

    scheduler: Scheduler
    nodes: Nodes
    command: Command
    """What starts, or has started to start, the agents there."""
    folder: str
    """With the files of the command; there is none where these are none."""
    holder: Holder | None = None
    """The command as it runs, where it has asked for the nodes."""
    ends_at: float | None = None
    """When the job's time limit passes, by ``time.monotonic``."""
    _left: float = 0.0
    _cancelled: bool = False
    _releasing: threading.Lock = field(default_factory=threading.Lock)

    def look_at_the_clock(self) -> None:
        """Learn when the job's time limit passes, where the scheduler tells."""
        argv = self.scheduler.left_argv(self.nodes.job)
        with suppress(LaunchError):
            left = self.scheduler.left(self.nodes.job, answer(self.scheduler, argv)) if argv else None
            if left is not None:
                self.ends_at, self._left = time.monotonic() + left, left

    def time_for(self, grace: float) -> float | None:
        """Seconds that a step may take so that its ranks can still end by themselves; ``None``: as it likes.

        That leaves ``grace`` and a little, or a tenth of a job that is shorter than ten times that.
        """
        if self.ends_at is None:
            return None
        return max(MOMENT, self.ends_at - time.monotonic() - min(grace + 5.0, self._left / 10))

    def about(self) -> str:
        """How to learn what became of the job."""
        job, asked = self.nodes.job, self.scheduler.asked.format(self.nodes.job)
        return f"that was in {self.scheduler.title}'s job {job}; what became of it says: {asked}"

    def cancel(self) -> None:
        """Have the scheduler end what we asked for; does not wait for it."""
        self._cancelled = True
        send(self.scheduler, self.scheduler.cancel_argv(self.nodes.job))

    def release(self) -> None:
        """Give back what we asked for, and remove our files; a job of somebody else's making is left alone."""
        with self._releasing:
            holder, self.holder = self.holder, None
            if holder is not None:
                holder.end(by_itself=not self._cancelled)
            shutil.rmtree(self.folder, ignore_errors=True)


def places_of(nodes: Nodes) -> tuple[HostPlan, ...]:
    """Nodes as hosts, with their ranks still to be counted."""
    return tuple(HostPlan(index, name, 0, here=False) for index, name in enumerate(nodes.names))


def wanted(hostnames: object, environ: Mapping[str, str]) -> Scheduler | None:
    """Whose nodes are the hosts: because that was said, or because we are in one of its jobs."""
    if isinstance(hostnames, list) and len(hostnames) == 1:
        hostnames = hostnames[0]  # as a command line's parser gives it
    if isinstance(hostnames, str) and hostnames in schedulers.TABLE:
        return schedulers.of(hostnames)
    found = schedulers.job_in(environ) if hostnames == "auto" else None
    return found[0] if found else None


def shown(
    scheduler: Scheduler, request: AllocationRequest, launch: Launch, environ: Mapping[str, str]
) -> tuple[Nodes, Command]:
    """What ``allocate`` would get, and by what, without asking: nodes have no names then.

    Where it had to be called within a job, that is taken for granted. Raises as it.
    """
    job = scheduler.job_in(environ)
    if job is None:
        count = request.nodes or 1
        nodes = Nodes("<job>", tuple(f"<node {index + 1} of {count}>" for index in range(count)))
        if launch.mpi and scheduler.inside:
            return nodes, _refusable(lambda: scheduler.agents(nodes, launch, request.step, environ))
        return nodes, _refusable(lambda: scheduler.hold(request, launch, environ))
    count = request.nodes or job.size or 1
    of = job.nodes or str(count)
    nodes = Nodes(job.id, tuple(f"<node {index + 1} of {of}>" for index in range(count)))
    return nodes, _refusable(lambda: scheduler.agents(nodes, launch, request.step, environ))


def allocate(
    scheduler: Scheduler,
    request: AllocationRequest,
    launch: Launch,
    environ: Mapping[str, str],
    tell: Callable[[str], None],
    *,
    begun: Callable[[Holder], None] = lambda _: None,
) -> Allocation:
    """The nodes of the job that we are in, or of one that is asked for; ``tell`` says what is waited for.

    Args:
        scheduler: whose.
        request: what is asked for.
        launch: how agents are started.
        environ: ours.
        tell: gets a line for each news.
        begun: gets what waits, so that another thread can have it give up.

    Raises:
        LaunchError: there are none; in the scheduler's words, or ours.
    """
    nodes = current(scheduler, environ, request.nodes)
    if nodes is not None:
        command = _refusable(lambda: scheduler.agents(nodes, launch, request.step, environ))
        found = Allocation(scheduler, nodes, command, launch.folder)
        found.look_at_the_clock()
        try:
            write_files(command, launch.folder)
        except BaseException:
            found.release()
            raise
        return found
    if launch.mpi and scheduler.inside:
        within = " ".join(scheduler.attended((), "sh", "", "").argv[:2])
        raise LaunchError(
            f"{scheduler.title} starts MPI processes within its jobs only, and we are in none: run the script in one, "
            f"as by {within}"
        )
    command = _refusable(lambda: scheduler.hold(request, launch, environ))
    holder = Holder(scheduler, command, tell)
    begun(holder)
    try:
        write_files(command, launch.folder)
        found = Allocation(scheduler, holder.wait(), command, launch.folder, holder)
        found.look_at_the_clock()
        return found
    except BaseException:
        holder.end(by_itself=False)
        shutil.rmtree(launch.folder, ignore_errors=True)
        raise


def current(scheduler: Scheduler, environ: Mapping[str, str], count: int | None = None) -> Nodes | None:
    """Those of the job that we are in, or its first ``count``; ``None`` outside of one. Raises LaunchError."""
    job = scheduler.job_in(environ)
    if job is None:
        return None
    argv = scheduler.nodes_argv(job)
    nodes = scheduler.nodes(job, answer(scheduler, argv) if argv else "", environ)
    if not nodes.names:
        raise LaunchError(f"{scheduler.title} names no hosts of job {job.id} {job.nodes}".rstrip())
    if count is not None and count > len(nodes.names):
        raise LaunchError(
            f"{count} nodes are wanted, and {scheduler.title}'s job {job.id} has {len(nodes.names)}: "
            f"{job.nodes or ' '.join(nodes.names)}"
        )
    return Nodes(nodes.job, nodes.names[:count], nodes.ids[:count])


def private_folder(environ: Mapping[str, str]) -> str:
    """A name for a new folder that a scheduler's nodes see, as a rule: below the home folder. It is not made."""
    base = environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "zlaunch", f"launch-{secrets.token_hex(8)}")


def _refusable(make: Callable[[], Command]) -> Command:
    try:
        return make()
    except Refused as refused:
        raise LaunchError(str(refused)) from None


def write_files(command: Command, folder: str) -> None:
    """Make the folder with a command's scripts. Raises LaunchError where somebody else could change them."""
    if not command.files:
        return
    parent = os.path.dirname(folder)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    there = os.stat(parent)
    if there.st_uid != os.getuid() or there.st_mode & 0o022:
        raise LaunchError(f"{parent}: somebody else may write there; set XDG_CACHE_HOME to a folder of your own")
    _sweep(parent)
    os.mkdir(folder, 0o700)
    for name, text in command.files.items():
        with open(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "w") as file:
            file.write(text)


def _sweep(parent: str) -> None:
    """Remove what was left by those that were killed: nobody reads it after its agents have started."""
    with suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith("launch-") and entry.stat(follow_symlinks=False).st_mtime < time.time() - OLD:
                shutil.rmtree(entry.path, ignore_errors=True)
