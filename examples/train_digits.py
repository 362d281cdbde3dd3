"""Train a classifier of handwritten digits on every rank, with DistributedDataParallel.

    zlaunch run -n 4 examples/train_digits.py

The data are the 1,797 digits of 8 x 8 pixels that scikit-learn ships. This is an ordinary torch.distributed script:
the same file runs under torchrun.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def digits(test: bool) -> TensorDataset:
    """The training digits, or every fifth, which no rank trains on. Pixels from 0 to 1."""
    data = load_digits()
    images = torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target)
    chosen = torch.arange(len(labels)) % 5 == 0
    chosen = chosen if test else ~chosen
    return TensorDataset(images[chosen], labels[chosen])


def network() -> nn.Module:
    """A small convolutional network for 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(model: nn.Module, epochs: int, lr: float, batch_size: int) -> None:
    """Train on this rank's share of the digits; the ranks' gradients are averaged at every step."""
    data = digits(test=False)
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data, shuffle=True, seed=0)
    loader = DataLoader(data, batch_size=batch_size, sampler=sampler)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros(2)
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += torch.tensor([loss.item() * len(labels), float(len(labels))])
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}: loss {total[0] / total[1]:.4f}")


def accuracy(model: nn.Module) -> float:
    """The share of test digits that are told right."""
    images, labels = digits(test=True).tensors
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())


def main() -> None:
    """Train, and let rank 0 say how well."""
    parser = argparse.ArgumentParser(description="Train on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch-size", type=int, default=32, help="per rank")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(network())
    train(model, options.epochs, options.lr, options.batch_size)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()} is done")
    if dist.get_rank() == 0:
        print(f"test accuracy: {accuracy(model.module):.4f}")
    del model  # before the group: what DistributedDataParallel holds of it may hang where it is the last to go
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
