"""A program: a slow wire between a host and the switch, for kernels without netem.

Frames that the host sends are read from the switch's end of its cable (a packet socket), those for it from a tap in the
bridge that stands in for that end; each is passed on after the delay, in order, or is lost. It leaves its parent, says
its pid and ``up``, and ends, its tap with it, when its standard input does.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress

import kernel  # type: ignore[import-not-found]  # as a program this file finds its neighbours so

TUNSETIFF, TAP, NO_HEADER = 0x400454CA, 0x0002, 0x1000
RECEIVE_BUFFER = 33  # SO_RCVBUFFORCE: a burst is as long as the delay
ALL_KINDS = 3  # ETH_P_ALL
AT_ONCE = 64  # frames read from one side before the other is looked at


class Lane:
    """One direction: frames wait here until their time has come."""

    def __init__(self, delay: float, loss: float) -> None:
        self.delay, self.loss = delay, loss
        self.frames: deque[tuple[float, bytes]] = deque()

    def put(self, frame: bytes) -> None:
        if random.random() >= self.loss:
            self.frames.append((time.monotonic() + self.delay, frame))

    def due(self, now: float) -> list[bytes]:
        frames = []
        while self.frames and self.frames[0][0] <= now:
            frames.append(self.frames.popleft()[1])
        return frames


def open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP | NO_HEADER))
    return tap


def open_cable(name: str) -> socket.socket:
    cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    cable.setsockopt(socket.SOL_SOCKET, RECEIVE_BUFFER, 8 << 20)
    cable.bind((name, ALL_KINDS))
    cable.setblocking(False)
    return cable


def relay(tap: int, cable: socket.socket, delay: float, loss: float) -> None:
    out, back = Lane(delay, loss), Lane(delay, loss)
    while True:
        heads = [lane.frames[0][0] for lane in (out, back) if lane.frames]
        wait = max(0.0, min(heads) - time.monotonic()) if heads else None
        ready, _, _ = select.select([0, tap, cable.fileno()], [], [], wait)
        if 0 in ready and not os.read(0, 64):
            return
        with suppress(BlockingIOError):
            for _ in range(AT_ONCE if tap in ready else 0):
                back.put(os.read(tap, 65536))
        with suppress(BlockingIOError):
            for _ in range(AT_ONCE if cable.fileno() in ready else 0):
                frame, address = cable.recvfrom(65536)
                if address[2] != socket.PACKET_OUTGOING:  # what we sent comes by here, too
                    out.put(frame)
        now = time.monotonic()
        for frame in out.due(now):
            with suppress(OSError):
                os.write(tap, frame)
        for frame in back.due(now):
            with suppress(OSError):  # its queue is full, or the link is down: a wire loses the frame
                cable.send(frame)


def main() -> None:
    options = json.loads(sys.argv[1])
    kernel.enter(options["net"])
    if os.fork():
        os._exit(0)
    os.setsid()
    os.write(1, f"{os.getpid()}\n".encode())
    tap, cable = open_tap(options["tap"]), open_cable(options["cable"])
    os.write(1, b"up\n")
    relay(tap, cable, options["delay_ms"] / 1e3, options["loss_percent"] / 100)


if __name__ == "__main__":
    main()
