"""Cores and GPUs of nodes, who holds them, and the queue of those who want some: first come, first served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Share:
    """Cores and GPUs of one node, by their numbers there."""

    cores: list[int] = field(default_factory=list)
    gpus: list[int] = field(default_factory=list)


Placement = dict[str, Share]
"""What somebody gets: of each node, in their order, a share."""
Fit = Callable[["Pool"], "Placement | None"]
"""Chooses from ``free`` of a pool; None as long as it cannot be had."""


class Pool:
    """The nodes of a cluster, or of an allocation in it."""

    def __init__(self, nodes: Mapping[str, Share]) -> None:
        self.nodes = dict(nodes)
        self.held: dict[str, Share] = {name: Share() for name in nodes}
        self.down: set[str] = set()
        self._queue: list[tuple[Fit, asyncio.Future[Placement]]] = []

    def up(self) -> list[str]:
        return [name for name in self.nodes if name not in self.down]

    def free(self, name: str) -> Share:
        """What nobody holds of a node; nothing where it is down."""
        all_, held = self.nodes[name], self.held[name]
        if name in self.down:
            return Share()
        return Share(
            [core for core in all_.cores if core not in held.cores], [gpu for gpu in all_.gpus if gpu not in held.gpus]
        )

    def empty(self, name: str) -> bool:
        """Whether nobody holds any of a node that is up."""
        return name not in self.down and not self.held[name].cores and not self.held[name].gpus

    async def get(self, fit: Fit) -> Placement:
        """Wait in the queue for what this asks for, and hold it. Cancelled, it leaves the queue."""
        future: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        self._queue.append((fit, future))
        try:
            self.serve()
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back(future.result())
            raise
        finally:
            self._queue = [(one, waiting) for one, waiting in self._queue if waiting is not future]
            self.serve()

    def serve(self) -> None:
        """Give to the first in the queue as long as there is enough; to be called when more is there."""
        for fit, future in [*self._queue]:
            if future.done():
                continue
            placement = fit(self)
            if placement is None:
                break
            self.hold(placement)
            future.set_result(placement)

    def hold(self, placement: Placement) -> None:
        for name, share in placement.items():
            self.held[name].cores += share.cores
            self.held[name].gpus += share.gpus

    def give_back(self, placement: Placement) -> None:
        for name, share in placement.items():
            held = self.held[name]
            held.cores = [core for core in held.cores if core not in share.cores]
            held.gpus = [gpu for gpu in held.gpus if gpu not in share.gpus]
        self.serve()

    def lose(self, names: Iterable[str]) -> None:
        """These are down; who holds something of them keeps it."""
        self.down.update(names)

    def regain(self, names: Iterable[str]) -> None:
        self.down.difference_update(names)
        self.serve()
