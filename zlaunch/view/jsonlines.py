r"""Level 4, view: ``--view json``: an object per line on stdout, for programs. Pure: events in, bytes out, and back.

Every object has ``v`` (1, risen with every change over which a reader would stumble, as new events and new fields are
not), ``event``, and ``at`` (seconds on a monotonic clock: for differences only). The rest are the fields of the event,
as ``docs/reference/json.md`` and the schema tell them, but for

- ``output``: there is an object for each of its lines, with ``text``, the line without its end, in place of ``data``;
  bytes that are not UTF-8 are replaced. A line of over 16 MiB comes in parts, all but the last with ``piece``.
  What a terminal, or Python's ``splitlines``, would take for more than text is escaped (``\u2028``, ``\u009b``).
- ``run-started``: its token stays here. Who knows it could forge logging records.
"""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec

from ..events import Event, Output, RunStarted

VERSION = 1
OUTPUT = "A line that a rank printed. Of lines that redraw themselves with `\\r`, the last state."
"""What ``output`` is here, where it is one line."""
_encoder = msgspec.json.Encoder()
_WILD = re.compile(rb"\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")
"""The control characters that JSON leaves as they are, and two more ends of lines, in UTF-8."""
_HIDDEN = ("log_token",)
_EVENTS: dict[str, Any] = {str(event.__struct_config__.tag): event for event in get_args(Event)}


def json_lines(event: Event) -> bytes:
    """The event as one line of JSON; an ``Output`` as one for each of its lines."""
    if isinstance(event, Output):
        return _output_lines(event)
    fields = msgspec.to_builtins(event)
    fields = {"v": VERSION, "event": fields.pop("type"), **fields}
    for name in _HIDDEN:
        fields.pop(name, None)
    return _encode(fields)


def read_line(line: bytes | str) -> Event | None:
    """The event of a line; ``None`` for an event that this version does not know.

    Raises:
        ValueError: it is no such line, or one of another version of the format.
    """
    fields = msgspec.json.decode(line)
    if not isinstance(fields, dict) or fields.get("v") != VERSION:
        raise ValueError(f"this is no event in version {VERSION} of the format: {line[:80]!r}")
    tag = fields.pop("event", None)
    event = _EVENTS.get(tag) if isinstance(tag, str) else None
    if event is None:
        return None
    if event is Output:
        end = "" if fields.get("piece") else "\n"
        fields["data"] = f"{fields.pop('text', '')}{end}".encode()
    elif event is RunStarted:
        fields["log_token"] = ""
    told: Event = msgspec.convert({"type": tag, **fields}, event)
    return told


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a line."""
    (union,), parts = msgspec.json.schema_components([Event], ref_template="#/$defs/{name}")
    for event in _EVENTS.values():
        part = parts[event.__name__]
        fields = part["properties"]
        tag = fields.pop("type")["enum"][0]
        if event is Output:
            fields["text"] = {"type": "string"}
        for name in {*_HIDDEN, "data"} & fields.keys():
            del fields[name]
        part["properties"] = {"v": {"const": VERSION}, "event": {"const": tag}, **fields}
        part["required"] = ["v", "event", *(name for name in part["required"] if name in fields)]
        if event is Output:
            part["required"].append("text")
            part["description"] = OUTPUT
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An event of zlaunch, as --view json writes it",
        "anyOf": union["anyOf"],
        "$defs": parts,
    }


def _output_lines(event: Output) -> bytes:
    fields: dict[str, object] = {
        "v": VERSION,
        "event": "output",
        "at": event.at,
        "run": event.run,
        "rank": event.rank,
        "local_rank": event.local_rank,
        "hostname": event.hostname,
        "stream": event.stream,
    }
    if event.piece:
        fields["piece"] = True
    start = _encode(fields)[:-2] + b',"text":'
    lines = event.data.removesuffix(b"\n").split(b"\n")
    return _escaped(b"".join(start + _encoder.encode(line.decode(errors="replace")) + b"}\n" for line in lines))


def _encode(fields: dict[str, object]) -> bytes:
    try:
        return _escaped(_encoder.encode(fields) + b"\n")
    except UnicodeEncodeError:  # a lone surrogate: a record's message, or a file's name that is not UTF-8
        return _escaped(_encoder.encode(_clean(fields)) + b"\n")


def _escaped(data: bytes) -> bytes:
    if b"\xc2" in data or b"\xe2\x80" in data:
        return _WILD.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), data)
    return data


def _clean(value: object) -> object:
    if isinstance(value, dict):
        return {_clean(key): _clean(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(part) for part in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
