"""A program: daemons of the bed that belong to the head, Slurm's controller for one, held by a process of their own.

It leaves its parent, says its pid, starts the commands one after another (each must go to the background once it can be
used), says ``up``, and ends with all of them when its standard input does: it is the first process of a pid namespace.
The network is this machine's, the name is ``head``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import kernel  # type: ignore[import-not-found]  # as a program this file finds its neighbours so


def hold(options: dict[str, Any]) -> None:
    os.setsid()
    socket.sethostname(options["name"])
    kernel.mount("none", "/", flags=kernel.RECURSIVE | kernel.PRIVATE)
    kernel.mount("proc", "/proc", "proc")
    kernel.mount(options["hosts"], "/etc/hosts", flags=kernel.BIND)  # this machine's does not know us by that name
    for argv in options["commands"]:
        subprocess.run(argv, check=True, env=options["environ"], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the orphans that come to us
    os.write(1, b"up\n")
    while os.read(0, 64):
        pass


def main() -> None:
    options = json.loads(sys.argv[1])
    kernel.unshare(kernel.NEW_MOUNTS | kernel.NEW_NAMES | kernel.NEW_PIDS)
    named, tell = os.pipe()
    if pid := os.fork():
        os.write(1, f"{pid}\n".encode())
        os._exit(0)
    os.close(tell)
    os.read(named, 1)  # until our number is told, which only the other one knows: "up" comes after it
    os.close(named)
    hold(options)


if __name__ == "__main__":
    main()
