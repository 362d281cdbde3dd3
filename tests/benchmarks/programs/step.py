"""Benchmarks: a step as a script, for torchrun. ``step.py none|gloo``."""

from __future__ import annotations

import os
import sys

import torch.distributed as dist

if sys.argv[1] == "gloo":
    dist.init_process_group("gloo")
    dist.barrier()
    assert dist.get_rank() == int(os.environ["RANK"])
    dist.destroy_process_group()
