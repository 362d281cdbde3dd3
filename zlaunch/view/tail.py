"""Level 4, view: the last lines of every rank, for the error that tells of its death. Pure; no I/O."""

from __future__ import annotations

from collections import deque

KEPT_LINES = 60
SLICE = 16 << 10
"""Of a larger chunk only so many bytes are looked at, unless they hold too few lines."""
LINE_LIMIT = 2000
"""Bytes shown of one line: the last lines are for reading, the log file has them whole."""


class Tail:
    """The last ``KEPT_LINES`` lines of one rank, at the cost of a slice per chunk."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._count = 0

    def add(self, data: bytes) -> None:
        """Keeps the end of ``data``; a last line without an end counts as a line."""
        if len(data) > SLICE:
            data = _last_lines(data)
        if not data.endswith(b"\n"):
            data += b"\n"
        lines = data.count(b"\n")
        self._chunks.append((data, lines))
        self._count += lines
        while self._count - self._chunks[0][1] >= KEPT_LINES:
            self._count -= self._chunks.popleft()[1]

    def lines(self) -> list[str]:
        """The last lines, oldest first, without line ends; bytes that are not UTF-8 are replaced."""
        text = b"".join(data for data, _ in self._chunks)
        lines = text.split(b"\n")[:-1][-KEPT_LINES:]
        return [_cut(line).decode(errors="replace").rstrip("\r") for line in lines]


def _last_lines(data: bytes) -> bytes:
    end = data[-SLICE:]
    if end.count(b"\n") > KEPT_LINES:
        return end[end.find(b"\n") + 1 :]
    last = data.removesuffix(b"\n").rsplit(b"\n", KEPT_LINES)[-KEPT_LINES:]
    return b"\n".join(_cut(line) for line in last)


def _cut(line: bytes) -> bytes:
    if len(line) <= LINE_LIMIT + 40:  # room for what a first cut has appended
        return line
    return line[:LINE_LIMIT] + f" … ({len(line)} bytes)".encode()
