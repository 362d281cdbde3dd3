"""Level 4, view: the plain console: ``[rank 3] line``, and zlaunch's own words on stderr.

The ranks' bytes pass as they are, whole chunks at a time: a prefix is one ``replace`` per chunk. Folding of
alike lines is ``folding``'s; descriptors are ``sinks``'. Only the desk's thread comes here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from ..events import AgentLost, Event, Notice, Output, RankEnded, Record, Redrawn, RunEnded, RunRestarting, RunStarted
from ..model import StreamName
from .folding import Folder, Shown, span_words
from .settings import ViewSettings
from .sinks import Outlet, Patience
from .text import report, restart_words, short_record, who

CONTINUES = b"(line continues) "
RED, PLAIN = b"\x1b[31m", b"\x1b[0m"
DIRECT = 32 << 10
"""Bytes from which a chunk is written by itself instead of being joined with others."""


def prefixed(data: bytes, start: bytes, end: bytes = b"\n") -> bytes:
    """Whole lines, each between ``start`` and ``end`` (which has the line end)."""
    body = data[:-1] if data.endswith(b"\n") else data
    return start + body.replace(b"\n", end + start) + end


def prefix(ranks: tuple[int, ...]) -> bytes:
    """``[rank 3] `` or ``[ranks 0,2-3] ``."""
    if len(ranks) == 1:
        return b"[rank %d] " % ranks[0]
    return f"[ranks {span_words(ranks)}] ".encode()


class RankLines:
    """The lines of one run on their way to the console. Pure: chunks in, bytes to be written out."""

    def __init__(self, shown: frozenset[int], *, red: bool = False) -> None:
        self._shown = shown
        self._red = red
        self._prefixes: dict[tuple[int, ...], bytes] = {(rank,): prefix((rank,)) for rank in shown}
        self._continued: set[tuple[int, StreamName]] = set()
        self.folder = Folder(shown)

    def output(self, event: Output, now: float) -> list[tuple[StreamName, bytes]]:
        """What can be written once ``event`` has come."""
        if event.rank not in self._shown:
            return []
        data, key = event.data, (event.rank, event.stream)
        continued = key in self._continued
        if continued or event.piece:
            data = (CONTINUES + data) if continued else data
            (self._continued.add if event.piece else self._continued.discard)(key)
        if not data.endswith(b"\n"):
            data += b"\n"
        return self.render(self.folder.feed(event.rank, event.stream, data, now))

    def text(self, rank: int, words: str, now: float) -> list[tuple[StreamName, bytes]]:
        """Words of a rank that are not its output: a logging record, on stderr."""
        if rank not in self._shown:
            return []
        data = words.encode(errors="backslashreplace") + b"\n"
        return self.render(self.folder.feed(rank, "err", data, now, one=True))

    def render(self, shown: list[Shown]) -> list[tuple[StreamName, bytes]]:
        """Puts the prefixes on."""
        written: list[tuple[StreamName, bytes]] = []
        for ranks, stream, data in shown:
            start = self._prefixes.get(ranks) or prefix(ranks)
            if self._red and stream == "err":
                written.append((stream, prefixed(data, start + RED, PLAIN + b"\n")))
            else:
                written.append((stream, prefixed(data, start)))
        return written


class Console:
    """stdout and stderr of this program; ``quiet``, where another view shows the ranks: only our words.

    Args:
        lost: is called once when a stream's reader has gone away.
    """

    def __init__(
        self,
        settings: ViewSettings,
        patience: Patience,
        lost: Callable[[], None],
        *,
        quiet: bool,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self._settings = settings
        self.quiet = quiet
        self.out = Outlet(lambda: stdout or sys.stdout, patience, lost)
        self.err = Outlet(lambda: stderr or sys.stderr, patience, lost)
        self._runs: dict[str, RankLines] = {}
        self._waiting: list[bytes] = []
        self._stream: StreamName = "out"

    def handle(self, event: Event, now: float) -> None:
        """Shows what is to be seen of an event; it is written by ``flush`` at the latest."""
        match event:
            case Output():
                if (run := self._runs.get(event.run)) is not None:
                    self._add(run.output(event, now))
            case Redrawn():
                line = event.text.encode(errors="replace") + b"\n"
                whose = (event.at, event.run, event.rank, event.local_rank, event.hostname, event.stream)
                if (run := self._runs.get(event.run)) is not None:
                    self._add(run.output(Output(*whose, line), now))
            case RunStarted():
                self._start(event)
            case RankEnded():
                if (run := self._runs.get(event.run)) is not None:
                    self._add(run.render(run.folder.ended(event.fate.rank, now)))
                if self._settings.verbose:
                    self.say(f"{who(event.fate)} {event.fate.describe()}")
            case RunRestarting():
                self._drain(event.run)
                self.say(restart_words(event))
            case RunEnded():
                self._drain(event.run)
                self._runs.pop(event.run, None)
            case AgentLost() if self._settings.verbose:
                self.say(f"{event.hostname}: lost: {event.reason}")
            case Notice():
                if self._settings.verbose or event.level in ("warning", "error"):
                    self.say(f"{event.hostname}: {event.text}" if event.hostname else event.text)
            case _:
                pass

    def record(self, event: Record, now: float) -> None:
        """A logging record for which the program has no handler."""
        run = self._runs.get(event.run)
        if run is not None and not event.handled and event.level >= self._settings.log_level:
            self._add(run.text(event.rank, short_record(event), now))

    def report(self, ended: RunEnded, log_file: str | None) -> None:
        """The last words on a run, for the command line."""
        for line in report(ended, log_file):
            self.say(line)

    def say(self, text: str) -> None:
        """zlaunch's own words, to stderr."""
        self.flush_folders()
        data = "".join(f"zlaunch: {line}\n" for line in text.splitlines() or [""])
        self._put("err", data.encode(errors="backslashreplace"))

    def write_out(self, data: bytes) -> None:
        """Bytes of another view for stdout."""
        self._put("out", data)

    def due(self) -> float | None:
        """When a line has waited long enough for its likes."""
        return min((due for run in self._runs.values() if (due := run.folder.due()) is not None), default=None)

    def tick(self, now: float) -> None:
        """Shows the lines that have waited long enough."""
        for run in self._runs.values():
            self._add(run.render(run.folder.release(now)))

    def flush_folders(self) -> None:
        """Shows the lines that wait for their likes, now."""
        for run in list(self._runs):
            self._drain(run)

    def flush(self) -> None:
        """Writes what was gathered."""
        if self._waiting:
            data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
            self._waiting.clear()
            (self.out if self._stream == "out" else self.err).write(data)

    def close(self) -> None:
        """Shows and writes what is left, and says how much the console did not take."""
        self.flush_folders()
        self.flush()
        for name, outlet in (("stdout", self.out), ("stderr", self.err)):
            if outlet.refused:
                self.say(f"{outlet.refused} bytes could not be written to {name}: {outlet.reason}")
        self.flush()
        self.out.close()
        self.err.close()

    def _start(self, event: RunStarted) -> None:
        self._drain(event.run)
        if not self._runs:
            self.flush()
            self.out.reopen()
            self.err.reopen()
        if not self.quiet:
            shown = self._settings.shown(sum(host.workers for host in event.hosts))
            self._runs[event.run] = RankLines(shown, red=self._settings.color_stderr)
        if self._settings.verbose:
            hosts = ", ".join(f"{host.name} ({host.workers})" for host in event.hosts)
            self.say(f"run {event.run}: {event.name} on {hosts}")

    def _drain(self, run: str) -> None:
        if (lines := self._runs.get(run)) is not None:
            self._add(lines.render(lines.folder.drain()))

    def _add(self, written: list[tuple[StreamName, bytes]]) -> None:
        for stream, data in written:
            self._put(stream, data)

    def _put(self, stream: StreamName, data: bytes) -> None:
        if stream != self._stream:
            self.flush()
            self._stream = stream
        if len(data) >= DIRECT:
            self.flush()
            self._waiting.append(data)
            self.flush()
        else:
            self._waiting.append(data)
