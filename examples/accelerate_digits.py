"""Train on handwritten digits with Hugging Face accelerate.

    zlaunch run -n 4 --preload torch,accelerate examples/accelerate_digits.py
    torchrun --nproc-per-node 4 examples/accelerate_digits.py     # the same file
    python examples/accelerate_digits.py                          # four ranks that it starts itself, as a function

There is no ``accelerate config`` and no ``accelerate launch``: accelerate finds its rank, its world and its device by
the variables that every rank has. As a function it finds the process group that zlaunch has made, and uses that.
"""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from train_digits import digits, network


def main() -> float:
    """Train on this rank's share of the digits; the share of test digits that are told right, over all ranks."""
    accelerator = Accelerator(cpu=True)  # leave cpu=True out, and each rank takes its own GPU
    torch.manual_seed(0)
    model = network()
    model, optimizer, loader, test = accelerator.prepare(
        model,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        DataLoader(digits(test=False), batch_size=32, shuffle=True),
        DataLoader(digits(test=True), batch_size=64),
    )
    for epoch in range(6):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        mean = accelerator.reduce(loss.detach(), "mean")
        accelerator.print(f"epoch {epoch + 1}: last loss {mean:.4f}")

    right = []
    model.eval()
    with torch.no_grad():
        for images, labels in test:
            right.append(accelerator.gather_for_metrics(model(images).argmax(dim=1) == labels))
    accuracy = float(torch.cat(right).float().mean())
    if accelerator.is_main_process:  # accelerator.print prints once for each host
        print(f"accelerate on {accelerator.num_processes} ranks: test accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    if "RANK" in os.environ:  # a launcher has started us as a rank
        main()
    else:
        import zlaunch

        preload = ("torch", "torch._dynamo", "sklearn.datasets", "accelerate")  # imported once, not by each rank
        launcher = zlaunch.Launcher(workers_per_host=4, backend="gloo", preload=preload)
        print(f"returned by rank 0: {launcher.run(main).rank(0):.4f}")
