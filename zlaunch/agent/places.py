"""Level 4: what an agent keeps for steps that have not started: rank 0's port, and the way of the hosts to it."""

from __future__ import annotations

import os
import socket

from . import effects as do
from . import happenings as on
from .reach import MeetingHost, Seeker

Key = tuple[str, int]


class Places:
    """Ports, meeting points and seekers, by step."""

    def __init__(self) -> None:
        self._ports: dict[Key, socket.socket] = {}
        self._meetings: dict[Key, MeetingHost] = {}
        self._seekers: dict[Key, Seeker] = {}

    def carry_out(self, effect: do.KeepPort | do.Seek | do.EndMeeting | do.FreePort) -> on.PortKept | None:
        """What the core wants of us. Raises OSError where there is no port to be had."""
        match effect:
            case do.KeepPort(key, meet):
                return self._keep(key, meet)
            case do.Seek(key, point):
                self._seekers[key] = Seeker(point)
            case do.EndMeeting(key):
                self._end_meeting(key)
            case do.FreePort(key):
                self._end_meeting(key)
                if kept := self._ports.pop(key, None):
                    kept.close()
        return None

    def _keep(self, key: Key, meet: bool) -> on.PortKept:
        kept = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("", 0))  # never listens: nobody else is given the port, and rank 0's TCPStore can still bind it
        self._ports[key] = kept
        point = None
        if meet:
            meeting = self._meetings[key] = MeetingHost()
            point = meeting.open(prefer=_came_to())
        return on.PortKept(key, kept.getsockname()[1], point)

    def _end_meeting(self, key: Key) -> None:
        if meeting := self._meetings.pop(key, None):
            meeting.close()
        if seeker := self._seekers.pop(key, None):
            seeker.close()

    def _all(self) -> list[MeetingHost | Seeker]:
        return [*self._meetings.values(), *self._seekers.values()]

    def fds(self) -> list[int]:
        """What to wait for."""
        return [fd for place in self._all() for fd in place.fds]

    def deadline(self) -> float | None:
        """When to ask ``sought`` at the latest."""
        return min((seeker.deadline for seeker in self._seekers.values()), default=None)

    def ready(self, fd: int) -> bool:
        """One of ``fds`` is readable; False where it is none of ours."""
        for place in self._all():
            if fd in place.fds:
                place.ready(fd)
                return True
        return False

    def sought(self) -> list[on.Sought]:
        """What was found by those who have tried everything."""
        found = [(key, seeker.done) for key, seeker in self._seekers.items()]
        done = [on.Sought(key, result.ways, result.tried) for key, result in found if result is not None]
        for sought in done:
            del self._seekers[sought.key]
        return done


def _came_to() -> str:
    """The address at which ssh reached this host; empty where it did not."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else ""
