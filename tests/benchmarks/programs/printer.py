"""Benchmarks: a rank that prints lines which are all different, as a script. ``printer.py FOLDER LINES``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

rank = os.environ["RANK"]
Path(sys.argv[1], f"first.{rank}").write_text(repr(time.monotonic()))
for number in range(int(sys.argv[2])):
    print(f"<rank {rank} line {number:06d}>")
