"""Benchmarks, measured side: a user's program that launches functions, with zlaunch or with torchrunx.

``driver.py PRODUCT FD`` reads one request per line from the socket FD, and answers each with one line, both JSON.
The two products have the same interface, so the same lines drive both. zlaunch's agents stay from step to step;
torchrunx has no such thing and starts its own with every step. May import everything.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def give_rank() -> int:
    """The smallest step: a rank's number."""
    return int(os.environ["RANK"])


def meet() -> int:
    """A rank's number, when all have come to a barrier."""
    import torch.distributed as dist

    dist.barrier()
    return dist.get_rank()


def meet_when() -> float:
    """When this rank knew that all have come to a barrier."""
    import torch.distributed as dist

    dist.barrier()
    return time.monotonic()


def wait_for_death(folder: str, collective: bool) -> None:
    """Say which process this rank is, then wait until it is killed; rank 2 never comes to the barrier."""
    rank = os.environ["RANK"]
    told = Path(folder, f"pid.{rank}.part")
    told.write_text(str(os.getpid()))
    told.rename(Path(folder, f"pid.{rank}"))
    if collective and rank != "2":
        import torch.distributed as dist

        dist.barrier()
    time.sleep(600)


def give_tensor(folder: str, megabytes: int) -> tuple[Any, float]:
    """A tensor full of the rank's number, and when it was returned; all ranks return together."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    tensor = torch.full((megabytes * 2**18,), float(rank))
    Path(folder, f"made.{rank}").touch()
    while len(list(Path(folder).glob("made.*"))) < ranks:
        time.sleep(0.001)
    return tensor, time.monotonic()


def print_lines(folder: str, count: int) -> None:
    """Lines that are all different."""
    rank = os.environ["RANK"]
    Path(folder, f"first.{rank}").write_text(repr(time.monotonic()))
    for number in range(count):
        print(f"<rank {rank} line {number:06d}>")


class Product:
    """Launchers of one product, kept by size, back end and hosts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.launchers: dict[tuple[int, str | None, tuple[str, ...]], Any] = {}

    def launcher(self, ranks: int, backend: str | None, hosts: Sequence[str] = (), config: str | None = None) -> Any:
        """A launcher whose next step is a warm one, where the product knows the difference.

        Without hosts, the ranks are on this machine; ``config`` is the configuration of ssh.
        """
        key = (ranks, backend, tuple(hosts))
        names: Any
        if key not in self.launchers:
            launcher_of: Any
            made: Any
            if self.name == "zlaunch":
                import zlaunch

                launcher_of = zlaunch.Launcher  # the back end's type is a closed list of words
                names = list(hosts) or "local"
                made = launcher_of(names, workers_per_host=ranks, backend=backend, ssh_config_file=config)
                made.start()
                made.run(give_rank)
            else:
                import torchrunx  # type: ignore[import-not-found,unused-ignore]

                launcher_of = torchrunx.Launcher
                names = list(hosts) or ["localhost"]
                made = launcher_of(
                    names,
                    workers_per_host=ranks,
                    backend=backend,
                    ssh_config_file=config,
                    agent_timeout=110,  # by default 60 s, which 16 hosts on two busy cores may need
                )
            self.launchers[key] = made
        return self.launchers[key]

    def close(self) -> None:
        """End the agents that were kept."""
        for launcher in self.launchers.values():
            if self.name == "zlaunch":
                launcher.stop()


def steps(
    product: Product,
    ranks: int,
    backend: str | None,
    repeat: int,
    hosts: Sequence[str] = (),
    config: str | None = None,
) -> dict[str, Any]:
    """Seconds of each of some steps, from the call to the results; ``ranks`` of them on this machine, or per host."""
    launcher = product.launcher(ranks, backend, hosts, config)
    world = ranks * max(1, len(hosts))
    function = give_rank if backend is None else meet
    seconds = []
    for _ in range(repeat):
        began = time.monotonic()
        results = launcher.run(function)
        seconds.append(time.monotonic() - began)
        got = [results.rank(rank) for rank in range(world)]
        assert got == list(range(world)), f"wrong results: {got}"
    return {"seconds": seconds}


def groups(product: Product, ranks: int, cold: bool) -> dict[str, Any]:
    """Seconds from the call until the last rank knows that all have met in a gloo group; ``cold``: with new agents."""
    if cold and product.name == "zlaunch":
        import zlaunch

        launcher: Any = zlaunch.Launcher("local", workers_per_host=ranks, backend="gloo")
    else:
        launcher = product.launcher(ranks, "gloo")
    began = time.monotonic()
    results = launcher.run(meet_when)
    return {"seconds": max(results.rank(rank) for rank in range(ranks)) - began}


def starts(product: Product, repeat: int, hosts: list[str], config: str) -> dict[str, Any]:
    """Seconds of each of some starts of zlaunch's agents, which then have nothing to import."""
    import zlaunch

    assert product.name == "zlaunch", "torchrunx starts nothing ahead of its steps"
    seconds = []
    for _ in range(repeat):
        launcher = zlaunch.Launcher(hosts, ssh_config_file=config, preload=())
        began = time.monotonic()
        launcher.start()
        seconds.append(time.monotonic() - began)
        launcher.stop()
    return {"seconds": seconds}


def death(product: Product, ranks: int, backend: str | None, folder: str) -> dict[str, Any]:
    """When the death of a rank came to the caller, and as what."""
    launcher = product.launcher(ranks, backend)
    try:
        launcher.run(wait_for_death, folder, backend is not None)
    except Exception as error:
        return {"at": time.monotonic(), "error": type(error).__name__}
    raise AssertionError("nothing was raised though a rank was killed")


def tensors(product: Product, ranks: int, folder: str, megabytes: int) -> dict[str, Any]:
    """Seconds from the first return of a rank to the caller's results; those of a look at every number, beside them."""
    launcher = product.launcher(ranks, None)
    results = launcher.run(give_tensor, folder, megabytes)
    ended = time.monotonic()
    returned = min(results.rank(rank)[1] for rank in range(ranks))
    for rank in range(ranks):
        tensor = results.rank(rank)[0]
        assert tensor.numel() == megabytes * 2**18, "a tensor of the wrong size"
        assert bool((tensor == float(rank)).all()), "a tensor of the wrong content"
    return {"seconds": ended - returned, "reading": time.monotonic() - ended}


def lines(product: Product, ranks: int, folder: str, count: int) -> dict[str, Any]:
    """Has lines printed to this program's stdout and to files in the folder ``logs``; for torchrunx."""
    launcher = product.launcher(ranks, None)
    launcher.set_logging_handlers(lambda: torchrunx_handlers(ranks, folder))
    launcher.run(print_lines, folder, count)
    return {"at": time.monotonic()}


def torchrunx_handlers(ranks: int, folder: str) -> list[Any]:
    """All ranks' lines to the console and to a file for each, as zlaunch and torchrun do it."""
    import logging

    from torchrunx.utils.log_handling import file_handlers  # type: ignore[import-untyped,import-not-found,unused-ignore]

    return [
        logging.StreamHandler(sys.stdout),
        *file_handlers(["localhost"], [ranks], Path(folder, "logs"), logging.INFO),
    ]


REQUESTS: dict[str, Callable[..., dict[str, Any]]] = {
    "steps": steps,
    "groups": groups,
    "starts": starts,
    "death": death,
    "tensors": tensors,
    "lines": lines,
}


def main() -> None:
    """Answer requests until the socket ends."""
    product = Product(sys.argv[1])
    with socket.socket(fileno=int(sys.argv[2])) as control, control.makefile("rw") as wire:
        for line in wire:
            request = json.loads(line)
            try:
                answer = REQUESTS[request.pop("do")](product, **request)
            except Exception as error:
                answer = {"failed": f"{type(error).__name__}: {error}"}
            wire.write(json.dumps(answer) + "\n")
            wire.flush()
    product.close()


if __name__ == "__main__":
    main()
