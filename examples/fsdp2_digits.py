"""Train with torch's FSDP2: every rank keeps a share of each layer's weights, gradients and optimizer state.

zlaunch run -n 4 --preload torch,torch.distributed.fsdp examples/fsdp2_digits.py
torchrun --nproc-per-node 4 examples/fsdp2_digits.py          # the same file
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler
from train_digits import digits


def network() -> nn.Sequential:
    """Three layers, each of which is a share of its own."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def main() -> None:
    """Train; then let the ranks count together how many test digits are told right."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = network()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    data = digits(test=False)
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data, seed=0)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        for images, labels in DataLoader(data, batch_size=32, sampler=sampler):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    images, labels = digits(test=True).tensors
    with torch.no_grad():  # all ranks together: each has a part of the weights only
        accuracy = float((model(images).argmax(dim=1) == labels).float().mean())
    here = sum(parameter.to_local().numel() for parameter in model.parameters())
    everywhere = torch.tensor(here)
    dist.all_reduce(everywhere)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert everywhere == whole, f"{everywhere} of {whole} weights are kept"
    print(f"rank {dist.get_rank()} keeps {here} of {whole} weights")
    if dist.get_rank() == 0:
        print(f"FSDP2 on {dist.get_world_size()} ranks: test accuracy {accuracy:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
