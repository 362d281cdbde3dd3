"""Level 4, view: the files that output is kept in. Only the desk's thread writes here.

A file is opened when there is something to write, and of very many only the last used stay open. What a
full disk refuses is counted and said once per file; everything else goes on.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ..events import Notice, Output, RankEnded, Record, RunStarted
from ..failure import what
from ..model import StreamName
from .text import format_notice, format_record

OPEN_LIMIT = 256
"""Files that are open at once; well below the usual limit of 1,024 descriptors."""
SAID_LIMIT = 8
"""Files whose trouble is told one by one."""


@dataclass(eq=False)
class LogFile:
    """One file and what waits to be written to it."""

    path: str
    pending: list[bytes] = field(default_factory=list)
    refused: int = 0
    reason: str = ""
    unfinished: StreamName | None = None
    """Whose line has no end yet."""
    torn: bool = False
    """Whether the last thing on disk is a line that was cut by a full disk."""


class FileSet:
    """Appends to many files through few descriptors. ``said`` is told of files that fail."""

    def __init__(self, said: Callable[[str], None]) -> None:
        self._said = said
        self._files: dict[str, LogFile] = {}
        self._open: OrderedDict[str, int] = OrderedDict()
        self._dirty: dict[str, LogFile] = {}
        self._told = 0

    def get(self, path: str) -> LogFile:
        """The file at an absolute path; one object for all who write there."""
        return self._files.setdefault(path, LogFile(path))

    def add(self, file: LogFile, data: bytes) -> None:
        """Puts ``data`` behind what is there; written by ``flush``."""
        file.pending.append(data)
        self._dirty[file.path] = file

    def create(self, file: LogFile, *, empty: bool = False) -> None:
        """Makes the file before there is something to write; ``empty`` cuts off what was there."""
        try:
            fd = self._descriptor(file)
            if empty:
                os.ftruncate(fd, 0)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a pipe or a device has nothing to cut off
                self._refuse(file, 0, error)

    def flush(self) -> None:
        """Writes everything that waits."""
        for file in self._dirty.values():
            data = file.pending[0] if len(file.pending) == 1 else b"".join(file.pending)
            file.pending.clear()
            self._write(file, data)
        self._dirty.clear()

    def refused(self, paths: set[str]) -> tuple[int, int]:
        """How many of these files lack something, and how many bytes in all."""
        lacking = [self._files[path].refused for path in paths if path in self._files]
        return sum(1 for size in lacking if size), sum(lacking)

    def forget(self, paths: set[str]) -> None:
        """Closes files that nobody will write to soon."""
        for path in paths:
            if (fd := self._open.pop(path, None)) is not None:
                os.close(fd)
            self._files.pop(path, None)

    def close(self) -> None:
        """Writes what waits and closes all."""
        self.flush()
        while self._open:
            os.close(self._open.popitem()[1])

    def _write(self, file: LogFile, data: bytes) -> None:
        size = len(data)
        if file.torn:
            data = b"\n" + data
        view = memoryview(data)
        try:
            fd = self._descriptor(file)
            while view:
                view = view[os.write(fd, view) :]
            file.torn = False
        except OSError as error:
            if len(view) < len(data):
                file.torn = data[len(data) - len(view) - 1] != 10
            self._refuse(file, min(len(view), size), error)

    def _descriptor(self, file: LogFile) -> int:
        fd = self._open.get(file.path)
        if fd is not None:
            self._open.move_to_end(file.path)
            return fd
        while len(self._open) >= OPEN_LIMIT:
            os.close(self._open.popitem(last=False)[1])
        try:
            fd = _open(file.path)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._open:
                raise
            while self._open:  # the program itself needs the descriptors: make room, and try once more
                os.close(self._open.popitem(last=False)[1])
            fd = _open(file.path)
        self._open[file.path] = fd
        return fd

    def _refuse(self, file: LogFile, size: int, error: OSError) -> None:
        file.refused += size
        if file.reason:
            return
        file.reason = os.strerror(error.errno or 0)
        self._told += 1
        if self._told <= SAID_LIMIT:
            self._said(f"cannot write {file.path}: {file.reason}; what it refuses is lost, the rest goes on")
        if self._told == SAID_LIMIT:
            self._said("more files that cannot be written are only counted")


def _open(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, flags, 0o666)


class RunFiles:
    """The log files of one run: one per rank, and one per host for what its agent says."""

    def __init__(self, files: FileSet, started: RunStarted, wall: float) -> None:
        self._files = files
        self._wall = wall
        self._at = started.at
        self.directory = started.log_folder
        self.hosts = {host.name for host in started.hosts}
        self._of_rank: dict[int, LogFile] = {}
        for host in started.hosts:
            for local_rank in range(host.workers):
                self._of_rank[len(self._of_rank)] = files.get(rank_file(self.directory, host.name, local_rank))

    def paths(self) -> set[str]:
        """Every path that this run may have written to."""
        names = {os.path.join(self.directory, f"{safe_name(host)}.log") for host in self.hosts}
        return names | {file.path for file in self._of_rank.values()}

    def output(self, event: Output) -> None:
        """The rank's own bytes, as they are."""
        if (file := self._of_rank.get(event.rank)) is not None:
            self._finish_line(file, event.stream)
            self._files.add(file, event.data)
            file.unfinished = None if event.data.endswith(b"\n") else event.stream

    def record(self, event: Record) -> None:
        """A logging record, among the rank's lines."""
        if (file := self._of_rank.get(event.rank)) is not None:
            self._finish_line(file, None)
            self._files.add(file, format_record(event).encode(errors="backslashreplace") + b"\n")

    def ended(self, event: RankEnded) -> None:
        """A rank's file ends with a whole line, and is there where the rank failed: errors name it."""
        file = self._of_rank.get(event.fate.rank)
        if file is None:
            return
        self._finish_line(file, None)
        if not event.fate.ok:
            self._files.create(file)
            fate = event.fate
            who = f"rank {fate.rank} (local rank {fate.local_rank}, pid {fate.pid})"
            self.notice(Notice(event.at, "error", f"{who} {what(fate)}", fate.hostname))

    def notice(self, event: Notice) -> None:
        """What a host's agent says."""
        path = os.path.join(self.directory, f"{safe_name(event.hostname)}.log")
        line = format_notice(event, self._wall + event.at - self._at)
        self._files.add(self._files.get(path), line.encode(errors="backslashreplace") + b"\n")

    def path(self, rank: int) -> str | None:
        """The rank's file, where there is one."""
        file = self._of_rank.get(rank)
        return file.path if file is not None and os.path.exists(file.path) else None

    def _finish_line(self, file: LogFile, stream: StreamName | None) -> None:
        """Ends a line that another stream left without an end, so that the two are not read as one."""
        if file.unfinished is not None and file.unfinished != stream:
            self._files.add(file, b"\n")
            file.unfinished = None


def run_folder(log_dir: str, run: str, wall: float) -> str:
    """Where the log files of a run go that was started at the wall-clock time ``wall``."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(wall))
    return os.path.join(log_dir, f"{stamp}-{safe_name(run)}")


def rank_file(folder: str, hostname: str, local_rank: int) -> str:
    """The path of a rank's file in its run's folder."""
    return os.path.join(folder, f"{safe_name(hostname)}[{local_rank}].log")


def safe_name(name: str) -> str:
    """A host's name in a file's: percent-encoded where it could lead elsewhere, so no two become one."""
    safe = quote(name, safe=":@+,=")
    return ("%2E" + safe[1:] if safe.startswith(".") else safe)[:200] or "%"


def absolute(path: str) -> str:
    """Where a path leads now, whatever the program's working directory becomes."""
    return str(Path(os.path.abspath(os.path.expanduser(path))))
