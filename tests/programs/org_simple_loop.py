"""torchrunx's first example: a training loop on every rank, the trained weights come back."""

import os

import torch
import torch.distributed as dist
from torch import nn

import zlaunch as torchrunx


def train(model: nn.Module, num_steps: int) -> dict[str, torch.Tensor] | None:
    """Every rank has its own batch; their gradients are averaged."""
    rank = int(os.environ["RANK"])
    assert dist.is_initialized()
    assert int(os.environ["LOCAL_RANK"]) == rank == dist.get_rank()
    assert int(os.environ["WORLD_SIZE"]) == int(os.environ["LOCAL_WORLD_SIZE"]) == dist.get_world_size() == 2

    torch.manual_seed(rank)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    for step in range(num_steps):
        optimizer.zero_grad()
        inputs = torch.randn(8, 4)
        loss = nn.functional.mse_loss(parallel(inputs), inputs.sum(dim=1, keepdim=True))
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")

    both = [torch.empty(1, 4) for _ in range(2)]
    dist.all_gather(both, parallel.module.weight.detach())
    assert torch.equal(*both), "the ranks have the same weights"
    return parallel.module.state_dict() if rank == 0 else None


if __name__ == "__main__":
    launcher = torchrunx.Launcher(hostnames=["localhost"], workers_per_host=2, backend="gloo")
    results: torchrunx.LaunchResult = launcher.run(train, nn.Linear(4, 1), num_steps=5)
    weights = results.rank(0)
    assert results.rank(1) is results.index("localhost", 1) is None
    assert list(results.results) == ["localhost"]
    torch.save(weights, "output.pth")
    print("saved", sorted(torch.load("output.pth")))
