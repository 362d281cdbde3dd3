"""Level 4, worker: what Linux gives for keeping hold of processes. Knows nothing of steps."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
"""Loaded once, before anything is forked."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_IOLBF = 1
_MORE_OUT_OF_MEMORY_SCORE = 100
"""Of 1,000: where memory runs out, the kernel should rather take a rank than the agent or somebody's shell."""
_UNSHAREABLE = {
    "socket:": "a socket",
    "anon_inode:[eventpoll]": "an event loop",
    "anon_inode:[io_uring]": "an io_uring",
    "anon_inode:[signalfd]": "a signalfd",
    "anon_inode:[userfaultfd]": "a userfaultfd",
}
"""Of two processes that wait on one of these either may take what was meant for the other."""
_MADV_COLLAPSE = 25
_HUGE = 2 * 1024 * 1024


def die_with_parent(parent: int) -> None:
    """SIGKILL when the thread that forked this process ends; at once, if the process ``parent`` is gone already."""
    LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def outlive_parent() -> None:
    """Undo ``die_with_parent``."""
    LIBC.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started in; empty where that may not be read."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in entries if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def be_first_out_of_memory() -> None:
    """Raise this process's badness a bit. That needs no privilege; where it fails, nothing is lost."""
    with suppress(OSError, ValueError):
        path = Path("/proc/self/oom_score_adj")
        path.write_text(str(min(1000, int(path.read_text()) + _MORE_OUT_OF_MEMORY_SCORE)))


def count_threads() -> int:
    """Threads of this process, native ones too."""
    return len(os.listdir("/proc/self/task"))


@contextmanager
def no_name_servers(address: str) -> Iterator[None]:
    """Within this, the C library answers questions for hosts from /etc/hosts alone, in all threads.

    Only where ``address`` is one, and no name that must be looked up; and with glibc from 2.34 on, whose lookups do not
    remember whom they asked before. There is no other way to keep native code from asking for names that it only logs.
    """
    configure = getattr(LIBC, "__nss_configure_lookup", None)
    if configure is None or not _is_address(address) or not _forgets_its_sources():
        yield
        return
    configure(b"hosts", b"files")
    try:
        yield
    finally:
        configure(b"hosts", _sources_of_hosts())


def _is_address(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return False
    return True


def _forgets_its_sources() -> bool:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor = version.split(".")[:2]
        return name == "glibc" and (int(major), int(minor)) >= (2, 34)
    except (OSError, ValueError):
        return False


def _sources_of_hosts() -> bytes:
    """Where hosts are looked up on this machine (nsswitch.conf(5)), or what glibc does where it isn't told."""
    with suppress(OSError):
        for line in Path("/etc/nsswitch.conf").read_bytes().splitlines():
            database, _, sources = line.partition(b"#")[0].partition(b":")
            if database.strip() == b"hosts" and sources.strip():
                return sources.strip()
    return b"files dns"


def open_descriptors() -> list[int]:
    """The open descriptors of this process."""
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    return [fd for fd in numbers if _is_open(fd)]


def _is_open(fd: int) -> bool:  # listing the folder has itself taken a descriptor
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def open_gpu_devices() -> list[str]:
    """GPU device files that this process has open: with one, it must not be forked."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri/render")):
                found.add(target)
    return sorted(found)


def unshareable(own: frozenset[int]) -> list[str]:
    """What this process has open, but for ``own``, that must not be used by several: kinds of it, in words."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            words = next((words for kind, words in _UNSHAREABLE.items() if target.startswith(kind)), "")
            if words and int(fd) not in own:
                found.add(words)
    return sorted(found)


def collapse_memory() -> Iterator[None]:
    """Put this process's own memory into huge pages, 2 MiB with every step of the iterator.

    A fork copies the table of pages, and a process that has imported torch has 37,000 of them: that is most of what a
    rank costs (seen: 7 ms of kernel time for a fork and 11 ms in the child, 1.3 and 5 ms afterwards). Each step takes
    some milliseconds, so it is work for idle moments. Kernels before 6.1 refuse it, which ends the iterator.
    """
    madvise = LIBC.madvise
    madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    done = refused = 0
    for first, last in _own_memory():
        start = -(-first // _HUGE) * _HUGE
        for address in range(start, last - _HUGE + 1, _HUGE):
            if madvise(address, _HUGE, _MADV_COLLAPSE) == 0:
                done += 1
            else:
                refused += 1
            if refused > 4 and not done:
                return
            yield


def _own_memory() -> list[tuple[int, int]]:
    regions = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, _, _, _, *name = line.split(maxsplit=5)
        if mode == "rw-p" and (not name or name[0].strip() == "[heap]"):
            first, last = span.split("-")
            regions.append((int(first, 16), int(last, 16)))
    return regions


def line_buffer_c_stdout() -> None:
    """Have C's stdout, of which nothing has been used yet, write whole lines although it is a pipe."""
    with suppress(ValueError):
        LIBC.setvbuf(ctypes.c_void_p.in_dll(LIBC, "stdout"), None, _IOLBF, 0)


def flush_c_streams() -> None:
    """Write out what C's streams hold."""
    LIBC.fflush(None)
