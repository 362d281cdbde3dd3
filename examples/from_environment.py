"""A script that was written for torchrun: it reads its place from the environment, and adds up over all ranks.

zlaunch run -n 4 examples/from_environment.py
torchrun --nproc-per-node 4 examples/from_environment.py     # the same file
python examples/from_environment.py                          # alone: one rank
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")


def device() -> torch.device:
    """The rank's own: GPUs are counted within the host."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def main() -> None:
    """Say where this rank is, and check that there is each rank once, and each host as often as it has ranks."""
    if not dist.is_torchelastic_launched():
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} | dict.fromkeys(VARIABLES, "1")
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    rank, world, local, local_world, host, hosts = (int(os.environ[name]) for name in VARIABLES)
    print(f"rank {rank} of {world}, local rank {local} of {local_world}, on host {host} of {hosts}, on {device()}")

    dist.init_process_group("nccl" if device().type == "cuda" else "gloo")
    assert (dist.get_rank(), dist.get_world_size()) == (rank, world)
    table = torch.zeros(world, 2, device=device())
    table[rank] = torch.tensor([1.0, host])
    dist.all_reduce(table)
    if rank == 0:
        there, host_of = table.T.int().tolist()
        assert there == [1] * world, f"ranks that are there: {there}"
        assert sorted(set(host_of)) == list(range(hosts))
        print(f"environment on {world} ranks: they add up to {sum(range(world))}, on hosts {host_of}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
