"""Benchmarks, the floor under a step: ranks that are bare forks of a process which has torch imported.

``forks.py RANKS REPEAT none|gloo`` prints the seconds of each round as JSON. No launcher could be faster than this:
nothing is supervised, no output is taken, no environment is set. It must run with OMP_NUM_THREADS=1, to be forkable.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time

import torch.distributed as dist


def rank_main(rank: int, ranks: int, pipe: int, port: int | None) -> None:
    """What a rank does: perhaps meet the others, tell its number."""
    if port is not None:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
        dist.barrier()
        dist.destroy_process_group()
    os.write(pipe, bytes([rank]))


def one_round(ranks: int, gloo: bool) -> float:
    """Seconds for forking all ranks, having their numbers and seeing them end."""
    began = time.monotonic()
    with socket.socket() as kept:  # never listens, so rank 0's store can bind the same port
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("", 0))
        port = kept.getsockname()[1] if gloo else None
        reading, writing = os.pipe()
        children = []
        for rank in range(ranks):
            child = os.fork()
            if child == 0:
                try:
                    rank_main(rank, ranks, writing, port)
                finally:
                    os._exit(0)
            children.append(child)
        os.close(writing)
        numbers = b""
        while data := os.read(reading, ranks):
            numbers += data
        os.close(reading)
        for child in children:
            os.waitpid(child, 0)
    assert sorted(numbers) == list(range(ranks)), f"wrong results: {list(numbers)}"
    return time.monotonic() - began


def main() -> None:
    """Run the rounds."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    ranks, repeat, gloo = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "gloo"
    gc.freeze()
    print(json.dumps([one_round(ranks, gloo) for _ in range(repeat)]))


if __name__ == "__main__":
    main()
