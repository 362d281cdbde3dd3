"""Level 1, pure: the words for a failure, which the report on the console and Python's errors share.

Who failed, what it said last, what became of the others, and what to do next where that is known.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Sequence

from .events import Outcome
from .model import Fate, FateKind, signal_name
from .printable import printable

LAST_LINES = 10
"""Lines before a traceback that are shown."""
MORE_LAST_LINES = 20
"""Lines that are shown where there is no traceback."""
LONGEST_TRACE, WIDEST = 200, 2000
"""Lines of a traceback, and characters of a line, that are shown: the log file has the rest."""
KINDS = 6
"""Kinds of failures of other ranks that are told; of the rest only their number."""
LONGEST = 300
"""Characters of an exception's message in a heading."""

_FRAME = re.compile(r'^(?P<margin>[ |]*)File "(?P<path>[^"]*)", line \d+,? in ')
_OURS = re.compile(r"(?:^|/)zlaunch/worker/\w+\.py$|^<frozen (?:runpy|importlib\.\w+)>$")
_HEADER = "Traceback (most recent call last):"
_GROUP_HEADER = "  + Exception Group Traceback (most recent call last):"
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


# --- who, and what --------------------------------------------------------------------------------------------------


def who(fate: Fate) -> str:
    """``rank 2 (localhost, local rank 2, pid 41)``."""
    pid = f", pid {fate.pid}" if fate.pid else ", never started"
    return f"rank {fate.rank} ({fate.hostname}, local rank {fate.local_rank}{pid})"


def what(fate: Fate) -> str:
    """What happened to a rank: ``killed by SIGKILL``, ``raised ValueError: x``; of a loss what was said, in lines."""
    match fate.kind:
        case FateKind.RETURNED:
            return "returned"
        case FateKind.RAISED:
            return f"raised {heading(fate.text)}"
        case FateKind.UNPICKLABLE:
            return "could not be pickled"
        case FateKind.SIGNALED:
            name = signal_name(fate.signal or 0)
            if fate.out_of_memory:
                return f"killed by {name} (out of memory)"
            return f"ended by zlaunch with {name}" if fate.stopped else f"killed by {name}"
        case FateKind.EXITED:
            status = f"exited with status {fate.exit_code}"
            return status if fate.exit_code else f"{status} before it had given a result"
        case FateKind.LOST:
            first, *more = f"lost: {fate.text}".splitlines() if fate.text else ["lost"]
            return printable(first) + "".join(f"\n  {printable(line)}" for line in more)


def heading(text: str) -> str:
    """The line of a traceback's text that has the exception's type and its message's first line."""
    lines = text.rstrip().splitlines()
    start, margin = 0, ""
    for number, line in enumerate(lines):
        if line in (_HEADER, _GROUP_HEADER):
            start, margin = number + 1, "  | " if line == _GROUP_HEADER else ""
    bodies = [line.removeprefix(margin) for line in lines[start:]]
    found = next((body for body in bodies if body and not body[0].isspace()), "an exception")
    return printable(found if len(found) <= LONGEST else found[:LONGEST] + " …")


def exit_status(outcome: Outcome, cause: Fate | None) -> int:
    """The command line's: 0, the first failed rank's, 124 (time limit), 125 (a host was lost), 130 (cancelled)."""
    match outcome:
        case "succeeded":
            return 0
        case "timed out":
            return 124
        case "cancelled":
            return 130
        case "lost":
            return cause.status if cause else 125
        case "failed":
            return (cause.status or 1) if cause else 1


def seconds(time: float) -> str:
    """A span of time as it is read: ``40 ms``, ``1.24 s``, ``12.3 s``, ``2 h 03 min``."""
    if time < 0.1:
        return f"{time * 1000:.0f} ms"
    if time < 60:
        return f"{time:.2f} s" if time < 10 else f"{time:.1f} s"
    minutes, rest = divmod(round(time), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


# --- what it said ---------------------------------------------------------------------------------------------------


def without_our_frames(lines: Iterable[str]) -> list[str]:
    """A traceback's lines, Python's or faulthandler's, without the frames that led from zlaunch to the user's code."""
    kept: list[str] = []
    inside: str | None = None  # the margin of a frame of ours, below which its source is
    for line in lines:
        frame = _FRAME.match(line)
        if frame is not None:
            entry = inside is not None and frame["path"] == "<string>"  # of the process, below all of ours
            inside = frame["margin"] if entry or _OURS.search(frame["path"]) else None
        elif inside is not None and not line.startswith(inside + "  "):
            inside = None
        if inside is None and not line.startswith("Extension modules: "):
            kept.append(line)
    following = [*kept[1:], ""]
    return [line for line, after in zip(kept, following, strict=False) if line != _HEADER or after[:1].isspace()]


def last_words(fate: Fate, last_output: Sequence[str]) -> list[str]:
    """The last lines that a rank printed, then its traceback, as they can be shown anywhere."""
    trace = fate.text.rstrip().splitlines() if fate.kind in (FateKind.RAISED, FateKind.UNPICKLABLE) else []
    before = without_our_frames(_without(list(last_output), trace))
    lines = before[-LAST_LINES:] if trace else before[-_enough(before) :]
    shown = [_cut(printable(line).rstrip()) for line in [*lines, *_middle_left_out(without_our_frames(trace))]]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def _middle_left_out(lines: list[str]) -> list[str]:
    """A traceback as long as anybody reads; a message may have any number of lines."""
    if len(lines) <= LONGEST_TRACE:
        return lines
    half = LONGEST_TRACE // 2
    return [*lines[:half], f"… ({len(lines) - 2 * half} lines)", *lines[-half:]]


def _cut(line: str) -> str:
    return line if len(line) <= WIDEST else f"{line[:WIDEST]} … ({len(line)} characters)"


def _without(lines: list[str], trace: list[str]) -> list[str]:
    """The lines without the traceback, which is among the last of them, and whose beginning may be there no more."""
    for end in range(len(lines), 0, -1):
        size = 0
        while size < min(end, len(trace)) and lines[end - 1 - size].rstrip() == trace[-1 - size].rstrip():
            size += 1
        if size and (size == len(trace) or size == end):
            return lines[: end - size] + lines[end:]
    return lines


def _enough(lines: list[str]) -> int:
    """How many of the last lines to show: what faulthandler wrote is shown whole."""
    for back, line in enumerate(reversed(lines), 1):
        if line.startswith("Fatal Python error: "):
            return max(back + 5, MORE_LAST_LINES)
    return MORE_LAST_LINES


# --- the others -----------------------------------------------------------------------------------------------------


def others(cause: Fate | None, fates: Iterable[Fate]) -> list[str]:
    """What became of the other ranks, a line per kind: first those that failed, then those that were ended."""
    rest = [fate for fate in fates if cause is None or not (fate.rank == cause.rank or same_loss(fate, cause))]
    kinds: dict[tuple[int, str, str], list[Fate]] = {}
    for fate in sorted(rest, key=lambda fate: fate.at):
        kinds.setdefault(_kind(fate), []).append(fate)
    lines: list[str] = []
    failed = [kind for kind in kinds if kind[0] == 0]
    for kind in sorted(kinds, key=lambda kind: kind[0]):
        if kind[0] or kind in failed[:KINDS]:
            lines.append(_told(kind, kinds[kind], cause))
        elif kind == failed[KINDS]:
            lines.append(f"{sum(len(kinds[more]) for more in failed[KINDS:])} more ranks failed in other ways")
    return lines


def same_loss(fate: Fate, cause: Fate) -> bool:
    """Whether a rank was lost with the one that is the cause."""
    return cause.kind is FateKind.LOST and (fate.kind, fate.hostname, fate.text) == (
        cause.kind,
        cause.hostname,
        cause.text,
    )


def _kind(fate: Fate) -> tuple[int, str, str]:
    """Where the line of such fates comes, and its words for one rank and for several."""
    if fate.ok:
        return 2, "had done its part", "had done their part"
    if not fate.pid and (fate.stopped or fate.kind is not FateKind.LOST):
        return 3, "had not started", "had not started"
    if fate.symptom:
        return 1, "failed because a peer was gone", "failed because a peer was gone"
    if fate.stopped and fate.kind is FateKind.SIGNALED:
        words = f"ended by zlaunch with {signal_name(fate.signal or 0)}"
        return 1, f"was {words}", f"were {words}"
    if fate.stopped:
        return 1, f"{what(fate)} when zlaunch ended it", f"{what(fate)} when zlaunch ended them"
    if fate.kind is FateKind.LOST:
        return 0, f"({fate.hostname}) was {what(fate)}", f"({fate.hostname}) were {what(fate)}"
    if fate.kind is FateKind.SIGNALED:
        return 0, f"was {what(fate)}", f"were {what(fate)}"
    return 0, what(fate), what(fate)


def _told(kind: tuple[int, str, str], fates: list[Fate], cause: Fate | None) -> str:
    order, one, many = kind[0], kind[1].partition("\n")[0], kind[2].partition("\n")[0]
    if order:
        return f"1 rank {one}" if len(fates) == 1 else f"{len(fates)} ranks {many}"
    ranks = ", ".join(str(fate.rank) for fate in fates[:8]) + (f" and {len(fates) - 8} more" if len(fates) > 8 else "")
    words = f"rank {ranks} {one}" if len(fates) == 1 else f"ranks {ranks} {many}"
    if cause is None:
        return words
    first = "" if len(fates) == 1 else "the first "
    return f"{words}, {first}{seconds(max(0.0, fates[0].at - cause.at))} later"


# --- what to do next ------------------------------------------------------------------------------------------------


def advice(fate: Fate, last_output: Sequence[str]) -> str:
    """What to do next, where that is known; empty where the rank's own words say it better."""
    for fits, words in _ADVICE:
        if fits(fate, last_output):
            return words.format(host=fate.hostname)
    return ""


def _crashed(fate: Fate, last_output: Sequence[str]) -> bool:
    return fate.signal in _CRASHES


def _has_stack(fate: Fate, last_output: Sequence[str]) -> bool:
    return any(line.startswith("Fatal Python error: ") for line in last_output)


_ADVICE: tuple[tuple[Callable[[Fate, Sequence[str]], bool], str], ...] = (
    (
        lambda fate, _: fate.out_of_memory,
        "the kernel ended it for want of memory: use fewer ranks on {host}, a smaller batch, or a larger limit",
    ),
    (
        lambda fate, last: _crashed(fate, last) and _has_stack(fate, last),
        "it crashed in native code: the stack above is where Python was when it called that",
    ),
    (_crashed, "it crashed in native code: coredumpctl, or a debugger, shows where"),
    (
        lambda fate, _: fate.signal == signal.SIGABRT,
        "native code gave up by abort(): its last lines say why",
    ),
    (
        lambda fate, _: fate.signal == signal.SIGKILL,
        "not zlaunch but something else on {host} sent that signal: a person, a scheduler, or a limit of its container",
    ),
    (
        lambda fate, _: fate.kind is FateKind.SIGNALED,
        "not zlaunch but another process on {host}, or the program itself, sent that signal",
    ),
    (
        lambda fate, _: fate.symptom,
        "it waited for a peer that was gone or too slow: look at what the other ranks printed last, in their log files",
    ),
    (
        lambda fate, _: fate.kind is FateKind.LOST and not fate.launcher and fate.hostname != "localhost",
        "see whether {host} is up and can be reached; a run can go on without it (--hosts, hostnames)",
    ),
)
