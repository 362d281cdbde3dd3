"""Train on handwritten digits with PyTorch Lightning.

    zlaunch run -n 4 --preload torch,lightning.pytorch examples/lightning_digits.py
    torchrun --nproc-per-node 4 examples/lightning_digits.py      # the same file
    python examples/lightning_digits.py                           # four ranks that it starts itself, as a function

Lightning finds by itself that a launcher has started its ranks. It wants to be told how many there are, by host, and
refuses numbers that are not the launcher's: so they are read from where the launcher says them.
"""

from __future__ import annotations

import os

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from train_digits import digits, network

Batch = tuple[torch.Tensor, torch.Tensor]


class Digits(pl.LightningModule):
    """A network, its loss and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch: Batch) -> torch.Tensor:
        """The loss of one batch of this rank's."""
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: Batch) -> None:
        """How many digits are told right; Lightning averages over all ranks."""
        images, labels = batch
        right = (self.network(images).argmax(dim=1) == labels).float().mean()
        self.log("accuracy", right, sync_dist=True, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> float:
    """Train on this rank's share of the digits; the share of test digits that are told right, over all ranks."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
        max_epochs=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    training = DataLoader(digits(test=False), batch_size=32, shuffle=True)
    model = Digits()
    trainer.fit(model, training)
    (result,) = trainer.validate(model, DataLoader(digits(test=True), batch_size=64), verbose=False)
    if trainer.is_global_zero:
        print(f"Lightning on {trainer.world_size} ranks: test accuracy {result['accuracy']:.4f}")
    return result["accuracy"]


if __name__ == "__main__":
    if "RANK" in os.environ:  # a launcher has started us as a rank
        main()
    else:
        import zlaunch

        preload = ("torch", "torch._dynamo", "sklearn.datasets", "lightning.pytorch")  # imported once, not by each rank
        launcher = zlaunch.Launcher(workers_per_host=4, backend="gloo", preload=preload)
        print(f"returned by rank 0: {launcher.run(main).rank(0):.4f}")
