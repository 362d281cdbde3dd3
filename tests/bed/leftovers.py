"""What a bed writes down of itself, so that the next one can clear up after it was killed.

A bed's folder is called after the process that owns it: its pid and when it began. Networks and mounts end with their
processes; a host that was frozen when its owner died, cgroups and folders stay, and are found here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from .freezer import remove_cgroup
from .programs import BedError, started, until

PREFIX = "zlaunch-bed-"


def owner() -> str:
    return f"{os.getpid()}.{started(os.getpid())}"


def note(folder: Path, pid: int, cgroup: Path | None) -> None:
    """A host of this folder has this first process and cgroup."""
    (folder / "process").write_text(f"{pid} {started(pid)} {cgroup or ''}\n")


def sweep(parent: Path) -> None:
    """Clear up after all beds below this folder whose owner is dead."""
    for folder in parent.glob(f"{PREFIX}*"):
        pid, _, rest = folder.name.removeprefix(PREFIX).partition(".")
        began = rest.partition("-")[0]
        if not pid.isdigit() or not began.isdigit() or started(int(pid)) == int(began):
            continue
        for host in folder.glob("*/process"):
            with suppress(OSError, ValueError, TypeError):  # another bed may be at it, too
                _clear_host(*host.read_text().rstrip("\n").split(" ", 2))
        with suppress(OSError):  # the kernel is slower to remove it than we are
            interface = (folder / "interface").read_text()
            subprocess.run(["ip", "link", "del", interface], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _clear_host(pid: str, began: str, cgroup: str) -> None:
    there = started(int(pid)) == int(began) != 0
    if there:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    place = Path(cgroup) if cgroup else None
    if place and (place / "freezer.state").exists():  # version 1: who is frozen dies when thawed
        (place / "freezer.state").write_text("THAWED")
    with suppress(BedError, OSError):
        if there:
            until(lambda: started(int(pid)) != int(began) or _is_zombie(int(pid)), f"the end of {pid}", 5)
        remove_cgroup(place)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
