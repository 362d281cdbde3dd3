"""Level 4: ranks on their way to being processes: asked of the template, a few at a time, each with its pipes."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress

from ..link.local import answer_end, pair
from ..protocol import local
from . import effects as do
from .callers import Callers
from .payloads import Payloads
from .processes import RankProcess, TemplateProcess
from .pump import Pump

Key = tuple[str, int]

AT_ONCE = 32
"""Forks that the template has been asked for and has not told of: more would fill the sockets of both, each waiting."""


class Forks:
    """What the template has still to be asked for, and what it has not told of yet."""

    def __init__(self, pump: Pump, payloads: Payloads, callers: Callers) -> None:
        self._pump, self._payloads, self._callers = pump, payloads, callers
        self._waiting: deque[do.Fork] = deque()
        self._unborn = 0
        self.ranks: dict[tuple[Key, int], RankProcess] = {}
        """What has been asked for, and has not been swept away."""

    def want(self, effect: do.Fork, template: TemplateProcess | None) -> None:
        """Have a rank forked, as soon as it is its turn."""
        self._waiting.append(effect)
        self._send(template)

    def born(self, template: TemplateProcess | None) -> None:
        """The template has told of a fork, or that there was none."""
        self._unborn = max(0, self._unborn - 1)
        self._send(template)

    def forget(self) -> None:
        """The template is gone, and what it was asked for with it."""
        self._waiting.clear()
        self._unborn = 0

    def close(self, key: Key) -> None:
        """Nothing of this step is alive: let go of what we held of its ranks."""
        for place in [place for place in self.ranks if place[0] == key]:
            self.ranks.pop(place).close()

    def _send(self, template: TemplateProcess | None) -> None:
        while self._waiting and template and self._unborn < AT_ONCE:
            self._unborn += 1
            self._fork(self._waiting.popleft(), template)

    def _fork(self, effect: do.Fork, template: TemplateProcess) -> None:
        key, seat = effect.key, effect.seat
        ours, theirs = pair()
        out = self._pump.open(key[0], seat.rank, "out", seat.world_size)
        err = self._pump.open(key[0], seat.rank, "err", seat.world_size)
        self.ranks[key, seat.rank] = RankProcess(key, seat.rank, answer_end(ours))
        calling, line = self._callers.of(key, seat.rank)
        fds = (self._payloads.letters[key], out, err, theirs.fileno(), *line)
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead: its end-of-file will say so
            template.wire.send(local.Fork(key[0], key[1], seat, dict(calling)), fds)
        theirs.close()
        os.close(out)
        os.close(err)
