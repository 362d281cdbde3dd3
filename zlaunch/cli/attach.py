"""Level 6: ``zlaunch attach``: watch a run that another terminal, a batch job or a notebook has started.

The run's events come over the wire and go to a desk, as they do where it was started: so every view is there, and looks
the same. Leaving changes nothing. A slow terminal slows nobody but us: what we have not shown yet is bounded, and then
the run keeps what it can, and counts what it cannot.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import get_args

from msgspec.structs import replace

from ..events import Event, Notice, Output, RankEnded, RunEnded, RunRestarting
from ..failure import exit_status
from ..link.visitor import Visitor
from ..link.words import LinkError
from ..protocol.gallery import Missed, Told, Welcome
from ..registry import runs
from ..registry.runs import RunEntry
from ..surroundings import say
from ..view.desk import Desk
from ..view.settings import ViewName, ViewSettings, log_level
from .queues import printable

PATIENCE = 5.0
"""Seconds until a run that does not answer is given up."""
UNSHOWN = 4 << 20
"""Bytes that may wait for our terminal."""
SAME_CLOCK = 0.05
"""Seconds by which the clock of another process of this machine may seem to be off."""
FAILED, NO_READER = 125, 141
LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Over(Exception):
    """A run has ended since we looked; ``entry`` is what is written down of it, or was."""

    def __init__(self, entry: RunEntry) -> None:
        super().__init__(entry.run)
        self.entry = entry


def attach(entry: RunEntry, view: ViewName, ranks: str | None) -> int:
    """Watch it to its end, or until the user leaves; returns the run's exit status, or that of leaving.

    Raises:
        LinkError: the run does not answer.
    """
    if entry.ended:
        return tell_end(entry)
    try:
        visitor = connected(entry)
    except Over as ended:
        return tell_end(ended.entry)
    before = {number: signal.getsignal(number) for number in (*LEAVING, signal.SIGTSTP)}
    watcher = _Watcher(entry, visitor, view, ranks)
    try:
        for number in LEAVING:
            if before[number] != signal.SIG_IGN:  # as below nohup
                signal.signal(number, watcher.interrupt)
        signal.signal(signal.SIGTSTP, _not_stopped)
        return watcher.watch()
    finally:
        watcher.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def connected(entry: RunEntry) -> Visitor:
    """An observer of a run. Raises LinkError, or Over."""
    ticket = runs.ticket(entry)
    where = printable(entry.place.hostname)
    if ticket is None:
        raise LinkError(f"run {entry.run} on {where} cannot be reached from here")
    visitor = Visitor(ticket)
    try:
        visitor.connect(PATIENCE)
    except LinkError as error:
        visitor.close()
        if (by_now := over(entry)) is not None:
            raise by_now from None
        raise LinkError(f"run {entry.run} on {where}: {error}") from None
    except BaseException:
        visitor.close()
        raise
    return visitor


def over(entry: RunEntry) -> Over | None:
    """Whether it has ended by now, as far as that is known here."""
    try:
        now = next((one for one in runs.look().runs if one.run == entry.run), None)
    except OSError:
        return None
    return Over(now or entry) if now is None or now.ended else None


def tell_end(entry: RunEntry) -> int:
    """Of a run that has ended: how, where that is remembered; returns its exit status."""
    if not entry.ended:
        say(f"run {entry.run} has ended; how is not written down")
        return FAILED
    files = f"; its log files: {printable(entry.log_folder)}" if entry.log_folder else ""
    say(f"run {entry.run} has ended: {printable(entry.state)}, exit status {entry.status}{files}")
    return entry.status


class _Watcher:
    """A desk that is fed from afar."""

    def __init__(self, entry: RunEntry, visitor: Visitor, view: ViewName, ranks: str | None) -> None:
        self._entry, self._visitor = entry, visitor
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._left = 0
        """With which status the user leaves; 0: by a key. Set by the desk's thread, or a signal."""
        self._wants_out = False
        self._done = threading.Event()
        self._unshown = 0
        self._shown = 0
        self._offset = 0.0
        settings = ViewSettings(
            view=view, ranks=ranks, report=True, keys=True, leave=self._quit, log_level=log_level(os.environ)
        )
        self._desk = Desk(settings, self._handled, lost=self._lost)

    def watch(self) -> int:
        """Until its end; returns the exit status."""
        while True:
            if self._unshown - self._shown > UNSHOWN:
                self._pause()
            for message in self._visitor.poll(None, {self._wake})[0]:
                match message:
                    case Welcome(clock=clock):
                        self._offset = _offset(clock)
                    case Told(event=event):
                        self._show(event)
                        if isinstance(event, RunEnded):
                            self._written()
                            if event.cause and self._entry.log_folder and not os.path.isdir(self._entry.log_folder):
                                self._say(f"log files: {printable(self._entry.log_folder)}")
                            return exit_status(event.outcome, event.cause)
                    case Missed(lines=lines):
                        self._say(f"{lines} lines came too fast to be shown here; the log files have all")
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            if self._wants_out:
                return self.leave(self._left)
            if self._visitor.gone:
                return self._broken()

    def leave(self, status: int) -> int:
        """The user has seen enough."""
        self.close()
        if status != NO_READER:
            say(f"left; run {self._entry.run} goes on (zlaunch attach {self._entry.run})")
        return status

    def close(self) -> None:
        """Give back the terminal, and hang up."""
        if self._wake < 0:
            return
        self._visitor.close()
        self._desk.close(0.5)
        os.close(self._wake)
        self._wake = -1

    def _broken(self) -> int:
        self._written()
        self.close()
        if (by_now := over(self._entry)) is not None and by_now.entry.ended:
            return tell_end(by_now.entry)
        run, why = self._entry.run, self._visitor.gone
        if runs.whereabouts(self._entry.place) == "here":
            say(f"run {run}: {why}; the run goes on (zlaunch attach {run})")
        else:
            say(f"run {run}: {why}; what has become of it cannot be seen from here")
        return FAILED

    def _show(self, event: Event) -> None:
        if isinstance(event, Output):
            self._unshown += len(event.data)
        self._desk.put(_shifted(event, self._offset) if self._offset else event)

    def _say(self, text: str) -> None:
        self._desk.put(Notice(time.monotonic(), "warning", text))

    def _pause(self) -> None:
        """Wait for our terminal, and not for the run."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while self._unshown - self._shown > UNSHOWN // 2 and not self._wants_out:
            poll.poll()
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)

    def _written(self) -> None:
        """Until all that came has been shown, or the user leaves."""
        self._desk.call(self._done.set)
        self._done.wait()

    def interrupt(self, number: int, _: FrameType | None) -> None:
        """A signal, of which the first counts. It raises nothing: within ZeroMQ's calls that may be ignored."""
        if not self._wants_out:
            self._left, self._wants_out = 128 + number, True
            self._done.set()
            self._ring()

    # --- in the desk's thread ---------------------------------------------------------------------------------------

    def _handled(self, _: str, size: int) -> None:
        self._shown += size
        self._ring()

    def _quit(self) -> None:
        self._wants_out = True
        self._ring()

    def _lost(self) -> None:
        self._left, self._wants_out = NO_READER, True
        self._ring()

    def _ring(self) -> None:
        with suppress(OSError):  # we are leaving already
            os.eventfd_write(self._wake, 1)


def view_here(word: str | None) -> ViewName:
    """What the user chose; else the live view on a terminal, and lines for whoever else reads them."""
    for name in get_args(ViewName):
        if name == word and name != "auto":
            return name  # type: ignore[no-any-return]
    return "auto" if sys.stdout.isatty() else "plain"


def _not_stopped(_: int, __: FrameType | None) -> None:
    say("Ctrl-Z is ignored: a run takes an observer that is stopped for gone; q or Ctrl-C leave the run to itself")


def _offset(clock: float) -> float:
    offset = time.monotonic() - clock
    return 0.0 if abs(offset) < SAME_CLOCK else offset


def _shifted(event: Event, by: float) -> Event:
    """The event by our clock."""
    match event:
        case RankEnded(fate=fate):
            return replace(event, at=event.at + by, fate=replace(fate, at=fate.at + by))
        case RunRestarting(cause=why):
            return replace(event, at=event.at + by, cause=replace(why, at=why.at + by))
        case RunEnded(cause=first, fates=fates):
            moved = tuple(replace(fate, at=fate.at + by) for fate in fates)
            moved_cause = replace(first, at=first.at + by) if first else None
            return replace(event, at=event.at + by, cause=moved_cause, fates=moved)
        case _:
            return replace(event, at=event.at + by)
