"""What ranks on other hosts do in the tests. Light: hosts import it by its path."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy


def here() -> tuple[str, int, int]:
    """Host, rank and world size."""
    return socket.gethostname(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def umask() -> int:
    """What modes our files lack."""
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


def stay(deaf: bool = False) -> None:
    """Say who we are, and stay; ``deaf`` to SIGTERM."""
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("here", os.environ["RANK"], os.getpid(), flush=True)
    time.sleep(600)


def environment(*names: str) -> dict[str, str | None]:
    """What a rank finds."""
    return {name: os.environ.get(name) for name in names}


def whereabouts() -> tuple[str, str]:
    """Interpreter and working directory."""
    return sys.executable, os.getcwd()


def parent() -> tuple[str, int]:
    """Host, and pid of the agent (the template's parent)."""
    stat = Path(f"/proc/{os.getppid()}/stat").read_text()
    return socket.gethostname(), int(stat.rpartition(")")[2].split()[1])


def double(data: bytes) -> bytes:
    """As much comes back as went there."""
    return data[::-1]


def negative(array: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """An array as large as the one that came, in its memory."""
    import numpy

    return numpy.negative(array, out=array)


def talk(lines: int) -> int:
    """Print a lot."""
    for number in range(lines):
        print(f"{os.environ['RANK']}:{number} {'x' * 100}")
    return lines
