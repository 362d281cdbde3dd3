"""Level 4, worker: the fork template, a process with one thread that imports once and then forks ranks.

The agent starts it with one end of a SEQPACKET socketpair, whose number is ``argv[1]``, and in the environment and the
directory of the ranks. It hears ``Prepare``, says ``Ready`` or ``Broken``, and then forks a rank for every ``Fork``,
reaps whatever dies below it, and ends with everything that is below it when the agent's end of the socket closes.

Signals that ask to end mean the ranks, never the template: they are ignored here, and blocked around a fork, so that
one which comes before a new rank has put its own house in order is not lost.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

from msgspec import DecodeError

from ..link.local import Wire, template_end
from ..model import StartMethod
from ..protocol.local import Broken, Exited, Fork, Forked, Prepare, Ready, ToTemplate
from ..systems.processes import become_subreaper, kill_all
from . import linux
from .host import Host
from .rank import Place, become_rank
from .traces import ASKING
from .warm import Warmth, warm_up

_LONGEST_TEXT = 100_000
"""Characters of a traceback that fit into one message for sure."""
_NOT_FORKED = 125 << 8
"""The wait status of a rank that could not be forked."""


def main() -> NoReturn:
    """Run a template until its agent is gone."""
    agent = os.getppid()
    wire = template_end(socket.socket(fileno=int(sys.argv[1])))
    os.set_inheritable(wire.fileno(), False)
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    become_subreaper()
    linux.die_with_parent(agent)
    if heard := wire.receive():
        match heard[0]:
            case Prepare() as prepare:
                _Template(wire, Host(linux.environment_of(agent), tuple(sys.path))).live(prepare)
            case Fork():
                wire.send(Broken("the first message to a fork template must be Prepare"))
    os._exit(0)


class _Template:
    def __init__(self, wire: Wire[ToTemplate], host: Host) -> None:
        self._wire = wire
        self._host = host
        self._ranks: dict[int, Fork] = {}
        self._meeting = -1
        self._met = ("", 0)
        self._method: StartMethod = "fork"
        self._warmth = Warmth()
        self._keep: frozenset[int] = frozenset()
        """Descriptors that preloaded modules have opened: they are the ranks' too."""
        self._idle_work: Iterator[None] | None = None

    def live(self, prepare: Prepare) -> None:
        if not self._prepare(prepare):
            return
        # From here on, the end of the agent is seen on the socket, and what is below us can be ended first.
        linux.outlive_parent()
        deaths = _watch_children()
        poll = select.poll()
        poll.register(self._wire.fileno(), select.POLLIN)
        poll.register(deaths, select.POLLIN)
        with suppress(BrokenPipeError, ConnectionResetError, DecodeError):  # the agent is gone, or mad: all one
            self._serve(poll, deaths)
        kill_all(os.getpid())

    def _prepare(self, prepare: Prepare) -> bool:
        began = time.monotonic()
        if prepare.sys_path:
            sys.path[:] = self._host.search_path(prepare.sys_path, prepare.inherit)
        self._method = prepare.start_method
        own = set(linux.open_descriptors())
        try:
            if self._method == "fork":
                self._warmth = warm_up(prepare.preload)
        except BaseException:
            self._wire.send(Broken(traceback.format_exc()[-_LONGEST_TEXT:]))
            return False
        note = self._warmth.note
        if note:
            self._method = "spawn"
            note = f"ranks are started as new interpreters, since {note}"
        self._keep = frozenset(linux.open_descriptors()) - own
        self._wire.send(Ready(seconds=time.monotonic() - began, start_method=self._method, note=note))
        return True

    def _serve(self, poll: select.poll, deaths: int) -> None:
        if self._method == "fork":
            self._idle_work = linux.collapse_memory()
        while True:
            idle = self._idle_work is not None and not self._ranks
            ready = {fd for fd, _ in poll.poll(0 if idle else None)}
            if idle and not ready:
                self._work_while_idle()
            if deaths in ready:
                with suppress(BlockingIOError):
                    os.read(deaths, 4096)
                self._reap()
            if self._wire.fileno() in ready:
                heard = self._wire.receive()
                if heard is None:
                    return
                message, fds = heard
                if isinstance(message, Fork):
                    self._fork(message, fds)
                for fd in fds:
                    os.close(fd)

    def _work_while_idle(self) -> None:
        if self._idle_work is not None and next(self._idle_work, self) is self:
            self._idle_work = None

    def _fork(self, fork: Fork, fds: list[int]) -> None:
        letter, out, err, answer, *line = fds
        meeting = self._meeting_of(fork)
        place = Place(
            fork.seat,
            letter,
            out,
            err,
            answer,
            meeting,
            os.getpid(),
            self._host,
            self._keep,
            fork.calling,
            line[0] if line else -1,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        try:
            pid = os.fork()
            if pid == 0:
                become_rank(place, self._method, self._warmth)  # never comes back
        except OSError as error:
            with suppress(OSError):
                os.write(err, f"zlaunch: no process for rank {fork.seat.rank}: {error}\n".encode())
            self._wire.send(Exited(fork.step, fork.attempt, fork.seat.rank, 0, _NOT_FORKED))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        self._ranks[pid] = fork
        pidfd = os.pidfd_open(pid)  # it cannot be another process: only we reap
        self._wire.send(Forked(fork.step, fork.attempt, fork.seat.rank, pid), [pidfd])
        os.close(pidfd)

    def _meeting_of(self, fork: Fork) -> int:
        """The memfd in which the ranks of a step on this host find each other; see ``group``."""
        if self._met != (fork.step, fork.attempt):
            if self._meeting >= 0:
                os.close(self._meeting)
            self._met = (fork.step, fork.attempt)
            self._meeting = os.memfd_create("zlaunch-meeting", os.MFD_CLOEXEC)
        return self._meeting

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            fork = self._ranks.pop(pid, None)
            if fork is not None:  # else an orphan that we adopted
                self._wire.send(Exited(fork.step, fork.attempt, fork.seat.rank, pid, status))


def _watch_children() -> int:
    """A descriptor that is readable when a child may have ended."""
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    return ours


if __name__ == "__main__":
    # As ``python -m``: the module of this name is the one that others import, not this copy called __main__.
    from zlaunch.worker.template import main as _main

    _main()
