"""Train a tiny vision transformer on handwritten digits with the Trainer of Hugging Face transformers.

    zlaunch run -n 4 --preload torch,transformers.trainer examples/trainer_digits.py
    torchrun --nproc-per-node 4 examples/trainer_digits.py        # the same file

The model is made from a configuration, with fresh weights: nothing is asked for over the network. The Trainer finds its
rank and its world by the variables that every rank has; there is nothing about them in its arguments.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from torch.utils.data import Dataset
from train_digits import digits
from transformers import (
    EvalPrediction,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)


class Digits(Dataset[dict[str, torch.Tensor]]):
    """The digits under the names that the model's arguments have."""

    def __init__(self, test: bool) -> None:
        self.images, self.labels = digits(test).tensors

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of digits that are told right; the Trainer has gathered all ranks' predictions."""
    told = np.argmax(prediction.predictions, axis=1)
    return {"accuracy": float((told == prediction.label_ids).mean())}


def main() -> None:
    """Train, evaluate on all ranks, and let the first say how well."""
    set_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        num_labels=10,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,  # leave it out, and each rank takes its own GPU
            per_device_train_batch_size=16,
            num_train_epochs=5,
            learning_rate=5e-3,
            ddp_find_unused_parameters=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="epoch",
        )
        trainer = Trainer(
            model=ViTForImageClassification(config),
            args=arguments,
            train_dataset=Digits(test=False),
            eval_dataset=Digits(test=True),
            compute_metrics=accuracy,
        )
        trainer.train()
        result = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"Trainer on {arguments.world_size} ranks: test accuracy {result['eval_accuracy']:.4f}")


if __name__ == "__main__":
    main()
