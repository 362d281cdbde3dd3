"""Level 1, pure: what programs print, made fit to stand among other text.

A rank may print anything: codes that clear the screen or move the cursor, half of a character, text that runs from
right to left. Files get the bytes as they are. Where a line stands in text of ours, or on a terminal that it shares
with others, it may do no more than be a line.
"""

from __future__ import annotations

import re

_TEXT_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, the cursor, erasing
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS...: titles, links
    r"|\x1b[ -/]*[0-~]?"  # the short ones: reset, character sets
)
_TEXT_CONTROL = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f"  # C0 without the tab; C1
    "\u200e\u200f\u2028-\u202e\u2066-\u2069]"  # directions, and Unicode's own line ends
)
_COLOUR = rb"\x1b\[[0-9;:]*m"
_BYTES = re.compile(
    rb"(" + _COLOUR + rb")"
    rb"|(?:\x1b\[|\xc2\x9b)[0-?]*[ -/]*[@-~]"
    rb"|(?:\x1b[\]PX^_]|\xc2[\x90\x98\x9d-\x9f])[^\x07\x1b\n]*(?:\x07|\x1b\\)?"
    rb"|\x1b[ -/]*[0-~]?"
    rb"|\xc2[\x80-\x9f]"
    rb"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r")) + b"\x7f"
_C1 = re.compile(rb"\xc2[\x80-\x9f]")
_COLOURED = re.compile(rb"(?m)^(.*" + _COLOUR + rb".*)$")
RESET = b"\x1b[0m"


def printable(line: str) -> str:
    """A line without its colours and other codes; of one that redraws itself with ``\\r``, the last state."""
    body = line.rstrip("\r\n")
    body = _TEXT_SEQUENCE.sub("", body[body.rfind("\r") + 1 :])
    return _TEXT_CONTROL.sub("\ufffd", body)


def harmless(data: bytes) -> bytes:
    """Whole lines for a terminal: their colours stay, and end with the line; what else a terminal obeys is gone."""
    # a gigabyte a second for what most lines are, where a regular expression reads 40 megabytes
    if len(data.translate(None, _CONTROLS)) == len(data) and not (b"\xc2" in data and _C1.search(data)):
        return data
    data = _BYTES.sub(lambda found: found[1] or b"", data)
    return _COLOURED.sub(lambda found: found[1] + RESET, data) if b"\x1b" in data else data
