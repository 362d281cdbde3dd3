"""A launcher's fields on a script's own command line, by argparse."""

import os
from argparse import ArgumentParser

from zlaunch.integrations.argparse import add_torchrunx_argument_group, launcher_from_args


def work(lr: float) -> tuple[str, str, float, str | None]:
    """What the command line asked for."""
    import torch.distributed as dist

    backend = dist.get_backend() if dist.is_initialized() else "none"
    return os.environ["RANK"], backend, lr, os.environ.get("A")


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    add_torchrunx_argument_group(parser)
    args = parser.parse_args()
    for value in launcher_from_args(args).run(work, args.lr):
        print(*value)
