"""Level 5: a cluster's runs as others see them: written down in the registry, and told to whoever watches.

The supervisor's loop puts every event here, besides the desk. With nobody watching that costs a look at the event, and
what a late observer would have to hear is kept (``story``). All else is done in a thread of its own: a run that is
still there after a fifth of a second is given a gallery (sockets, keys) and an entry. So a short step costs neither,
and no start waits for a disk. What observers ask for is done as if this process's own user had.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ..events import Event, Notice, RunEnded
from ..failure import exit_status
from ..supervisor.happenings import RunOrder
from ..systems.interfaces import own_addresses
from . import runs
from .ledger import Ledger, Watched
from .runs import RunEntry

if TYPE_CHECKING:
    from ..link.gallery import Gallery

UNSEEN = 0.2
"""Seconds that a run may take without anybody seeing it."""
CLOSING = 3.0
"""Seconds that the last words may take."""


class Watching:
    """The runs of one cluster.

    Args:
        cancel: ends a run, with so many seconds of grace; ``None``: its own.
        emit: is given what is to be said of it.
    """

    def __init__(self, cancel: Callable[[str, float | None], None], emit: Callable[[Event], None]) -> None:
        self._cancel, self._emit = cancel, emit
        self._lock = threading.Lock()  # guards all that follows, but for the gallery
        self._ledger = Ledger()
        self._closing = self._closed = False
        self._wake = -1
        self._thread: threading.Thread | None = None
        self._gallery: Gallery | None = None
        self._reported = 0.0

    # --- from other threads -----------------------------------------------------------------------------------------

    def begin(self, order: RunOrder, job: tuple[str, str]) -> None:
        """A run is submitted; ``job`` is the scheduler, and its job, that it is in."""
        entry = RunEntry(
            run=order.id,
            name=order.name,
            argv=tuple(getattr(sys, "argv", ())),
            place=runs.here(),
            started=time.time(),
            hosts=tuple((host.name, host.workers) for host in order.hosts),
            state="queued",
            grace=order.grace,
            log_folder=order.log_folder,
            scheduler=job[0],
            job=job[1],
        )
        with self._lock:
            if self._closing:
                return
            self._ledger.runs[order.id] = Watched(entry, time.monotonic() + UNSEEN)
            if self._thread is None:
                self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._thread = threading.Thread(target=self._work, name="zlaunch-watching", daemon=True)
                self._thread.start()
                return
        self._ring()

    def put(self, event: Event) -> None:
        """Tells of something; returns at once."""
        with self._lock:
            now = self._ledger.put(event)
        if now:
            self._ring()

    def leave(self, run: str, console: str) -> None:
        """Nobody waits for this run: how it ended is remembered. ``console`` is the path of its output, or empty."""
        with self._lock:
            found = self._ledger.runs.get(run)
            if found is not None:
                found.entry = replace(found.entry, detached=True, console=console)
                found.due, found.changed = 0.0, True
        self._ring()

    def publish(self, run: str) -> str:
        """Have a run written down by now; returns why it could not be, or nothing, as of one that has ended."""
        with self._lock:
            found = self._ledger.runs.get(run)
            if found is None:
                return ""
            found.due = 0.0
        self._ring()
        found.published.wait(CLOSING)
        return found.trouble

    def finish(self) -> None:
        """No run comes any more: everything ends with the last that is there. Returns at once."""
        with self._lock:
            self._closing = True
        self._ring()

    def close(self) -> None:
        """Nothing comes any more: end, and wait for it."""
        with self._lock:
            self._closing = self._closed = True
        self._ring()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSING)

    def _ring(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._over():
                self._turn()
        except Exception as error:  # a defect of ours costs observers their view, and nobody else anything
            text = f"nobody can watch from other terminals any more, which is a defect of zlaunch: {error!r}"
            self._emit(Notice(time.monotonic(), "warning", text))
        finally:
            with self._lock:
                left, self._ledger.runs = self._ledger.runs, {}
                os.close(self._wake)
                self._wake = -1
            for found in left.values():
                runs.remove(found.entry.run)
                found.published.set()
            if self._gallery is not None:
                self._gallery.close()

    def _over(self) -> bool:
        with self._lock:
            return self._closing and not self._ledger.waiting and (self._closed or not self._ledger.runs)

    def _turn(self) -> None:
        with self._lock:
            due = [found.due for found in self._ledger.runs.values() if not found.published.is_set()]
        patience = max(0.0, min(due) - time.monotonic()) if due else None
        if self._gallery is None:
            _wait(self._wake, patience)
        else:
            self._serve(self._gallery, patience)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        now = time.monotonic()
        with self._lock:
            todo = [
                found
                for found in self._ledger.runs.values()
                if found.due <= now and (found.changed or not found.published.is_set()) and not found.story.ended
            ]
        for found in todo:
            self._publish(found)
        self._tell()

    def _publish(self, found: Watched) -> None:
        """Write a run down. What cannot be written must not cost it."""
        with self._lock:
            found.changed = False
            entry = found.entry
        first = not found.published.is_set() and entry.ticket is None
        try:
            if first:
                entry = replace(entry, ticket=self._open().admit(entry.run))
                runs.forget()
            runs.enter(entry)
            found.trouble = ""
        except Exception as error:
            told, found.trouble = found.trouble, _why(error)
            if not told:
                text = f"other terminals will not know of run {entry.run}: {found.trouble}"
                self._emit(Notice(time.monotonic(), "info", text))
        with self._lock:
            found.entry = replace(found.entry, ticket=entry.ticket)
        found.published.set()

    def _open(self) -> Gallery:
        if self._gallery is None:
            from ..link.gallery import Gallery

            self._gallery = Gallery([interface.address for interface in own_addresses()])
        return self._gallery

    def _serve(self, gallery: Gallery, patience: float | None) -> None:
        from ..link.gallery import Came
        from ..protocol.gallery import Present, Told, Welcome

        happened = gallery.poll(patience, {self._wake})[0]
        self._report(gallery)
        for event in happened:
            if not isinstance(event, Came):
                self._stop(event.run, event.stop.who, event.stop.grace)
                continue
            with self._lock:
                found = self._ledger.runs.get(event.run)
                new = self._ledger.newcomer(event.run)
            if found is None or new is None:
                continue
            early, story = new
            for one in early:
                gallery.tell(event.run, Told(one), but=event.visitor)
            gallery.say(event.visitor, Welcome(event.run, time.monotonic()))
            for one in story:
                gallery.say(event.visitor, Told(one))
            gallery.say(event.visitor, Present())
            if found.story.ended:
                self._end(found)

    def _report(self, gallery: Gallery) -> None:
        """Who was turned away; one of them, where there are more within a second."""
        if gallery.refused and time.monotonic() >= self._reported + 1.0:
            self._reported = time.monotonic()
            self._emit(Notice(self._reported, "info", f"an observer was turned away: {gallery.refused[-1]}"))
            gallery.refused.clear()

    def _tell(self) -> None:
        """What has happened, to all who watch; and the end of what has ended."""
        with self._lock:
            queue, missed = self._ledger.take()
        ended = [run for run, event in queue if isinstance(event, RunEnded)]
        if self._gallery is not None:
            from ..protocol.gallery import Told

            for run, lines in missed.items():  # before the queue, in which may be the end
                self._gallery.missed(run, lines)
            for run, event in queue:
                self._gallery.tell(run, Told(event))
        for run in ended:
            with self._lock:
                found = self._ledger.runs.get(run)
            if found is not None:
                self._end(found)
        if self._gallery is not None:
            with self._lock:
                for run, found in self._ledger.runs.items():
                    found.watched = found.watched and self._gallery.watched(run)

    def _end(self, found: Watched) -> None:
        """A run is over."""
        ended, run = found.story.ended, found.entry.run
        assert ended is not None
        with self._lock:
            if self._ledger.runs.pop(run, None) is None:
                return
        if (found.published.is_set() or found.entry.detached) and not found.trouble:
            runs.end(found.entry, ended.outcome, exit_status(ended.outcome, ended.cause))
        found.published.set()
        if self._gallery is not None:
            self._gallery.dismiss(run)

    def _stop(self, run: str, who: str, grace: float | None) -> None:
        with self._lock:
            found = self._ledger.runs.get(run)
            if found is None:
                return
            found.stops += 1
            again = found.stops > 1
            seconds = (0.0 if again else None) if grace is None else grace
            allowed = found.entry.grace if seconds is None else seconds
        how = f"with SIGKILL after {allowed:g} s" if allowed else "by SIGKILL"
        self._emit(Notice(time.monotonic(), "warning", f"stopped by {who}: ending the ranks, {how}"))
        self._cancel(run, seconds)


def _wait(fd: int, seconds: float | None) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(None if seconds is None else seconds * 1000)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or repr(error)
