"""Level 5: the state directory: small files of JSON, for their owner alone, in a folder that only the owner can enter.

Homes are shared between login nodes and with the nodes of jobs, so any number of processes on any host may look and
write at once. Nobody locks: a file is written under another name and renamed, so that whoever reads finds it whole.
What cannot be read, or belongs to somebody else, is left aside.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

import msgspec

Entry = TypeVar("Entry", bound=msgspec.Struct)

LATEST = 2e11
"""Seconds since 1970 that a date can be made of."""
_LARGEST = 8 << 20
"""Bytes of a file; a command line may have 2 MiB."""
_ABANDONED = 24 * 3600.0
"""Seconds after which a file that nobody has renamed is taken away."""


def folder() -> str:
    """Where entries lie: below ``$XDG_STATE_HOME``, else ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # then the standard wants it ignored
        state = os.path.expanduser("~/.local/state")
    return os.path.join(state, "zlaunch", "runs")


def prepared() -> str:
    """The folder, made where it was missing. Raises OSError."""
    place = folder()
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(place, 0o700)
    if _check(place) & 0o077:
        os.chmod(place, 0o700)
    return place


def names(kind: str) -> Iterator[str]:
    """The paths of all entries whose names begin so. Raises OSError; PermissionError where it is somebody else's."""
    place = folder()
    try:
        _check(place)
        found = sorted(os.listdir(place))
    except FileNotFoundError:
        return
    for name in found:
        if name.startswith(kind):
            yield os.path.join(place, name)


def write(path: str, entry: msgspec.Struct) -> None:
    """Put an entry there, whole. Raises OSError."""
    # The standard library's json, since paths and arguments need not be UTF-8, and it keeps what is not.
    data = json.dumps(msgspec.to_builtins(entry), indent=1).encode()
    place, name = os.path.split(path)
    beside = os.path.join(place, f".{name}.{os.urandom(6).hex()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data + b"\n")
        os.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def read(path: str, kind: type[Entry]) -> Entry:
    """An entry. Raises OSError, ValueError or RecursionError for what nobody here has written."""
    # Nothing in here is a pipe, but if it were, opening it would wait for ever.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if about.st_uid != os.geteuid() or not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
            raise PermissionError("not a file of ours")
        return msgspec.convert(json.loads(file.read()), type=kind)  # its ValidationError is a ValueError


def sweep(place: str, kind: str) -> None:
    """Take away what was begun to be written, by somebody who was killed then. Raises OSError."""
    before = time.time() - _ABANDONED
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("." + kind) and entry.stat(follow_symlinks=False).st_mtime < before:
                os.unlink(entry.path)


def _check(place: str) -> int:
    """The folder's permissions. Raises PermissionError for one that somebody else could have filled."""
    about = os.stat(place)
    if about.st_uid != os.geteuid():
        raise PermissionError(f"{place} belongs to another user")
    return stat.S_IMODE(about.st_mode)
