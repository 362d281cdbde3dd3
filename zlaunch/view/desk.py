"""Level 4, view: the desk, the one thread that owns every descriptor that output goes to.

Events are put on its queue and never block whoever puts them: a slow console makes the desk slow, the desk
gives its credit back late, and the ranks wait. It works in batches: gather what there is (up to a
mebibyte), write, give credit back. Nothing is timed but lines that wait for their likes; with none waiting
and no event it sleeps.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO, TypeAlias

from ..events import Event, Output, RankEnded, Record, RunEnded, RunStarted
from .console import Console
from .files import rank_file
from .jsonlines import json_lines
from .keep import Keeper
from .logs import Handlers, to_loggers
from .records import RecordSplitter
from .report import report
from .settings import HandlerFactory, ViewSettings
from .sinks import Patience

BATCH_BYTES = 1 << 20
BATCH_ITEMS = 512


@dataclass(frozen=True, eq=False)
class _Call:
    work: Callable[[], object]


@dataclass(frozen=True, eq=False)
class _Swap:
    handlers: list[logging.Handler] | None


class _Close:
    pass


@dataclass(frozen=True, eq=False)
class _Key:
    key: str


_Item: TypeAlias = Event | _Call | _Swap | _Key | _Close


class Desk:
    """Shows and keeps everything that the events tell.

    Args:
        settings: what to show and where to keep it. Its handlers are made here: what their factory raises
            comes to the caller.
        handled: called in the desk's thread with a host's name and how many bytes of its output are written.
        stdout, stderr: the console; default: ``sys.stdout`` and ``sys.stderr`` as they are when a run starts.
        lost: called in the desk's thread when the reader of stdout or stderr has gone (``| head``).
    """

    def __init__(
        self,
        settings: ViewSettings,
        handled: Callable[[str, int], None],
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._handled = handled
        self._lock = threading.Lock()  # guards _closed
        self._closed = False
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._splitters: dict[str, RecordSplitter] = {}
        self._began: dict[str, RunStarted] = {}
        self._patience = Patience()
        self._handlers: Handlers | None = None
        if settings.handlers is not None:
            self._handlers = Handlers(settings.handlers(), self._say)
        self._json = settings.view == "json"
        self._shows = settings.view in ("auto", "live", "plain")
        quiet = not self._shows or self._handlers is not None
        self._console = Console(
            settings, self._patience, lost, quiet=quiet, stdout=stdout, stderr=stderr, pressed=self._pressed
        )
        self._keeper = Keeper(settings, self._say)
        self._credit: Counter[str] = Counter()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="zlaunch-desk", daemon=True)
        self._thread.start()

    # --- for every thread -----------------------------------------------------------------------------------

    def put(self, event: Event) -> None:
        """Tells of something; returns at once. After ``close`` it is ignored."""
        if isinstance(event, RunStarted):
            with self._lock:
                if not self._closed:
                    self._patience.relax()
        self._queue.put(event)

    def call(self, work: Callable[[], object]) -> None:
        """Runs ``work`` in the desk's thread once everything that was put before is written and handled.

        After ``close`` it runs at once, in the caller's thread, so that nobody waits for it for ever.
        """
        with self._lock:
            if not self._closed:
                self._queue.put(_Call(work))
                return
        work()

    def set_handlers(self, factory: HandlerFactory | None) -> None:
        """Other logging handlers from here on; those before are closed. ``None``: none, and the console again.

        The console shows runs that start afterwards. Raises what ``factory`` raises.
        """
        self._queue.put(_Swap(None if factory is None else factory()))

    def last_output(self, run: str, rank: int) -> list[str]:
        """What a rank printed or logged last, oldest first: 50 lines at least where there were as many."""
        return self._keeper.last_output(run, rank)

    def log_file(self, run: str, rank: int) -> str | None:
        """The absolute path of a rank's log file; ``None`` where none was written."""
        return self._keeper.log_file(run, rank)

    def log_folder(self, run: str, wall: float) -> str:
        """The absolute path of the folder for a run that starts at a wall-clock time; empty where there is none."""
        return self._keeper.folder(run, wall)

    def hurry(self, seconds: float = 2.0) -> None:
        """For Ctrl-C: until the next run starts, a console that takes nothing is waited for no longer."""
        self._patience.hurry(seconds)

    def close(self, timeout: float = 5.0) -> None:
        """Writes what was put, and ends; ``timeout`` seconds are enough for a console that takes nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(_Close())
        self._patience.hurry(timeout)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout + 2.0)  # a handler of the user's may hang

    # --- the desk's thread ----------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            batch = self._gather()
            for item in batch:
                if isinstance(item, _Close):
                    self._finish()
                    return
                self._guarded(self._take, item)
            self._guarded(self._settle)

    def _gather(self) -> list[_Item]:
        """What is on the queue, up to a batch; empty where lines have waited long enough for their likes."""
        due = self._console.due()
        try:
            item = self._queue.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            return []
        batch = [item]
        size = len(item.data) if isinstance(item, Output) else 0
        while size < BATCH_BYTES and len(batch) < BATCH_ITEMS:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            batch.append(item)
            if isinstance(item, Output):
                size += len(item.data)
        return batch

    def _settle(self, *, all_lines: bool = False) -> None:
        """Writes what was gathered, then gives the credit for it back, whatever failed: or ranks would hang."""
        credit, self._credit = self._credit, Counter()
        try:
            if all_lines:
                self._console.flush_folders()
            else:
                self._console.tick(time.monotonic())
            self._keeper.flush()
            self._console.flush()
        finally:
            for hostname, size in credit.items():
                self._handled(hostname, size)

    def _take(self, item: _Item) -> None:
        match item:
            case _Call():
                self._settle(all_lines=True)
                if self._handlers is not None:
                    self._handlers.flush()
                item.work()
            case _Swap():
                self._swap(item.handlers)
            case _Key():
                self._console.key(item.key, time.monotonic())
            case _Close():
                pass
            case Output():
                self._credit[item.hostname] += len(item.data)
                splitter = self._splitters.get(item.run)
                for told in [item] if splitter is None else splitter.feed(item):
                    self._tell(told)
            case RankEnded():
                self._end_of_rank(item)
            case RunStarted():
                self._start(item)
            case _:
                self._tell(item)
                if isinstance(item, RunEnded):
                    self._end_of_run(item)

    def _tell(self, event: Event) -> None:
        """Gives an event to everyone who listens."""
        now = time.monotonic()
        self._keeper.handle(event)
        if isinstance(event, Record):
            self._console.watch(event, now)
            if self._handlers is None:
                if logging.getLogger(f"zlaunch.{event.hostname}").hasHandlers():
                    self._console.step_aside()  # the program's own handlers may write to the terminal
                if not to_loggers(event):
                    self._console.record(event, now)
        else:
            self._console.handle(event, now)
        if self._handlers is not None:
            self._handlers.handle(event)
        if self._json:
            self._console.write_out(json_lines(event))

    def _start(self, event: RunStarted) -> None:
        self._began.setdefault(event.run, event)
        self._splitters[event.run] = RecordSplitter(event.log_token)
        self._tell(event)

    def _end_of_rank(self, event: RankEnded) -> None:
        fate = event.fate
        if (splitter := self._splitters.get(event.run)) is not None:
            like = Output(event.at, event.run, fate.rank, fate.local_rank, fate.hostname, "out", b"")
            for told in splitter.finish(fate.rank, event.at, like):
                self._tell(told)
        self._tell(event)

    def _end_of_run(self, event: RunEnded) -> None:
        self._splitters.pop(event.run, None)
        self._keeper.end(event.run)
        began = self._began.pop(event.run, None)
        if self._settings.report:
            cause, last = event.cause, list[str]()
            file = began.log_folder if began is not None else ""
            if cause is not None:
                file = rank_file(file, cause.hostname, cause.local_rank) if file else ""
                last = self._keeper.last_output(event.run, cause.rank)
            if not os.path.exists(file):
                file = ""
            self._console.report(report(event, file, began=began.at if began else None, last_output=last))

    def _swap(self, handlers: list[logging.Handler] | None) -> None:
        if self._handlers is not None:
            self._handlers.close()
        self._settle(all_lines=True)
        self._console.be_quiet(handlers is not None or not self._shows)
        self._handlers = None if handlers is None else Handlers(handlers, self._say)

    def _finish(self) -> None:
        self._guarded(self._settle, all_lines=True)
        if self._handlers is not None:
            self._handlers.close()
        self._guarded(self._keeper.close)
        self._guarded(self._console.close)
        self._patience.close()

    def _pressed(self, key: str) -> None:
        self._queue.put(_Key(key))

    def _say(self, text: str) -> None:
        self._console.say(text)

    def _guarded(self, work: Callable[..., object], *args: object, **options: object) -> None:
        """The desk goes on whatever happens: without it no result would arrive. The first trouble is told."""
        try:
            work(*args, **options)
        except BaseException:  # a user's logging handler may raise what it likes
            if not self._failed:
                self._failed = True
                self._say(f"an error of zlaunch's own, in its output:\n{traceback.format_exc()}")
