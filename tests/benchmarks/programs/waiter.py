"""Benchmarks: ranks that wait to be killed, as a script. ``waiter.py FOLDER none|gloo``."""

from __future__ import annotations

import os
import sys

from driver import wait_for_death

if sys.argv[2] == "gloo":
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
wait_for_death(sys.argv[1], sys.argv[2] == "gloo")
