"""The Linux calls that Python 3.11 has no words for: namespaces and mounts (unshare(2), setns(2), mount(2)).

Imported by the bed and by the two programs that it starts, so nothing but the standard library is needed here.
"""

from __future__ import annotations

import ctypes
import os
import threading

NEW_MOUNTS, NEW_NAMES, NEW_IPC, NEW_PIDS, NEW_NET = 0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(kinds: int) -> None:
    """This thread's own new namespaces of these kinds."""
    _check(_libc.unshare(kinds), "unshare")


def enter(namespace: int) -> None:
    """This thread goes into the network namespace that the descriptor names."""
    _check(_libc.setns(namespace, NEW_NET), "setns")


def mount(source: str, target: str, kind: str = "none", flags: int = 0, data: str = "") -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()),
        f"mount {kind} {source} on {target}",
    )


def new_net() -> int:
    """A descriptor of a new network namespace, which lives for as long as somebody holds one.

    It is made by a thread that then ends: namespaces are a thread's, so nobody else has left theirs.
    """
    made: list[int | OSError] = []

    def make() -> None:
        try:
            unshare(NEW_NET)
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]
