"""Level 4, worker: a rank that is an interpreter of its own, started by the template's fork and an exec.

Everything about its process was done before the exec; ``argv[1]`` has the seat and the descriptors.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import msgspec

from ..link.memory import map_fd
from ..model import Seat, Step
from ..protocol.envelope import unpack
from .host import Host
from .rank import live


def main() -> NoReturn:
    """Run the rank's task, and end."""
    own_path = tuple(sys.path)
    seat, letter, answer, meeting = msgspec.json.decode(sys.argv[1], type=tuple[Seat, int, int, int])
    os.set_inheritable(answer, False)
    os.set_inheritable(meeting, False)
    frames = unpack(map_fd(letter))
    os.close(letter)
    step = msgspec.msgpack.decode(frames.pop(0), type=Step)
    host = Host({"HOME": os.getcwd()}, own_path)  # where the step's folder is not, we were brought home before the exec
    live(step, seat, host, frames, (answer, meeting))
