"""Level 4, pure: by which addresses hosts reach one another. Found out by trying, once for each pair; then known.

A machine has many addresses, and nothing tells which of them the others can reach: /etc/hosts maps its name to
127.0.1.1, every host has the same 172.17.0.1 of a container bridge, an interface leads to storage only. So the host of
rank 0 is a meeting point, all others of the step try all of its addresses, and tell which ones answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..protocol.messages import Reached, Way


class Route(NamedTuple):
    """How one host gets to that of rank 0."""

    address: str
    """MASTER_ADDR there."""
    interface: str
    """By which it goes out; for rank 0's host, that of the address."""


@dataclass
class Routes:
    """What is known so far, by index of rank 0's host and of the other one."""

    found: dict[tuple[int, int], Reached] = field(default_factory=dict)

    def missing(self, first: int, hosts: Sequence[int]) -> list[int]:
        """The hosts of a step that have not tried yet; its only host need not."""
        return [host for host in hosts if (first, host) not in self.found] if len(hosts) > 1 else []

    def forget(self, first: int) -> None:
        """What was found of this host's addresses counts no more: it is tried again by the next step."""
        for pair in [pair for pair in self.found if pair[0] == first]:
            del self.found[pair]

    def unreachable(self, first: int, hosts: Sequence[int]) -> dict[int, str]:
        """Hosts that cannot get to rank 0's, with what they tried."""
        if len(hosts) == 1:
            return {}
        return {host: self.found[first, host].tried for host in hosts if not self.found[first, host].ways}

    def choose(self, first: int, hosts: Sequence[int]) -> dict[int, Route]:
        """A route for each host: by an address that all of them can reach, or else each by its own best one."""
        if len(hosts) == 1:
            return {first: Route("127.0.0.1", "lo")}
        ways = {host: self.found[first, host].ways for host in hosts}
        common = next((way.address for way in ways[first] if all(_by(way.address, w) for w in ways.values())), None)
        chosen = {host: (_by(common, mine) if common else None) or mine[0] for host, mine in ways.items()}
        return {host: Route(way.address, way.interface) for host, way in chosen.items()}


def _by(address: str, ways: Sequence[Way]) -> Way | None:
    return next((way for way in ways if way.address == address), None)
