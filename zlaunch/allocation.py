"""Level 5: the nodes that a scheduler gives: of the job that we are in, or of one that we ask for, and wait for."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from .backends import schedulers
from .backends.scheduler import Command, Launch, Nodes, Refused, Scheduler, granted
from .errors import LaunchError
from .model import AllocationRequest, HostPlan

ASK_EVERY = 2.0
"""Seconds between looks at a job that waits in the queue."""
ANSWER_PATIENCE = 30.0
"""Seconds that a scheduler's command may take; a controller that is away answers after 10 or so."""
MOMENT = 1.0
"""Seconds that a step gets at least, and that a command may take to end once its job has been cancelled."""
RELEASE_PATIENCE = 10.0
"""Seconds that a job of ours may take to end by itself, with its agents; then it is cancelled."""


@dataclass
class Allocation:
    """Nodes of a job."""

    scheduler: Scheduler
    nodes: Nodes
    command: Command
    """What starts, or has started to start, the agents there."""
    folder: str
    """With the files of the command; there is none where these are none."""
    holder: subprocess.Popen[bytes] | None = None
    """The command, where it has asked for the nodes: it gives them back when the agents have ended."""
    said: bytes = b""
    """What it has said on its stderr."""
    ends_at: float | None = None
    """When the job's time limit passes, by ``time.monotonic``."""
    _left: float = 0.0
    _cancelled: bool = False
    _releasing: threading.Lock = field(default_factory=threading.Lock)

    def look_at_the_clock(self) -> None:
        """Learn when the job's time limit passes, where the scheduler tells."""
        argv = self.scheduler.left_argv(self.nodes.job)
        with suppress(LaunchError):
            left = self.scheduler.left(answer(self.scheduler, argv)) if argv else None
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
        with suppress(OSError):
            subprocess.Popen(
                self.scheduler.cancel_argv(self.nodes.job),
                env=self.scheduler.environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def release(self) -> None:
        """Give back what we asked for, and remove our files; a job of somebody else's making is left alone."""
        with self._releasing:
            holder, self.holder = self.holder, None
            if holder is not None:
                _end(self.scheduler, holder, self.nodes.job, granted=not self._cancelled)
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
    """What ``allocate`` would get, and by what, without asking: nodes have no names then. Raises as it."""
    job = scheduler.job_in(environ)
    if job is None:
        count = request.nodes or 1
        nodes = Nodes("<job>", tuple(f"<node {index + 1} of {count}>" for index in range(count)))
        return nodes, _asking(scheduler, request, launch, environ)
    count = request.nodes or job.size or 1
    of = job.nodes or str(count)
    nodes = Nodes(job.id, tuple(f"<node {index + 1} of {of}>" for index in range(count)))
    of_all = nodes._replace(names=("<its nodes>",) if count > 1 else nodes.names)
    return nodes, scheduler.agents(of_all, launch, request.step, environ)


def allocate(
    scheduler: Scheduler,
    request: AllocationRequest,
    launch: Launch,
    environ: Mapping[str, str],
    tell: Callable[[str], None],
) -> Allocation:
    """The nodes of the job that we are in, or of one that is asked for; ``tell`` says what is waited for.

    Raises:
        LaunchError: there are none; in the scheduler's words, or ours.
    """
    nodes = current(scheduler, environ, request.nodes)
    if nodes is not None:
        command = scheduler.agents(nodes, launch, request.step, environ)
        _write(command, launch.folder)
        return _timed(Allocation(scheduler, nodes, command, launch.folder))
    command = _asking(scheduler, request, launch, environ)
    _write(command, launch.folder)
    try:
        return _timed(_ask(scheduler, command, launch.folder, tell))
    except BaseException:
        shutil.rmtree(launch.folder, ignore_errors=True)
        raise


def _timed(nodes: Allocation) -> Allocation:
    try:
        nodes.look_at_the_clock()
    except BaseException:
        nodes.release()
        raise
    return nodes


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
    base = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "zlaunch", f"launch-{secrets.token_hex(8)}")


def _asking(scheduler: Scheduler, request: AllocationRequest, launch: Launch, environ: Mapping[str, str]) -> Command:
    try:
        return scheduler.hold(request, launch, environ)
    except Refused as refused:
        raise LaunchError(str(refused)) from None


def _write(command: Command, folder: str) -> None:
    if not command.files:
        return
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    os.mkdir(folder, 0o700)
    for name, text in command.files.items():
        with open(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "w") as file:
            file.write(text)


def _ask(scheduler: Scheduler, command: Command, folder: str, tell: Callable[[str], None]) -> Allocation:
    """Ask for nodes and wait until they are there, however long the queue is.

    Raises:
        LaunchError: the scheduler refuses, is not there, or takes the job away again.
        BaseException: what interrupts the wait; the request is given up first.
    """
    try:
        holder = subprocess.Popen(
            command.argv,
            env=scheduler.environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C goes to us, and we give the request up
            bufsize=0,
        )
    except OSError as error:
        raise LaunchError(f"{command.argv[0]} could not be started: {error.strerror}; is this a login node?") from None
    wait = _Wait(scheduler, holder, tell)
    try:
        nodes = wait.until_granted()
        return Allocation(scheduler, nodes, command, folder, holder, bytes(wait.said))
    except BaseException:
        _end(scheduler, holder, wait.job, granted=False)
        raise


class _Wait:
    """For nodes."""

    def __init__(self, scheduler: Scheduler, holder: subprocess.Popen[bytes], tell: Callable[[str], None]) -> None:
        self._scheduler, self._holder, self._tell = scheduler, holder, tell
        self._printed = bytearray()
        self.said = bytearray()
        self._told = ""

    @property
    def job(self) -> str | None:
        """The id of the job that we have asked for, once that is known."""
        return self._scheduler.job_of((self.said + self._printed).decode(errors="replace"))

    def until_granted(self) -> Nodes:
        """Wait."""
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        streams = {self._holder.stdout.fileno(): self._printed, self._holder.stderr.fileno(): self.said}
        ask_at = time.monotonic() + ASK_EVERY
        while (nodes := granted(self._printed.decode(errors="replace"))) is None:
            ready, _, _ = select.select(list(streams), (), (), max(0.0, ask_at - time.monotonic()))
            for fd in ready:
                data = os.read(fd, 65536)
                streams[fd].extend(data)
                if not data:
                    del streams[fd]
            if not streams:
                self._refused()
            if time.monotonic() >= ask_at:
                self._tell_state()
                ask_at = time.monotonic() + ASK_EVERY
        return nodes

    def _refused(self) -> None:
        words = self._scheduler.explain_refusal((self.said + self._printed).decode(errors="replace"))
        name, status = os.path.basename(str(self._holder.args[0])), self._holder.wait()  # type: ignore[index]
        raise LaunchError(f"{self._scheduler.title} gave no nodes ({name} ended with status {status}):\n{words}")

    def _tell_state(self) -> None:
        """Say what the job waits for, where that is news."""
        job = self.job
        if job is None:
            return
        with suppress(LaunchError):
            state = self._scheduler.state(answer(self._scheduler, self._scheduler.state_argv(job)))
            text = f"{self._scheduler.title}'s job {job} is {state}"
            if state and text != self._told:
                self._tell(text)
                self._told = text


def answer(scheduler: Scheduler, argv: Sequence[str]) -> str:
    """What a command of the scheduler's prints. Raises LaunchError."""
    try:
        done = subprocess.run(
            argv,
            env=scheduler.environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_PATIENCE,
            check=False,
        )
    except OSError as error:
        raise LaunchError(f"{argv[0]} could not be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"{argv[0]} has not answered for {ANSWER_PATIENCE:g} s: is {scheduler.title}'s controller there?"
        ) from None
    if done.returncode:
        raise LaunchError(f"{argv[0]} ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _end(scheduler: Scheduler, holder: subprocess.Popen[bytes], job: str | None, *, granted: bool) -> None:
    """Let go, and see to it that the scheduler takes back what we have, or had asked for.

    At the end of its stdin a job of ours ends by itself. One that is still in the queue reads nothing: it is cancelled.
    A command that gives nodes back must not be signalled, nor find its stderr closed: it would keep them. One that
    somebody has killed has given nothing back.
    """
    assert holder.stdin is not None
    with suppress(OSError):
        holder.stdin.close()
    if job is None and holder.poll() is None:
        os.killpg(holder.pid, signal.SIGTERM)
    if not (granted and _has_ended(holder, RELEASE_PATIENCE) and holder.returncode >= 0):
        if job is not None:
            with suppress(LaunchError):
                answer(scheduler, scheduler.cancel_argv(job))
        if not _has_ended(holder, MOMENT):
            os.killpg(holder.pid, signal.SIGKILL)
            holder.wait()
    for stream in (holder.stdout, holder.stderr):
        if stream is not None:
            stream.close()


def _has_ended(holder: subprocess.Popen[bytes], patience: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        holder.wait(patience)
    return holder.poll() is not None
