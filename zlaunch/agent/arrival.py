"""Level 4: an agent's way home: it connects and says Hello. Little is loaded for that, so that little is waited for."""

from __future__ import annotations

import os
import signal
import time

import msgspec

from ..link.spoke import Spoke, SpokeEvent
from ..link.words import Invitation
from ..protocol.bootstrap import Bootstrap
from ..protocol.messages import Hello
from ..systems.detect import facts
from ..systems.sockets import remove_dead_sockets


class Arrival:
    """What an agent has before it has its loop: its end of the wire, and the signals that it is sent."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self.bootstrap = bootstrap
        self.signals = signal_pipe()
        self.hostname, invitation = bootstrap.place(_own_names())
        self.invitation = msgspec.json.decode(invitation, type=Invitation)
        self.spoke = Spoke(self.invitation)
        self.heard: list[SpokeEvent] = []
        """What the supervisor said before there was a loop to hear it."""
        self._ends = [self.signals, *([0] if bootstrap.stdin_is_link else [])]

    def greet(self) -> None:
        """Connect, and say who we are. Raises LinkError where there is no way to the supervisor, or no reason to go on.

        What ends the wait (a signal, the end of stdin) stays readable, for the loop.
        """
        bootstrap = self.bootstrap
        came_from = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
        self.spoke.connect(bootstrap.connect_timeout, came_from, give_up=self._ends)
        self.spoke.send(Hello(facts(bootstrap.folders), time.monotonic(), self.spoke.way))

    def wait(self) -> None:
        """Until the supervisor says something, which it does when all have come, or this agent is to end.

        Time to look for the sockets of tunnels whose agents never came: their interpreter was missing, or they were
        hung up on.
        """
        if tunnel := self.invitation.tunnel:
            folder, _, name = tunnel[0].removeprefix("ipc://").rpartition("/")
            remove_dead_sockets(folder, name.partition("-")[0] + "-")
        self.heard, _ = self.spoke.poll(None, self._ends)


ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that tell an agent to end."""


def signal_pipe() -> int:
    """SIGTERM and SIGHUP arrive as bytes; SIGINT is for the people in front, and a scheduler's warnings for zlaunch."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    os.set_blocking(read_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (*ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return read_end


def _own_names() -> list[str]:
    """What this host may be called by whoever starts many at once: by Slurm, and by itself."""
    own = os.uname().nodename
    return [name for name in (os.environ.get("SLURMD_NODENAME"), own, own.partition(".")[0]) if name]
