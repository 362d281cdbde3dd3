"""Level 6: ``zlaunch logs`` of a run: from its files where this machine sees them, else as it tells over the wire."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Iterator

from ..registry import runs
from ..registry.runs import RunEntry
from ..surroundings import say
from ..view.files import rank_file
from .doorbell import reader_to_watch
from .grammar import UsageError
from .logs import LOOK_EVERY, MISSING, PIECE, PLACE, Tail
from .queues import printable

ASK_EVERY = 1.0
"""Seconds between looks whether a run of another machine goes on."""


def logs_of_run(entry: RunEntry, rank: str | None, *, follow: bool) -> int:
    """Print what it has printed; returns the exit status.

    Raises:
        UsageError: there is no such rank, or there are no files that this machine sees.
        LinkError: there are none, and the run does not answer.
        OSError: a file cannot be read.
    """
    place = None if rank is None else PLACE.fullmatch(rank)
    if rank is not None and place is None:
        raise UsageError(f"logs: --rank: expected a number, or HOST:LOCAL_RANK, not {rank!r}")
    number, file = (None, entry.console) if place is None else _rank_of(entry, place)
    visible = bool(entry.log_folder) and (os.path.isdir(entry.log_folder) or runs.whereabouts(entry.place) == "here")
    if file and visible:
        return _copy(entry, file, follow=follow)
    if follow or not visible:
        if entry.ended:
            what = "wrote no log files" if not entry.log_folder else f"wrote to {entry.log_folder}, which is not here"
            raise UsageError(f"run {entry.run} has ended, and {what}")
        if not follow:
            raise UsageError(
                f"the log files of run {entry.run} cannot be seen from here", "with -f it tells what it prints"
            )
        from .attach import attach

        return attach(entry, "plain", None if number is None else str(number))
    return _all(entry)


def _rank_of(entry: RunEntry, place: re.Match[str]) -> tuple[int, str]:
    """A rank's number, and the path of its file."""
    first = 0
    for host, ranks in entry.hosts:
        local = int(place["local"]) if place["host"] == host else int(place["rank"] or -1) - first
        if (place["host"] == host and local < ranks) or (place["rank"] and 0 <= local < ranks):
            return first + local, rank_file(entry.log_folder, host, local) if entry.log_folder else ""
        first += ranks
    raise UsageError(f"run {entry.run} has no rank {place[0]}: there are {entry.size}, from 0")


def _copy(entry: RunEntry, path: str, *, follow: bool) -> int:
    """One file, to stdout."""
    tail = Tail(lambda: path, sys.stdout.buffer, whole_lines=follow)
    poll = select.poll()
    if (reader := reader_to_watch(1)) is not None:
        poll.register(reader, 0)
    state = _state(entry)
    while follow and not state:
        tail.copy()
        if poll.poll(LOOK_EVERY * 1000):
            raise BrokenPipeError
        state = _state(entry)
    tail.copy(last=True)
    if follow:
        say(f"run {entry.run} has ended" + (f": {printable(state)}" if state != "ended" else ""))
    if tail.found:
        return 0
    say(f"nothing has been written to {printable(path)}" + (" yet" if not state else ""))
    return MISSING if state else 0


def _state(entry: RunEntry) -> str:
    """How it has ended, if it has."""
    found = next((one for one in runs.look().runs if one.run == entry.run), None)
    if found is None:
        return "ended"
    return found.state if found.ended else ""


def _all(entry: RunEntry) -> int:
    """The files of all ranks, one after the other; what is whose stands before each line."""
    anything = False
    for rank, path in _files(entry):
        try:
            with open(path, "rb") as file:
                anything = True
                start, rest = b"[rank %d] " % rank, b""
                while piece := file.read(PIECE):
                    whole, end, rest = (rest + piece).rpartition(b"\n")
                    if end:
                        sys.stdout.buffer.write(start + whole.replace(b"\n", b"\n" + start) + end)
                if rest:
                    sys.stdout.buffer.write(start + rest + b"\n")
        except FileNotFoundError:
            continue  # it has not said anything
    sys.stdout.buffer.flush()
    if not anything:
        say(f"run {entry.run} has printed nothing yet")
    return 0


def _files(entry: RunEntry) -> Iterator[tuple[int, str]]:
    rank = 0
    for host, ranks in entry.hosts:
        for local in range(ranks):
            yield rank, rank_file(entry.log_folder, host, local)
            rank += 1
