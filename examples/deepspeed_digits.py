"""Train on handwritten digits with DeepSpeed: ZeRO 1, where each rank keeps a share of the optimizer's state.

    zlaunch run -n 4 --preload torch,deepspeed examples/deepspeed_digits.py
    torchrun --nproc-per-node 4 examples/deepspeed_digits.py      # the same file

No ``deepspeed`` command, no hostfile: DeepSpeed finds its rank by the variables that every rank has, and asks MPI only
where they are missing. The optimizer is torch's own; DeepSpeed's would be compiled when they are first used.
"""

from __future__ import annotations

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from train_digits import accuracy, digits, network


def main() -> None:
    """Train on this rank's share of the digits, and let the first rank say how well."""
    # Without GPUs DeepSpeed would compile an all-reduce for ranks of one host, for a minute. It is not needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")  # leave the name out, and it is nccl where there are GPUs
    torch.manual_seed(0)
    model = network()
    engine, _, loader, _ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
        training_data=digits(test=False),
        config={
            "train_micro_batch_size_per_gpu": 32,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
        },
    )
    for _ in range(5):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(engine(images), labels)
            engine.backward(loss)
            engine.step()
    if dist.get_rank() == 0:
        print(f"DeepSpeed on {dist.get_world_size()} ranks: test accuracy {accuracy(engine.module):.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
