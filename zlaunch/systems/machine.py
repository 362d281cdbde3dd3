"""Level 2: which names and addresses mean the machine that we are on."""

from __future__ import annotations

import ipaddress
import os
import pwd
import queue
import socket
import threading
import time
from collections.abc import Sequence

from .hosts import user_and_host

LOOKUP_PATIENCE = 1.0
"""Seconds for all names together: a name server that is dead costs 5 to 10 for each."""
_LOOKUPS_AT_ONCE = 64


def is_this_machine(name: str) -> bool:
    """As ``are_this_machine``, for one."""
    return are_this_machine([name])[0]


def are_this_machine(names: Sequence[str]) -> list[bool]:
    """Which names and addresses mean this machine, for the user that we are.

    A name that nobody knows does not, nor one that nobody answers for within a second, nor another user's
    ``user@host``: it takes an ssh to become that user. Names are looked up side by side; addresses, ``localhost`` and
    our own name are not looked up at all.
    """
    hosts: list[str | None] = []
    for name in names:
        user, host = user_and_host(name)
        hosts.append(host if user is None or user == _our_name() else None)
    known = {host: _without_lookup(host) for host in hosts if host is not None}
    known |= _look_up([host for host, answer in known.items() if answer is None])
    return [host is not None and bool(known[host]) for host in hosts]


def _our_name() -> str | None:
    """As ssh has it, for which USER and LOGNAME count nothing."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return None


def _without_lookup(host: str) -> bool | None:
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return _is_own(host)


def _look_up(hosts: Sequence[str]) -> dict[str, bool]:
    """What is known when all have been looked up, or our patience has ended. The threads may outlive us: daemons."""
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
    for host in hosts:
        asked.put(host)

    def work() -> None:
        while True:
            try:
                host = asked.get_nowait()
            except queue.Empty:
                return
            answers.put((host, _resolves_to_us(host)))

    for _ in range(min(len(hosts), _LOOKUPS_AT_ONCE)):
        threading.Thread(target=work, name="zlaunch-lookup", daemon=True).start()
    known: dict[str, bool] = {}
    deadline = time.monotonic() + LOOKUP_PATIENCE
    try:
        while len(known) < len(hosts):
            host, answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            known[host] = answer
    except queue.Empty:
        pass
    return {host: known.get(host, False) for host in hosts}


def _resolves_to_us(host: str) -> bool:
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # idna refuses what is too long, or empty between two dots
        return False
    return any(_is_own(address) for address in found)


def _is_own(address: str) -> bool:
    """Loopback (Debian's 127.0.1.1 too), or one that can be bound: only our own can."""
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(socket.getaddrinfo(address, 0, family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0][4])
        except OSError:
            return False
    return True
