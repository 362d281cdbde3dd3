"""Level 4: letters that go out and answers that come in. Bytes are carried here, never opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from ..link.hub import Hub
from ..link.memory import empty_memory, map_fd, open_shared
from ..link.words import Gone
from ..protocol import messages as m
from ..protocol.frames import ATTACH_LIMIT


@dataclass
class Answer:
    """What a rank gave: ``data`` is the envelope of a pickled value or exception, ``None`` where there is none."""

    kind: str
    data: memoryview | None


@dataclass
class Letters:
    """The letters of runs that have not ended, each in a memfd.

    A run has one, or two: hosts that inherit our whole environment read another than those that must not.
    """

    hub: Hub
    shares: dict[int, bool] = field(default_factory=dict)
    """Hosts whose agents can open our memfds."""
    fds: dict[str, Mapping[int, int]] = field(default_factory=dict)
    """By run and host index."""
    views: dict[int, memoryview] = field(default_factory=dict)
    """By descriptor."""
    next_id: int = 1

    def add(self, run: str, fds: Mapping[int, int]) -> None:
        """Keep a run's letters, by host index; the descriptors are owned from now on."""
        self.fds[run] = fds

    def address(self, run: str, host: int) -> tuple[m.Payload, memoryview | bytes | None, memoryview | None]:
        """How a letter goes to a host: what to say, what to attach to it, and what to send in pieces."""
        fd = self.fds[run][host]
        size = os.fstat(fd).st_size
        if size <= ATTACH_LIMIT:
            return m.Attached(size), os.pread(fd, size, 0), None
        payload_id, self.next_id = self.next_id, self.next_id + 1
        if self.shares.get(host):
            return m.Shared(payload_id, os.getpid(), fd, size), None, None
        if fd not in self.views:
            self.views[fd] = map_fd(fd, size)  # one mapping for all hosts
        return m.Pieces(payload_id, size), None, self.views[fd]

    def drop(self, run: str) -> None:
        """A run has ended."""
        for fd in set(self.fds.pop(run, {}).values()):
            self.views.pop(fd, None)
            os.close(fd)

    def close(self) -> None:
        """Drop them all."""
        for run in list(self.fds):
            self.drop(run)


@dataclass
class _Coming:
    run: str
    attempt: int
    rank: int
    memory: memoryview
    received: int = 0


@dataclass
class Replies:
    """The answers of runs that have not ended."""

    hub: Hub
    attempts: dict[str, int] = field(default_factory=dict)
    answers: dict[str, dict[int, Answer]] = field(default_factory=dict)
    coming: dict[tuple[int, int], _Coming] = field(default_factory=dict)

    def expect(self, run: str, attempt: int) -> None:
        """An attempt starts: the answers of an earlier one count no more."""
        if self.attempts.get(run) != attempt:
            self.attempts[run] = attempt
            self.answers[run] = {}

    def take(self, host: int, message: m.Answered, attached: memoryview | bytes | None) -> bool:
        """Keep an answer; True while its payload is still on its way. Raises OSError where it can't be had."""
        if self.attempts.get(message.step) != message.attempt:
            return False
        match message.payload:
            case None:
                data = None
            case m.Attached():
                data = memoryview(bytearray(attached or b""))
            case m.Shared() as shared:
                data = self._open(host, shared)
            case m.Pieces() as pieces:
                data = empty_memory(pieces.size)
                coming = _Coming(message.step, message.attempt, message.rank, data)
                self.coming[host, pieces.id] = coming
        self.answers[message.step][message.rank] = Answer(message.kind, data)
        return isinstance(message.payload, m.Pieces)

    def _open(self, host: int, shared: m.Shared) -> memoryview:
        fd = open_shared(shared.pid, shared.fd)
        try:
            return map_fd(fd, shared.size)
        finally:
            os.close(fd)
            with suppress(Gone):  # so is what it held
                self.hub.send(host, m.Release(shared.id))

    def piece(self, host: int, payload_id: int, offset: int, data: memoryview) -> tuple[str, int] | None:
        """A piece came; run and rank when it was the last one."""
        coming = self.coming.get((host, payload_id))
        if coming is None or offset != coming.received or offset + len(data) > len(coming.memory):
            return None
        coming.memory[offset : offset + len(data)] = data
        coming.received += len(data)
        if coming.received < len(coming.memory):
            return None
        del self.coming[host, payload_id]
        return (coming.run, coming.rank) if self.attempts.get(coming.run) == coming.attempt else None

    def collect(self, run: str) -> dict[int, Answer]:
        """All answers of a run that has ended, by rank; they are the caller's now."""
        self.attempts.pop(run, None)
        return self.answers.pop(run, {})
