"""Level 4, view: takes a rank's logging records out of its stdout. Pure; no I/O.

A rank in a function step writes each record as one marked line (``\\x1e`` + the step's token + JSON) into
its own stdout, so that records keep their place among its lines. A mark may follow text without a line end:
that text is held until its rest comes, so that no line is torn by a record in its middle.

A record that is larger than what a pipe takes in one piece comes as several such lines, so that whatever else the
rank's threads and children write can come between them, but not into them: ``+`` and an id before each part, ``.`` and
the id before the last.
"""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..events import Output, Record

MARK = b"\x1e"
HELD_LIMIT = 64 << 20
"""Bytes of an unfinished record that are waited with; a larger one is shown as the text that it is."""

Told: TypeAlias = Output | Record


class MarkedRecord(Struct, frozen=True):
    """The JSON of a marked line; the keys are those of ``events.Record``."""

    name: str
    level: int
    created: float
    message: str
    handled: bool = False
    exc_text: str = ""
    pathname: str = ""
    lineno: int = 0
    func: str = ""
    process: int = 0
    thread: str = ""
    extra: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(MarkedRecord)


class RecordSplitter:
    """Splits the output of one run. Without a token (scripts, commands) nothing is looked for."""

    def __init__(self, token: str) -> None:
        self._mark = MARK + token.encode() if token else b""
        self._text: dict[int, bytes] = {}  # by rank: the start of a line, told before a record
        self._record: dict[int, bytes] = {}  # by rank: the start of a marked line whose end has not come
        self._parts: dict[tuple[int, bytes], bytearray] = {}  # by rank and id: the first parts of a large record

    def feed(self, event: Output) -> list[Told]:
        """The event as it is where it holds no record; otherwise its lines and records, in order."""
        if not self._mark or event.stream != "out":
            return [event]
        rank, data = event.rank, event.data
        if rank in self._record:
            data = self._record.pop(rank) + data
        elif rank not in self._text and self._mark not in data:
            return [event]
        return self._split(event, data)

    def finish(self, rank: int, at: float, like: Output) -> list[Told]:
        """What is left of a rank that has ended: an unterminated line. ``like`` names run, rank and host."""
        rest = self._text.pop(rank, b"") + self._record.pop(rank, b"")
        for key in [key for key in self._parts if key[0] == rank]:
            rest += self._parts.pop(key)
        return [replace(like, at=at, stream="out", data=rest, piece=False)] if rest else []

    def _split(self, event: Output, data: bytes) -> list[Told]:
        told: list[Told] = []
        lines: list[bytes] = []  # text that is told in one event
        while (start := data.find(self._mark)) >= 0:
            lines.append(data[:start])
            end = data.find(b"\n", start)
            if end < 0:  # the rest of the record is in the next event
                if len(data) - start <= HELD_LIMIT:
                    self._tell(event, told, lines, whole=False)
                    self._record[event.rank] = data[start:]
                    return told
                break
            records = self._marked(event, data[start + len(self._mark) : end])
            if records is None:  # not one of ours, whatever it says: text
                lines.append(data[start : end + 1])
            else:
                self._tell(event, told, lines, whole=False)
                told += records
            data = data[end + 1 :]
        else:
            start = 0
        lines.append(data[start:])
        self._tell(event, told, lines, whole=True)
        return told

    def _marked(self, event: Output, body: bytes) -> list[Record] | None:
        """The record of a marked line; none, where it is a part; ``None``, where it is no record."""
        if body[:1] in (b"+", b"."):
            name, _, part = body[1:].partition(b" ")
            whole = self._parts.pop((event.rank, name), bytearray())
            whole += part
            if body[:1] == b"+" and len(whole) <= HELD_LIMIT:
                self._parts[event.rank, name] = whole
                return []
            body = bytes(whole)
        record = _read(body, event)
        return None if record is None else [record]

    def _tell(self, event: Output, told: list[Told], lines: list[bytes], *, whole: bool) -> None:
        """Tells the text so far. Before a record (not ``whole``) a line without an end is held instead."""
        text = b"".join(lines)
        lines.clear()
        if not text:
            return
        if held := self._text.pop(event.rank, b""):
            text = _redrawn(held + text)
        if not whole:
            cut = text.rfind(b"\n") + 1
            if cut < len(text):
                self._text[event.rank] = text[cut:]
            text = text[:cut]
        if text:
            told.append(replace(event, data=text, piece=event.piece and whole))


def _redrawn(text: bytes) -> bytes:
    """A line that was joined again: where its rest began by redrawing it, only the rest is left."""
    line, end, rest = text.partition(b"\n")
    body = line.removesuffix(b"\r")
    return body[body.rfind(b"\r") + 1 :] + line[len(body) :] + end + rest


def _read(text: bytes, event: Output) -> Record | None:
    try:
        found = _decoder.decode(text)
    except msgspec.DecodeError:
        try:  # the standard library's JSON knows NaN, and lone surrogates
            found = msgspec.convert(json.loads(text), MarkedRecord)
        except ValueError:
            return None
    return Record(
        at=event.at,
        run=event.run,
        rank=event.rank,
        local_rank=event.local_rank,
        hostname=event.hostname,
        name=found.name,
        level=found.level,
        created=found.created,
        message=found.message,
        handled=found.handled,
        exc_text=found.exc_text,
        pathname=found.pathname,
        lineno=found.lineno,
        func=found.func,
        process=found.process,
        thread=found.thread,
        extra=found.extra,
    )
