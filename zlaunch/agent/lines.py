"""Level 4, pure: bytes from a pipe become whole lines.

Chunks stay chunks: nothing here loops over lines unless one of them redraws itself with ``\\r``. Of such a line only
the last state is kept, so that a progress bar floods neither memory, wire, console nor files. A stream that has shown
a zero byte is no text, and ``\\r`` means nothing in it: from there on every byte is kept.
"""

from __future__ import annotations

LINE_LIMIT = 16 << 20
"""Bytes; a longer line comes in pieces of this size."""


class LineSplitter:
    """Cuts one stream at its line ends."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self.limit = limit
        self.parts: list[bytes] = []
        self.held = 0
        self.binary = False
        self.redraws = False
        """Whether the line that is not finished has redrawn itself."""

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Whole lines of what came, as ``(bytes, piece)``; a piece is part of too long a line, without an end."""
        self.binary = self.binary or b"\0" in data
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
        rest = b"".join(self.parts)
        self.parts, self.held, self.redraws = [], 0, False
        return rest if self.binary else last_state(rest)

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
