"""Level 2: which names and addresses mean the machine that we are on."""

from __future__ import annotations

import ipaddress
import socket


def is_this_machine(name: str) -> bool:
    """Whether a host's name or address means this machine. A name that nobody knows does not."""
    if name in ("localhost", socket.gethostname(), socket.getfqdn()):
        return True
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    except OSError:
        return False
    return any(ipaddress.ip_address(a.split("%")[0]).is_loopback or _is_own_address(a) for a in found)


def _is_own_address(address: str) -> bool:
    """An address that can be bound is one of ours."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
