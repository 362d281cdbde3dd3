"""Level 2: the network interfaces of this machine, and the addresses by which other machines may reach it."""

from __future__ import annotations

import fnmatch
import socket
from collections.abc import Iterator
from typing import NamedTuple

_VIRTUAL = (
    "docker*",
    "br-*",
    "virbr*",
    "veth*",
    "podman*",
    "cni*",
    "flannel*",
    "cali*",
    "lxcbr*",
    "lxdbr*",
    "incusbr*",
    "vmnet*",
    "vboxnet*",
)
"""Interfaces of containers and virtual machines on this host. Others have them too, and with the same addresses."""


class Interface(NamedTuple):
    """An interface with one of its addresses; one that has several comes several times."""

    name: str
    address: str


def own_addresses() -> tuple[Interface, ...]:
    """The addresses that others may reach this machine by, the most promising first.

    Interfaces that are up, without loopback; what looks like hardware (or a tunnel) before what containers and virtual
    machines use, and IPv4 before IPv6. Addresses that mean nothing without the name of an interface are left out.
    """
    found = [interface for interface in _all() if not _is_local(interface)]
    return tuple(sorted(found, key=lambda it: (_looks_virtual(it.name), ":" in it.address, _is_makeshift(it.address))))


def interface_of(address: str) -> str:
    """The name of the interface that has this address, in any spelling; empty where none has it."""
    wanted = _packed(address)
    return next((it.name for it in _all() if _packed(it.address) == wanted), "") if wanted else ""


def plain_address(address: str) -> str:
    """An address in its usual spelling: ``::ffff:10.0.0.1`` is 10.0.0.1, and ``fe80::1%eth0`` loses its interface.

    What is no address is given back as it is.
    """
    packed = _packed(address)
    if not packed:
        return address
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _all() -> Iterator[Interface]:
    """Every address of every interface that is up, loopback too, in the kernel's order."""
    import psutil

    running = {name for name, state in psutil.net_if_stats().items() if state.isup}
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if name in running and address.family in (socket.AF_INET, socket.AF_INET6):
                yield Interface(name, address.address)


def _packed(address: str) -> bytes:
    bare = address.partition("%")[0]
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in bare else socket.AF_INET, bare)
    except OSError:
        return b""
    return packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed


def _is_local(interface: Interface) -> bool:
    """Loopback, or an IPv6 address that is good on one link only (fe80::/10)."""
    packed = _packed(interface.address)
    if len(packed) == 4:
        return packed[0] == 127 or interface.name == "lo"
    return interface.name == "lo" or packed == bytes(15) + b"\1" or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)


def _is_makeshift(address: str) -> bool:
    """169.254.0.0/16: what a machine gives itself where nobody else gave it one."""
    return address.startswith("169.254.")


def _looks_virtual(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _VIRTUAL)
