"""Stopping all processes of a host at once: by a cgroup of version 2 or 1, or by SIGSTOP where there is neither."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from .programs import inhabitants, until


def new_cgroup(name: str) -> Path | None:
    """A cgroup with a freezer, below our own, or None where this machine lets us have none."""
    for place in _places():
        cgroup = place / name
        with suppress(OSError):
            cgroup.mkdir()
            if any((cgroup / switch).exists() for switch in ("cgroup.freeze", "freezer.state")):
                return cgroup
            cgroup.rmdir()
    return None


def _places() -> list[Path]:
    """Where our own cgroups are: version 2 first, then the freezer of version 1."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    places: list[Path] = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup2" and "" in own:
            places.insert(0, Path(folder + own[""]))
        elif kind == "cgroup" and "freezer" in options.split(",") and "freezer" in own:
            places.append(Path(folder + own["freezer"]))
    return places


def remove_cgroup(cgroup: Path | None) -> None:
    if cgroup is not None and cgroup.exists():
        until(lambda: not (cgroup / "cgroup.procs").read_text(), f"{cgroup} is empty")
        cgroup.rmdir()


def freeze(cgroup: Path | None, first: int, stop: bool) -> None:
    """Stop or continue all processes of the host whose first process this is; it returns when they are."""
    if cgroup is None:
        _signal_all(first, stop)
    elif (cgroup / "cgroup.freeze").exists():
        (cgroup / "cgroup.freeze").write_text(str(int(stop)))
        until(lambda: f"frozen {int(stop)}" in (cgroup / "cgroup.events").read_text(), f"{cgroup} frozen: {stop}")
    else:
        state = "FROZEN" if stop else "THAWED"
        (cgroup / "freezer.state").write_text(state)
        until(lambda: (cgroup / "freezer.state").read_text().strip() == state, f"{cgroup} {state}")


def _signal_all(first: int, stop: bool) -> None:
    """Stopped ones fork no more: a look that finds all stopped has seen all."""
    number = signal.SIGSTOP if stop else signal.SIGCONT

    def done() -> bool:
        pids = [first, *(one.pid_here for one in inhabitants(first))]
        wrong = [pid for pid in pids if _is_stopped(pid) != stop]
        for pid in wrong:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return not wrong

    until(done, f"processes of {first} stopped: {stop}")


def _is_stopped(pid: int) -> bool | None:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except (FileNotFoundError, ProcessLookupError):
        return None
