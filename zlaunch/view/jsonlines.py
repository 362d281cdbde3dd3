r"""Level 4, view: ``--view json``: an object per line on stdout, for programs. Pure: events in, bytes out.

Every object has ``v`` (1, risen with every change that a reader would notice), ``event`` and ``at``
(seconds on a monotonic clock: for differences only). The rest, by ``event``:

- ``output``: ``run rank local_rank hostname stream`` (``out`` or ``err``) and ``text``, one printed line
  without its end; bytes that are not UTF-8 are replaced. A line of over 16 MiB comes in parts, all but the
  last with ``piece``.
- ``redrawn``: ``run rank local_rank hostname stream text``: what is visible of a line that redraws itself with
  ``\r``, every few seconds until it is finished and comes as ``output``.
- ``record``: a ``logging`` record: ``run rank local_rank hostname name level created message``, and where
  they are known ``handled exc_text pathname lineno func``.
- ``run-started``: ``run name hosts restart``; a host has ``index name workers``.
- ``rank-started``: ``run rank local_rank hostname pid``.
- ``rank-ended``: ``run fate``; a fate has ``rank local_rank hostname pid kind at exit_code signal
  out_of_memory stopped symptom text``.
- ``run-restarting``: ``run cause`` (a fate) ``restart max_restarts``.
- ``run-ended``: ``run outcome cause fates survivors``.
- ``agent-connected``: ``hostname facts``; ``agent-lost``: ``hostname reason``; ``notice``: ``level text
  hostname``.
"""

from __future__ import annotations

import msgspec

from ..events import Event, Output

VERSION = 1
_encoder = msgspec.json.Encoder()
_HIDDEN = ("log_token",)  # who knows it could forge records


def json_lines(event: Event) -> bytes:
    """The event as one line of JSON; an ``Output`` as one for each of its lines."""
    if isinstance(event, Output):
        return _output_lines(event)
    fields = msgspec.to_builtins(event)
    fields = {"v": VERSION, "event": fields.pop("type"), **fields}
    for name in _HIDDEN:
        fields.pop(name, None)
    return _encode(fields)


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
    start = _encoder.encode(fields)[:-1] + b',"text":'
    lines = event.data.removesuffix(b"\n").split(b"\n")
    return b"".join(start + _encoder.encode(line.decode(errors="replace")) + b"}\n" for line in lines)


def _encode(fields: dict[str, object]) -> bytes:
    try:
        return _encoder.encode(fields) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate in a record's message
        fields = {key: _clean(value) for key, value in fields.items()}
        return _encoder.encode(fields) + b"\n"


def _clean(value: object) -> object:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
