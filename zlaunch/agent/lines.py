"""Level 4, pure: bytes from a pipe become whole lines.

Chunks stay chunks: nothing here loops over lines unless one of them redraws itself with ``\\r``. Of such a line only
the last state is kept, so that a progress bar floods neither memory, wire, console nor files. A stream that has shown
a zero byte is no text, and ``\\r`` means nothing in it: from there on every byte is kept.

Several bars at once (``tqdm`` in a loop of ``tqdm``) go down a line by ``\\n`` and back up by ``ESC [ A``. A line end
that only takes back such a step is none: together they are a ``\\r``.
"""

from __future__ import annotations

import re

LINE_LIMIT = 16 << 20
"""Bytes; a longer line comes in pieces of this size."""


_UP = b"\x1b[A"
_STEPS = re.compile(rb"((?:\x1b\[A)*)(\n+)")


class LineSplitter:
    """Cuts one stream at its line ends."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self.limit = limit
        self.parts: list[bytes] = []
        self.held = 0
        self.binary = False
        self._above = 0
        """How many lines the cursor is above the lowest that was written to."""
        self._steps = b""
        """Up: what came last."""
        self.redraws = False
        """Whether the line that is not finished has redrawn itself."""

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Whole lines of what came, as ``(bytes, piece)``; a piece is part of too long a line, without an end."""
        self.binary = self.binary or b"\0" in data
        if self._steps or self._above or _UP in data:
            data = self._without_steps(data)
        end = data.rfind(b"\n") + 1
        ready: list[tuple[bytes, bool]] = []
        if end:
            lines = b"".join((*self.parts, data[:end]))
            self.parts, self.held, self.redraws = [], 0, False
            ready.append((lines if self.binary else last_states(lines), False))
        rest = data[end:] if end else data
        if rest:
            self._hold(rest)
        while self.held > self.limit:
            whole = b"".join(self.parts)
            ready.append((whole[: self.limit], True))
            self.parts, self.held = [whole[self.limit :]], len(whole) - self.limit
        return ready

    def state(self) -> bytes:
        """What a terminal would show of the line that is not finished."""
        return last_state(b"".join(self.parts)).rstrip(b"\r")

    def finish(self) -> bytes:
        """What is left without a line end."""
        rest = b"".join(self.parts) + self._steps
        self.parts, self.held, self.redraws = [], 0, False
        self._above, self._steps = 0, b""
        return rest if self.binary else last_state(rest)

    def _without_steps(self, data: bytes) -> bytes:
        """What came, without the line ends that only lead back down; steps up at its end wait for what follows."""
        data, self._steps = self._steps + data, b""
        if self.binary:
            return data
        while data.endswith(_UP):
            data, self._steps = data.removesuffix(_UP), self._steps + _UP
        return _STEPS.sub(self._back_down, data)

    def _back_down(self, found: re.Match[bytes]) -> bytes:
        up, down = len(found[1]) // len(_UP), len(found[2])
        self._above += up
        back = min(self._above, down) if up else 0
        self._above -= min(self._above, down)
        return b"\r" * bool(back) + b"\n" * (down - back)

    def _hold(self, rest: bytes) -> None:
        if b"\r" in rest and not self.binary:
            self.redraws = True
            rest = last_state(b"".join((*self.parts, rest)))
            self.parts, self.held = [], 0
        self.parts.append(rest)
        self.held += len(rest)


def last_states(lines: bytes) -> bytes:
    """Each line reduced to what a terminal would show of it in the end; ``\\r\\n`` stays a line end."""
    if b"\r" not in lines:
        return lines
    return b"".join(_last_state_of_line(line) + b"\n" for line in lines.split(b"\n")[:-1])


def _last_state_of_line(line: bytes) -> bytes:
    ends_with_return = line.endswith(b"\r")
    body = line.rstrip(b"\r")
    body = body[body.rfind(b"\r") + 1 :]
    return body + b"\r" if ends_with_return else body


def last_state(text: bytes) -> bytes:
    """What is visible of an unfinished line: the text after its last ``\\r`` that is followed by something."""
    body = text.rstrip(b"\r")
    start = body.rfind(b"\r") + 1
    return text[start:]
