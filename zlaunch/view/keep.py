"""Level 4, view: what is kept of runs: files per rank and host, ``--out`` and ``--err``, last lines.

The desk's thread writes; the launcher's threads may ask for last lines and paths.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..events import AgentLost, Event, Notice, Output, RankEnded, Record, RunStarted
from .files import FileSet, LogFile, RunFiles, absolute, run_folder
from .settings import ViewSettings
from .tail import Tail
from .text import short_record

KEPT_RUNS = 16
"""Runs that have ended whose last lines can still be asked for."""
KEPT_NOTICES = 200
"""Agents' notices that wait for a run whose directory they can go to."""


@dataclass(eq=False)
class _Kept:
    files: RunFiles | None
    tails: dict[int, Tail] = field(default_factory=dict)
    ended: bool = False


class Keeper:
    """Listens to the events and keeps. ``said`` gets a sentence where a file cannot be written."""

    def __init__(self, settings: ViewSettings, said: Callable[[str], None]) -> None:
        self._settings = settings
        self._said = said
        self._log_dir = absolute(settings.log_dir) if settings.log_dir else None
        self._paths = {"out": settings.out, "err": settings.err}
        self._paths = {stream: absolute(path) if path else None for stream, path in self._paths.items()}
        self._files = FileSet(said)
        self._raw: dict[str, LogFile] = {}
        self._cut: set[tuple[str, int, str]] = set()  # lines in --out and --err that are still to be continued
        self._notices: deque[Notice] = deque(maxlen=KEPT_NOTICES)
        self._lock = threading.Lock()  # guards _runs and the tails, for those who ask
        self._runs: dict[str, _Kept] = {}

    def handle(self, event: Event) -> None:
        """Keeps what there is to keep of an event; it is written by ``flush``."""
        match event:
            case Output():
                self._output(event)
            case Record():
                self._record(event)
            case RunStarted():
                self._start(event)
            case RankEnded():
                if (files := self._run_files(event.run)) is not None:
                    files.ended(event)
            case AgentLost():
                self._notice(Notice(event.at, "error", f"lost: {event.reason}", event.hostname))
            case Notice():
                self._notice(event)
            case _:
                pass

    def last_output(self, run: str, rank: int) -> list[str]:
        """A rank's last lines, oldest first. For every thread."""
        with self._lock:
            kept = self._runs.get(run)
            tail = kept.tails.get(rank) if kept is not None else None
            return tail.lines() if tail is not None else []

    def log_file(self, run: str, rank: int) -> str | None:
        """The path of a rank's log file, where there is one. For every thread."""
        files = self._run_files(run)
        return files.path(rank) if files is not None else None

    def folder(self, run: str, wall: float) -> str:
        """Where the log files of a run go that starts now; empty where none are written. For every thread."""
        return run_folder(self._log_dir, run, wall) if self._log_dir is not None else ""

    def flush(self) -> None:
        """Writes what waits."""
        self._files.flush()

    def end(self, run: str) -> None:
        """A run is over: says what its files lack, closes them, and forgets an older run."""
        self._files.flush()
        with self._lock:
            kept = self._runs.get(run)
            if kept is not None:
                kept.ended = True
            ended = [name for name, other in self._runs.items() if other.ended]
            for name in ended[: max(0, len(ended) - KEPT_RUNS)]:
                del self._runs[name]
        if kept is not None and kept.files is not None:
            paths = kept.files.paths()
            lacking, size = self._files.refused(paths)
            if size:
                where = f"{lacking} log file{'s' if lacking > 1 else ''} in {kept.files.directory}"
                self._said(f"{size} bytes could not be written to {where}")
            self._files.forget(paths)

    def close(self) -> None:
        """Writes what waits and closes the files."""
        self._files.close()

    def _run_files(self, run: str) -> RunFiles | None:
        with self._lock:
            kept = self._runs.get(run)
        return kept.files if kept is not None else None

    def _start(self, event: RunStarted) -> None:
        self._open_raw()
        with self._lock:
            if event.run in self._runs:  # a restart: the same files go on
                return
            files = None
            if event.log_folder and self._log_dir is not None:  # who only watches has none of his own
                files = RunFiles(self._files, event, event.created or time.time())
            self._runs[event.run] = _Kept(files)
        if files is not None:
            for notice in [notice for notice in self._notices if notice.hostname in files.hosts]:
                self._notices.remove(notice)
                files.notice(notice)

    def _output(self, event: Output) -> None:
        kept = self._runs.get(event.run)
        if kept is None:
            return
        with self._lock:
            kept.tails.setdefault(event.rank, Tail()).add(event.data)
        if kept.files is not None:
            kept.files.output(event)
        if (file := self._raw.get(event.stream)) is not None:
            self._output_raw(file, event)

    def _record(self, event: Record) -> None:
        kept = self._runs.get(event.run)
        if kept is None or event.handled:  # the rank's own handler printed it: it is there already
            return
        with self._lock:
            words = short_record(event).encode(errors="backslashreplace")
            kept.tails.setdefault(event.rank, Tail()).add(words)
        if kept.files is not None:
            kept.files.record(event)

    def _output_raw(self, file: LogFile, event: Output) -> None:
        """One file has the lines of all ranks: each gets an end, and the rest of a cut one a mark."""
        data, key = event.data, (event.run, event.rank, event.stream)
        if key in self._cut:
            data = b"(line continues) " + data
        (self._cut.add if event.piece else self._cut.discard)(key)
        self._files.add(file, data)
        if not data.endswith(b"\n"):
            self._files.add(file, b"\n")

    def _open_raw(self) -> None:
        """Makes ``--out`` and ``--err``, empty, when the first run starts."""
        for stream, path in self._paths.items():
            if path is not None and stream not in self._raw:
                file = self._files.get(path)
                if file not in self._raw.values():
                    self._files.create(file, empty=True)
                self._raw[stream] = file

    def _notice(self, notice: Notice) -> None:
        if not notice.hostname or self._log_dir is None:
            return
        running = [kept.files for kept in self._runs.values() if kept.files is not None and not kept.ended]
        directories = [files for files in running if notice.hostname in files.hosts]
        for files in directories:
            files.notice(notice)
        if not directories:
            self._notices.append(notice)
