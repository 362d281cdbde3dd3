"""Level 5: the nodes that a scheduler gives: of the job that we are in, or of one that we ask for, and wait for."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from .backends import slurm
from .errors import LaunchError
from .model import AllocationRequest, HostPlan

ASK_EVERY = 2.0
"""Seconds between looks at a job that waits in the queue."""
ANSWER_PATIENCE = 30.0
"""Seconds that a scheduler's command may take; a controller that is away answers after 10 or so."""
RELEASE_PATIENCE = 10.0


@dataclass
class Allocation:
    """Nodes of a job."""

    job: str
    names: tuple[str, ...]
    holder: subprocess.Popen[bytes] | None = None
    """What gives the nodes back when its stdin ends; ``None`` for the job that we are in."""

    def places(self) -> tuple[HostPlan, ...]:
        """The nodes as hosts, with their ranks still to be counted."""
        return tuple(HostPlan(index, name, 0, here=False) for index, name in enumerate(self.names))

    def release(self) -> None:
        """Give back what we asked for; does nothing within a job of somebody else's making."""
        holder, self.holder = self.holder, None
        if holder is not None and not _end(holder):
            with suppress(LaunchError):
                _answer(slurm.cancel_argv(self.job))


def is_wanted(hostnames: object, environ: Mapping[str, str]) -> bool:
    """Whether the hosts are a scheduler's: because that was said, or because we are in one of its jobs."""
    return hostnames == "slurm" or (hostnames == "auto" and slurm.job_in(environ) is not None)


def job_to_show(environ: Mapping[str, str]) -> str:
    """The id of the job that we are in, or a word for that of the one that would be asked for."""
    found = slurm.job_in(environ)
    return found.id if found else "<job>"


def nameless(request: AllocationRequest, environ: Mapping[str, str]) -> tuple[HostPlan, ...]:
    """A scheduler's nodes, to be shown, without asking it: those of the job that we are in have no names yet either."""
    found = slurm.job_in(environ)
    nodes = request.nodes or (found.size if found else 0) or 1
    of = found.nodes if found else str(nodes)
    return tuple(HostPlan(index, f"<node {index + 1} of {of}>", 0, here=False) for index in range(nodes))


def current(environ: Mapping[str, str], nodes: int | None = None) -> Allocation | None:
    """The job that we are in, or its first ``nodes`` nodes; ``None`` outside of one. Raises LaunchError."""
    found = slurm.job_in(environ)
    if found is None:
        return None
    names = tuple(_answer(slurm.names_argv(found.nodes)).split())
    if not names:
        raise LaunchError(f"Slurm names no hosts in {found.nodes!r}")
    if nodes is not None and nodes > len(names):
        raise LaunchError(f"{nodes} nodes are wanted, and Slurm's job {found.id} has {len(names)}: {found.nodes}")
    return Allocation(found.id, names[:nodes])


def ask(request: AllocationRequest, tell: Callable[[str], None]) -> Allocation:
    """Ask for nodes and wait until they are there, however long the queue is; ``tell`` says what is waited for.

    Raises:
        LaunchError: Slurm refuses, is not there, or takes the job away again.
        BaseException: what interrupts the wait; the request is given up first.
    """
    argv = slurm.allocate_argv(request)
    try:
        holder = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C goes to us, and we give the request up
            bufsize=0,
        )
    except OSError as error:
        raise LaunchError(f"{argv[0]} could not be started: {error.strerror}; is this a login node?") from None
    try:
        job, written = _wait(holder, tell)
        return Allocation(job, tuple(_answer(slurm.names_argv(written)).split()), holder)
    except BaseException:
        _end(holder)
        raise


def _wait(holder: subprocess.Popen[bytes], tell: Callable[[str], None]) -> tuple[str, str]:
    assert holder.stdout is not None
    assert holder.stderr is not None
    granted, said, told = b"", b"", ""
    streams = {holder.stdout.fileno(), holder.stderr.fileno()}
    ask_at = time.monotonic() + ASK_EVERY
    while not granted.endswith(b"\n"):
        ready, _, _ = select.select(streams, (), (), max(0.0, ask_at - time.monotonic()))
        for fd in ready:
            data = os.read(fd, 65536)
            if fd == holder.stdout.fileno():
                granted += data
            else:
                said += data
            if not data:
                streams.discard(fd)
        if not streams:
            words = said.decode(errors="replace").strip()
            raise LaunchError(f"Slurm gave no nodes (salloc ended with status {holder.wait()}):\n{words}")
        if time.monotonic() >= ask_at:
            ask_at = time.monotonic() + ASK_EVERY
            told = _tell_state(said, told, tell)
    job, _, written = granted.decode().strip().partition(" ")
    return job, written


def _tell_state(said: bytes, told: str, tell: Callable[[str], None]) -> str:
    """Say what the job waits for, where that is news."""
    words = pairwise(said.decode(errors="replace").split())
    jobs = [after for word, after in words if word == "allocation" and after.isdecimal()]
    if not jobs:
        return told
    with suppress(LaunchError):
        state = _answer(slurm.state_argv(jobs[-1])).strip()
        if state and state != told:
            tell(f"Slurm's job {jobs[-1]} is {state}")
            return state
    return told


def _answer(argv: tuple[str, ...]) -> str:
    """What a command of the scheduler's prints. Raises LaunchError."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ANSWER_PATIENCE, check=False)
    except OSError as error:
        raise LaunchError(f"{argv[0]} could not be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"{argv[0]} has not answered for {ANSWER_PATIENCE:g} s: is Slurm's controller there?"
        ) from None
    if done.returncode:
        raise LaunchError(f"{argv[0]} ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _end(holder: subprocess.Popen[bytes]) -> bool:
    """Let go; False where salloc did not end by itself, and perhaps has given nothing back."""
    assert holder.stdin is not None
    granted = _is_granted(holder)
    with suppress(OSError):
        holder.stdin.close()
    if not granted and holder.poll() is None:
        holder.terminate()  # still in the queue: nobody reads its stdin. While it gives back, a signal would hang it
    with suppress(subprocess.TimeoutExpired):
        holder.wait(RELEASE_PATIENCE)
    ended = holder.poll() is not None
    if not ended:
        holder.kill()
        holder.wait()
    for stream in (holder.stdout, holder.stderr):
        if stream is not None:
            stream.close()
    return ended


def _is_granted(holder: subprocess.Popen[bytes]) -> bool:
    """Whether its command runs: then it ends with its stdin."""
    with suppress(OSError), open(f"/proc/{holder.pid}/task/{holder.pid}/children") as children:
        return bool(children.read().strip())
    return False
