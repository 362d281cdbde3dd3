"""Benchmarks: a terminal whose other end is a file. ``terminal.py FILE COMMAND...``; its status is the command's."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress

ours, screen = pty.openpty()
termios.tcsetwinsize(screen, (50, 120))
environ = {**os.environ, "TERM": "xterm-256color"}
running = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=screen, stderr=screen, env=environ)
os.close(screen)
with open(sys.argv[1], "wb", buffering=0) as file, suppress(OSError):  # EIO: nobody has the terminal any more
    while data := os.read(ours, 1 << 20):
        file.write(data)
sys.exit(running.wait())
