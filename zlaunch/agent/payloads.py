"""Level 4: letters that come in and answers that go out. Bytes are carried here, never opened."""

from __future__ import annotations

import os

from msgspec import Struct, field

from ..link.memory import map_fd, open_shared
from ..link.spoke import Spoke
from ..protocol import messages as m
from ..protocol.frames import ATTACH_LIMIT

Key = tuple[str, int]


class Incoming(Struct):
    """A letter that comes in pieces."""

    key: Key
    fd: int
    size: int
    received: int = 0


class Payloads(Struct):
    """The memfds that an agent holds for others."""

    spoke: Spoke
    shares_memory: bool = False
    letters: dict[Key, int] = field(default_factory=dict)
    incoming: dict[int, Incoming] = field(default_factory=dict)
    shared: dict[int, int] = field(default_factory=dict)
    next_id: int = 1

    def fetch(self, key: Key, payload: m.Payload, attached: memoryview | bytes | None) -> bool:
        """Bring a letter into a memfd; True when it is here already. Raises OSError or ValueError."""
        match payload:
            case m.Attached():
                if attached is None or len(attached) != payload.size:
                    raise ValueError("a letter was announced and not attached")
                fd = os.memfd_create("zlaunch-letter", os.MFD_CLOEXEC)
                self.letters[key] = fd
                _write_all(fd, memoryview(attached), 0)
                return True
            case m.Shared():
                self.letters[key] = open_shared(payload.pid, payload.fd)
                self.spoke.send(m.Release(payload.id))
                return True
            case m.Pieces():
                fd = os.memfd_create("zlaunch-letter", os.MFD_CLOEXEC)
                self.letters[key] = fd
                self.incoming[payload.id] = Incoming(key, fd, payload.size)
                return payload.size == 0

    def piece(self, payload_id: int, offset: int, data: memoryview) -> Key | None:
        """A piece came; the letter's key when it was the last one."""
        letter = self.incoming.get(payload_id)
        if letter is None or offset != letter.received or offset + len(data) > letter.size:
            return None
        _write_all(letter.fd, data, offset)
        letter.received += len(data)
        if letter.received < letter.size:
            return None
        del self.incoming[payload_id]
        return letter.key

    def outgoing(self, fd: int, size: int) -> tuple[m.Payload | None, memoryview | None]:
        """How an answer of ``size`` bytes in memfd ``fd`` (owned from now on) will travel, and what to attach."""
        if fd < 0:
            return None, None
        payload_id, self.next_id = self.next_id, self.next_id + 1
        if size <= ATTACH_LIMIT:
            view = memoryview(os.pread(fd, size, 0))
            os.close(fd)
            return m.Attached(size), view
        if self.shares_memory:
            self.shared[payload_id] = fd
            return m.Shared(payload_id, os.getpid(), fd, size), None
        view = map_fd(fd, size)
        os.close(fd)
        return m.Pieces(payload_id, size), view

    def release(self, payload_id: int) -> None:
        """The supervisor has read a shared answer."""
        fd = self.shared.pop(payload_id, -1)
        if fd >= 0:
            os.close(fd)

    def drop_letter(self, key: Key) -> None:
        """A step is over."""
        fd = self.letters.pop(key, -1)
        if fd >= 0:
            os.close(fd)
        for payload_id in [i for i, letter in self.incoming.items() if letter.key == key]:
            del self.incoming[payload_id]


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
