"""Level 3: payloads in memory that processes of one host can share, without zmq.

A payload is a memfd: it has no name that could be left behind, it is not bounded by /dev/shm (64 MB in a container),
and its pages can be mapped by whoever is given the descriptor. What is written here is sealed: nobody can shrink it
below a reader's mapping or change it afterwards. A mapping is private: its owner may write, and only it will see that.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence

from ..protocol.envelope import Buffer, pack

_VECTOR = 512
"""Buffers in one writev; the kernel takes 1024."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_NONCE = 32


def write_memfd(frames: Sequence[Buffer], name: str) -> int:
    """A new, sealed memfd with the envelope of ``frames``; its offset is at the start, it closes on exec.

    Raises:
        OSError: there is no memory for it.
    """
    fd = os.memfd_create(f"zlaunch-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write_all(fd, [memoryview(part).cast("B") for part in pack(frames)])
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, parts: list[memoryview]) -> None:
    first = 0
    while first < len(parts):
        written = os.writev(fd, parts[first : first + _VECTOR])
        while first < len(parts) and written >= len(parts[first]):
            written -= len(parts[first])
            first += 1
        if written:
            parts[first] = parts[first][written:]


def map_fd(fd: int, size: int | None = None) -> memoryview:
    """The content of a memfd (or its first ``size`` bytes) as writable memory that is private to this process.

    Nothing is copied until it is written to. The mapping lives as long as a view of it; ``fd`` may be closed at once.

    Raises:
        ValueError: the file is shorter than ``size``.
    """
    length = os.fstat(fd).st_size
    if size is not None and size > length:
        raise ValueError(f"{size} bytes were promised, {length} are there")
    wanted = length if size is None else size
    if wanted == 0:
        return memoryview(bytearray())
    return memoryview(mmap.mmap(fd, wanted, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def empty_memory(size: int) -> memoryview:
    """Writable memory of our own that takes no time to get: the kernel clears each page when it is first written."""
    return memoryview(mmap.mmap(-1, size)) if size else memoryview(bytearray())


def open_shared(pid: int, fd: int) -> int:
    """A descriptor of our own, read-only, for a memfd that another process of this host has open.

    Raises:
        OSError: there is no such process or descriptor, or it is another user's.
    """
    return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class Probe:
    """A memfd that holds a random word: whoever can tell the word shares this host's processes with us.

    Names and addresses do not tell that (containers, pid namespaces); this asks for the very thing that is needed.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.nonce = os.urandom(_NONCE)
        self.fd = os.memfd_create("zlaunch-probe", os.MFD_CLOEXEC)
        os.write(self.fd, self.nonce)

    def close(self) -> None:
        """Close the memfd; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @staticmethod
    def readable(pid: int, fd: int, nonce: bytes) -> bool:
        """Whether the process ``pid`` of this host has the word ``nonce`` in its descriptor ``fd``."""
        try:
            shared = open_shared(pid, fd)
        except OSError:
            return False
        try:
            return len(nonce) > 0 and os.pread(shared, len(nonce) + 1, 0) == nonce
        except OSError:
            return False
        finally:
            os.close(shared)
