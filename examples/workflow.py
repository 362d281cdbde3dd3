"""One program, several steps, the same agents: train on all ranks, evaluate on 1, then sweep over two settings.

python examples/workflow.py                                                        # 4 ranks on this machine
python examples/workflow.py --hostnames node1 node2 node3 --workers-per-host 2     # 6 ranks on three, by ssh

Every step gets fresh processes, so that nothing of one step is left in the next. The setting that does not work raises
its own exception here, and the sweep goes on.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from train_digits import accuracy, network
from train_digits import train as train_epochs

from zlaunch.integrations.argparse import add_zlaunch_arguments, launcher_from_args

Weights = dict[str, torch.Tensor]


class BadSetting(Exception):
    """A learning rate that makes no sense."""


def train(lr: float, epochs: int) -> Weights:
    """Runs on every rank, its process group ready; the ranks' weights are the same in the end."""
    if lr <= 0:
        raise BadSetting(f"a learning rate of {lr} learns nothing")
    torch.manual_seed(0)
    model = DistributedDataParallel(network())
    train_epochs(model, epochs, lr, batch_size=32)
    return model.module.state_dict()


def evaluate(weights: Weights) -> float:
    """Runs on one rank."""
    assert dist.get_world_size() == 1
    model = network()
    model.load_state_dict(weights)
    return accuracy(model)


def main() -> None:
    """The workflow."""
    parser = argparse.ArgumentParser()
    add_zlaunch_arguments(parser)
    # What every rank of every step will import is imported once per host. (torch.optim brings torch._dynamo with it.)
    preload = ("torch", "torch._dynamo", "sklearn.datasets")
    parser.set_defaults(hostnames="local", workers_per_host=4, backend="gloo", preload=preload)
    with launcher_from_args(parser.parse_args()) as cluster:
        one = cluster.on(hosts=1, workers_per_host=1)

        ranks = cluster.run(train, lr=3e-3, epochs=8)
        weights = ranks[0]
        print(f"trained on {len(ranks)} ranks, evaluated on 1: accuracy {one.run(evaluate, weights)[0]:.4f}")

        for lr in (-1.0, 1e-2):
            try:
                weights = cluster.run(train, lr=lr, epochs=4).rank(0)
            except BadSetting as error:
                print(f"lr {lr}: {error} (said rank {error.__cause__.rank})")  # type: ignore[union-attr]
            else:
                print(f"lr {lr}: accuracy {one.run(evaluate, weights)[0]:.4f}")


if __name__ == "__main__":
    main()
