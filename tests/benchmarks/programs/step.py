"""Benchmarks: a step as a script, for torchrun. ``step.py none|gloo [FOLDER]``; there it says when all had met."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

if sys.argv[1] == "gloo":
    dist.init_process_group("gloo")
    dist.barrier()
    if sys.argv[2:]:
        Path(sys.argv[2], f"met.{dist.get_rank()}").write_text(repr(time.monotonic()))
    assert dist.get_rank() == int(os.environ["RANK"])
    dist.destroy_process_group()
