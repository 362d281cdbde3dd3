"""A script whose ``main`` fails, in the way that torchrun's users write it: with ``@record`` around it.

    zlaunch run -n 4 examples/record_error.py
    torchrun --nproc-per-node 4 examples/record_error.py     # the same file

``@record`` is for a launcher that sees of its ranks no more than their exit status: it writes the exception into a file
whose name the launcher has set. zlaunch needs no such file: the exception of the rank that failed first, with its
traceback, is in its report, with ``@record`` and without. It can stay where it is.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record


class BadLoss(Exception):
    """What this training ends with."""


def train(rank: int, culprit: int) -> None:
    """A step of training, which goes wrong on one rank; the others wait for it."""
    loss = torch.tensor(float("nan") if rank == culprit else 0.5)
    if loss.isnan():
        raise BadLoss(f"the loss on rank {rank} is {loss:.1f}")
    dist.all_reduce(loss)
    print(f"rank {rank}: the ranks' losses add up to {loss:.1f}")


@record
def main() -> None:
    """Train, and fail on the rank that is asked for; on none of -1."""
    parser = argparse.ArgumentParser(description="Fail on one rank.")
    parser.add_argument("--culprit", type=int, default=1)
    culprit = parser.parse_args().culprit
    dist.init_process_group("gloo")
    train(dist.get_rank(), culprit)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
