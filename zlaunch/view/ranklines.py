"""Level 4, view: the lines of a run on their way to the console: ``[rank 3] line``. Pure: chunks in, bytes out.

The ranks' bytes pass as they are, whole chunks at a time: a prefix is one ``replace`` per chunk.
"""

from __future__ import annotations

from collections.abc import Collection

from ..events import Output, Redrawn
from ..model import StreamName, span_words
from ..printable import harmless
from .folding import Folder, Shown

CONTINUES = b"(line continues) "
REDRAWN_EVERY = 5.0
"""Seconds between two states of a line that redraws itself."""
RED, PLAIN = b"\x1b[31m", b"\x1b[0m"


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
    """The lines of one run on their way to the console.

    Args:
        shown: whose lines.
        world_size: how many ranks there are.
        red: lines of stderr are.
        tame: streams whose lines may do nothing to a terminal but be lines, and have colours.
    """

    def __init__(
        self, shown: frozenset[int], world_size: int = 0, *, red: bool = False, tame: Collection[StreamName] = ()
    ) -> None:
        self._shown = shown
        self.world_size = world_size
        self._red = red
        self._tame = tame
        self._prefixes: dict[tuple[int, ...], bytes] = {(rank,): prefix((rank,)) for rank in shown}
        self._continued: set[tuple[int, StreamName]] = set()
        self._redrawn: dict[tuple[int, StreamName], float] = {}  # when the state of a bar was shown, or first heard of
        self._ended: set[int] = set()
        self.folder = Folder(shown)

    def choose(self, shown: frozenset[int]) -> list[tuple[StreamName, bytes]]:
        """The lines of other ranks from here on; those that wait are shown."""
        written = self.render(self.folder.drain())
        self._shown = shown
        self._prefixes = {(rank,): prefix((rank,)) for rank in shown}
        self.folder = Folder(shown - self._ended)
        return written

    def ended(self, rank: int, now: float) -> list[tuple[StreamName, bytes]]:
        """A rank says nothing more."""
        self._ended.add(rank)
        return self.render(self.folder.ended(rank, now))

    def output(self, event: Output, now: float) -> list[tuple[StreamName, bytes]]:
        """What can be written once ``event`` has come."""
        if event.rank not in self._shown:
            return []
        data, key = event.data, (event.rank, event.stream)
        self._redrawn.pop(key, None)
        continued = key in self._continued
        if continued or event.piece:
            data = (CONTINUES + data) if continued else data
            (self._continued.add if event.piece else self._continued.discard)(key)
        if not data.endswith(b"\n"):
            data += b"\n"
        return self.render(self.folder.feed(event.rank, event.stream, data, now))

    def redrawn(self, event: Redrawn, now: float) -> list[tuple[StreamName, bytes]]:
        """The present state of a bar, now and then: of one that is finished before, its line is enough."""
        key = event.rank, event.stream
        if event.at - self._redrawn.setdefault(key, event.at) < REDRAWN_EVERY:
            return []
        line = event.text.encode(errors="replace") + b"\n"
        whose = (event.at, event.run, event.rank, event.local_rank, event.hostname, event.stream)
        written = self.output(Output(*whose, line), now)
        self._redrawn[key] = event.at
        return written

    def text(self, rank: int, words: str, now: float) -> list[tuple[StreamName, bytes]]:
        """Words of a rank that are not its output: a logging record, on stderr."""
        if rank not in self._shown:
            return []
        data = words.encode(errors="backslashreplace") + b"\n"
        return self.render(self.folder.feed(rank, "err", data, now, one=True))

    def render(self, shown: list[Shown]) -> list[tuple[StreamName, bytes]]:
        """Puts the prefixes on."""
        written: list[tuple[StreamName, bytes]] = []
        for ranks, stream, raw in shown:
            data = harmless(raw) if stream in self._tame else raw
            start = self._prefixes.get(ranks) or prefix(ranks)
            if self._red and stream == "err":
                written.append((stream, prefixed(data, start + RED, PLAIN + b"\n")))
            else:
                written.append((stream, prefixed(data, start)))
        return written
