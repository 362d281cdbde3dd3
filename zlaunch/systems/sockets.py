"""Level 2: sockets in a folder that nobody listens on any more. sshd makes one for a tunnel, and never removes it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress


def remove_dead_sockets(folder: str, begins: str) -> list[str]:
    """Remove our own sockets in ``folder`` whose names begin so and that refuse a connection; returns what was removed.

    Whoever listens on one that is left sees a connection that ends at once.
    """
    removed = []
    for path in _sockets(folder, begins):
        import socket  # an agent that finds none does without it

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                with suppress(OSError):
                    os.unlink(path)
                    removed.append(path)
            except OSError:
                continue
    return removed


def _sockets(folder: str, begins: str) -> list[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.name.startswith(begins) and _is_ours(entry)]
    return []


def _is_ours(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        facts = entry.stat(follow_symlinks=False)
        return stat.S_ISSOCK(facts.st_mode) and facts.st_uid == os.getuid()
    return False
