"""Level 3: where the hub listens. Two ROUTERs, control and bulk, both on the same addresses; each on a port of its own.

A port is the kernel's choice, and read once it is bound: whoever picks one first and binds later may find it taken.
127.0.0.1 is always among the addresses: agents on this machine come by it, and the ends of ssh's tunnels.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

import zmq

from . import wires
from .words import LinkError
from .zap import DOMAIN

LOOPBACK = "127.0.0.1"
_BACKLOG = 4096
"""Connections that wait to be accepted: with the default of 100, thousands of hosts wait for each other's retries."""


class Doors:
    """The two ROUTERs and their endpoints.

    Args:
        context: in which the ZAP handler is bound already; else everybody would be let in.
        secret_key: of CURVE, as Z85.
        heartbeat, silence: as ``wires.harden`` has them.
        addresses: to listen on, besides 127.0.0.1.

    Raises:
        LinkError: 127.0.0.1, or all of ``addresses``, cannot be listened on.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        secret_key: bytes,
        addresses: Sequence[str],
        *,
        heartbeat: float,
        silence: float,
    ) -> None:
        self.control, self.bulk = (
            _router(context, secret_key, bulk=bulk, heartbeat=heartbeat, silence=silence) for bulk in (False, True)
        )
        self.skipped: dict[str, str] = {}
        """Addresses that cannot be listened on, and why."""
        self._endpoints: dict[str, tuple[str, str]] = {}
        for address in dict.fromkeys((*addresses, LOOPBACK)):
            try:
                self._open(address)
            except (ValueError, zmq.ZMQError) as error:
                self.skipped[address] = str(error)
        if LOOPBACK in self.skipped or (addresses and all(address in self.skipped for address in addresses)):
            raise LinkError("cannot listen: " + "; ".join(f"{at}: {why}" for at, why in self.skipped.items()))

    def _open(self, address: str) -> None:
        ip = ipaddress.ip_address(address)
        if ip.is_unspecified or ip.is_multicast:
            raise ValueError("it is not the address of one machine")
        if ip.version == 6 and ip.is_link_local:
            raise ValueError("a link-local address means nothing on another machine")
        control = _bind(self.control, ip)
        try:
            self._endpoints[str(ip)] = (control, _bind(self.bulk, ip))
        except zmq.ZMQError:
            self.control.unbind(control)
            raise

    def endpoints(self, *, here: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """For control and for bulk, in the same order: those that only this machine reaches, or all the others."""
        chosen = [
            pair for address, pair in self._endpoints.items() if ipaddress.ip_address(address).is_loopback is here
        ]
        return tuple(control for control, _ in chosen), tuple(bulk for _, bulk in chosen)

    @property
    def ports(self) -> tuple[int, int]:
        """On 127.0.0.1: of control and of bulk."""
        control, bulk = (int(endpoint.rpartition(":")[2]) for endpoint in self._endpoints[LOOPBACK])
        return control, bulk

    def __iter__(self) -> Iterator[zmq.Socket[bytes]]:
        yield self.control
        yield self.bulk


def _router(
    context: zmq.Context[zmq.Socket[bytes]], secret_key: bytes, *, bulk: bool, heartbeat: float, silence: float
) -> zmq.Socket[bytes]:
    router = context.socket(zmq.ROUTER)
    wires.harden(router, bulk=bulk, heartbeat=heartbeat, silence=silence)
    router.router_mandatory = 1
    router.backlog = _BACKLOG
    router.curve_server = 1
    router.curve_secretkey = secret_key
    router.zap_domain = DOMAIN
    router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return router


def _bind(router: zmq.Socket[bytes], ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    router.ipv6 = ip.version == 6
    router.bind(f"tcp://[{ip}]:*" if ip.version == 6 else f"tcp://{ip}:*")
    return str(router.getsockopt_string(zmq.LAST_ENDPOINT))
