"""Several functions in one script: stages of different width, each in processes of its own."""

import os

import torch
from torch import nn

import zlaunch as torchrunx

hoard: list[torch.Tensor] = []


def pretrain() -> nn.Module:
    """Leaks memory, as stages do."""
    hoard.append(torch.ones(1_000_000))
    return nn.Linear(2, 1)


def finetune(model: nn.Module) -> nn.Module:
    """Knows nothing of what the first stage leaked."""
    assert not hoard
    with torch.no_grad():
        model.weight.fill_(0.5)
    return model


def evaluate(model: nn.Module) -> float:
    """On one rank."""
    assert os.environ["WORLD_SIZE"] == "1"
    return float(model.weight.sum().item())


if __name__ == "__main__":
    train_launcher = torchrunx.Launcher(hostnames=["localhost"], workers_per_host=2, backend="gloo")
    eval_launcher = torchrunx.Launcher(hostnames=["localhost"], workers_per_host=1, backend="gloo")

    pretrained = train_launcher.run(pretrain).rank(0)
    finetuned = train_launcher.run(finetune, model=pretrained).rank(0)
    print(f"fine-tuned: {eval_launcher.run(evaluate, model=finetuned).rank(0)}")
