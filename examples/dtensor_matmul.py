"""Multiply matrices that no rank has whole: DTensor on a mesh of hosts and ranks.

    zlaunch run -n 4 examples/dtensor_matmul.py
    zlaunch run --hosts node1,node2 -n 2 examples/dtensor_matmul.py      # a mesh of 2 x 2
    torchrun --nproc-per-node 4 examples/dtensor_matmul.py               # the same file

The mesh has a row for each host, so that what must be quick can stay within a host.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

SIZE = 256


def main() -> None:
    """Compare the product of the parts with the product of the whole."""
    dist.init_process_group("gloo")
    ranks = int(os.environ["LOCAL_WORLD_SIZE"])  # the same on every host
    mesh = init_device_mesh("cpu", (dist.get_world_size() // ranks, ranks), mesh_dim_names=("hosts", "ranks"))
    host, local = mesh.get_coordinate() or ()
    assert host == int(os.environ["GROUP_RANK"])
    assert local == int(os.environ["LOCAL_RANK"])

    torch.manual_seed(0)  # all ranks make the same two matrices, to have something to compare with
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    rows = distribute_tensor(left, mesh, [Shard(0), Replicate()])  # each host has some rows of the left one,
    columns = distribute_tensor(right, mesh, [Replicate(), Shard(1)])  # each rank of it some columns of the right one
    product = rows @ columns  # and so a tile of the product, without a word to any other
    print(
        f"rank {dist.get_rank()} at {host}, {local} of {tuple(mesh.shape)}: a tile of {tuple(product.to_local().shape)}"
    )

    error = float((product.full_tensor() - left @ right).abs().max())
    if dist.get_rank() == 0:
        print(f"DTensor on {dist.get_world_size()} ranks: largest error {error:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
