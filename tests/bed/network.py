"""The bed's network: a switch (a bridge in a namespace of its own), a cable to each host and one to this machine.

This machine's firewall and other networks are not touched: all that it gets is one interface, ``head``'s, with an
address of a subnet that nobody here has. Namespaces have no names but descriptors of ours, so that all of it is gone
when we are, however we end. What breaks a host's network is done in the host: with no words to anybody.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from . import kernel
from .programs import BedError, Program

HEAD = "head"
DECOY = "172.17.0.1/16"  # what Docker gives to docker0 on every machine


class Subnet:
    """A /24 below 10.64.0.0/10 and its twin in IPv6, claimed for as long as the object is not closed.

    The claim is a name of an abstract socket: the kernel gives it to one process at a time.
    """

    def __init__(self, start: int) -> None:
        for number in range(start, start + (1 << 14)):
            second, third = 64 + (number >> 8) % 64, number % 256
            self.v4, self.v6 = f"10.{second}.{third}", f"fd77:{second:x}:{third:x}:"
            self.number = (second << 8) + third
            self._claim = socket.socket(socket.AF_UNIX)
            with suppress(OSError):
                self._claim.bind(f"\0zlaunch-bed {self.v4}")
                if not _ip_answer("-4", "route", "show", "table", "all", "root", f"{self.v4}.0/24"):
                    return
            self._claim.close()
        raise BedError("no subnet is free")

    def address(self, index: int, six: bool = False) -> str:
        """The index of the head is 0, of node N it is N."""
        last = index + 10 if index else 1
        return str(ipaddress.ip_address(f"{self.v6}:{last:x}" if six else f"{self.v4}.{last}"))

    def hardware(self, index: int) -> str:
        """The same after each boot, so that nobody keeps an old one in mind."""
        return f"02:7a:{self.number >> 8:02x}:{self.number & 255:02x}:00:{index:02x}"

    def local(self, index: int) -> str:
        """The address that IPv6 makes of ``hardware``."""
        return f"fe80::7a:{self.number >> 8:02x}ff:fe{self.number & 255:02x}:{index:x}"

    def close(self) -> None:
        self._claim.close()


def _ip_answer(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False).stdout.strip()


def in_net(net: int, argv: Iterable[str], text: str = "", more: Iterable[int] = ()) -> None:
    """Run a tool in a network namespace; ``more`` are descriptors that it needs. Raises ``BedError``."""
    done = subprocess.run(
        ["nsenter", f"--net=/proc/self/fd/{net}", "--", *argv],
        input=text,
        capture_output=True,
        text=True,
        pass_fds=(net, *more),
        check=False,
    )
    if done.returncode != 0:
        raise BedError(f"{' '.join(argv)}: {done.stderr.strip()}\n{text}")


class Network:
    """Hosts are known by their index from 1 on; 0 is the head."""

    def __init__(self, interface: str, pid: int, ipv6: bool, decoy: bool) -> None:
        self.interface, self.ipv6, self.decoy = interface, ipv6, decoy
        self.nets: dict[int, int] = {}
        self.broken: set[int] = set()
        self._wires: dict[int, Program] = {}
        self.subnet = Subnet(pid)
        self._switch = kernel.new_net()
        self._here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        settings = "link set lo up\nlink add switch type bridge mcast_snooping 0\nlink set switch up\n"
        cable = f"link add port0 type veth peer name {interface} netns /proc/self/fd/{self._here}\n"
        self._ip(self._switch, settings + cable + "link set port0 master switch up\n", self._here)
        self._ip(self._here, self._addresses(0, interface))

    def address(self, index: int, six: bool = False) -> str:
        return self.subnet.address(index, six)

    def _ip(self, net: int, lines: str, *more: int) -> None:
        in_net(net, ["ip", "-batch", "-"], lines, more)

    def _addresses(self, index: int, interface: str) -> str:
        lines = f"link set {interface} address {self.subnet.hardware(index)}\n"
        lines += f"addr add {self.address(index)}/24 dev {interface}\n"
        if self.ipv6:  # nobody else can have it: no second is spent on asking (nodad)
            lines += f"addr add {self.address(index, six=True)}/64 dev {interface} nodad\n"
        return lines + f"link set {interface} up\n"

    # -- cables

    def plug(self, indices: Iterable[int]) -> None:
        """A new network namespace for each of these hosts, connected."""
        new = {index: kernel.new_net() for index in indices}
        self.nets |= new
        lines = "".join(
            f"link add port{index} type veth peer name eth0 netns /proc/self/fd/{net}\n"
            f"link set port{index} master switch up\n"
            for index, net in new.items()
        )
        self._ip(self._switch, lines, *new.values())
        for index, net in new.items():
            decoy = f"link add docker0 type bridge\naddr add {DECOY} dev docker0\nlink set docker0 up\n"
            self._ip(net, "link set lo up\n" + self._addresses(index, "eth0") + (decoy if self.decoy else ""))

    def pull(self, index: int) -> None:
        """The cable is out: silence, at once."""
        self._ip(self._switch, f"link set port{index} down\n")
        self._stop_wire(index)

    def unplug(self, index: int) -> None:
        """Cable and namespace are gone."""
        self._stop_wire(index)
        self.broken.discard(index)
        if index in self.nets:
            self._ip(self._switch, f"link del port{index}\n")  # while its namespace lives, else the kernel may be first
            os.close(self.nets.pop(index))

    def close(self) -> None:
        for index in list(self.nets):
            self._stop_wire(index)
            os.close(self.nets.pop(index))
        with suppress(BedError):
            self._ip(self._here, f"link del {self.interface}\n")
        os.close(self._here)
        os.close(self._switch)
        self.subnet.close()

    # -- damage

    def drop(self, index: int, rules: str, rules6: str) -> None:
        """Append these rules (iptables' words, one a line) to the host's firewall."""
        self.broken.add(index)
        for tool, lines in (("iptables-restore", rules), ("ip6tables-restore", rules6)):
            if tool == "iptables-restore" or self.ipv6:
                in_net(self.nets[index], [tool, "--noflush", "-w"], f"*filter\n{lines}COMMIT\n")

    def cut(self, index: int, incoming: bool, outgoing: bool) -> None:
        rules = "-A INPUT -i eth0 -j DROP\n" * incoming + "-A OUTPUT -o eth0 -j DROP\n" * outgoing
        self.drop(index, rules, rules)

    def part(self, index: int, other: int) -> None:
        rules = [f"-A INPUT -s {peer} -j DROP\n-A OUTPUT -d {peer} -j DROP\n" for peer in self._peers(other)]
        self.drop(index, *rules)

    def block_head(self, index: int) -> None:
        self.drop(index, *(f"-A OUTPUT -d {head} -p tcp --syn -j DROP\n" for head in self._peers(0)))

    def _peers(self, index: int) -> tuple[str, str]:
        """All addresses of a host, as iptables and ip6tables take them."""
        return self.address(index), f"{self.address(index, six=True)},{self.subnet.local(index)}"

    def slow(self, index: int, delay_ms: float, loss_percent: float, log: Path) -> None:
        """A wire program takes the place of the cable's end in the switch."""
        self._stop_wire(index)
        self.broken.add(index)
        self._offload(index, "off")  # the wire carries whole frames: their sums must be in them, no segments of 64 KiB
        options = {
            "net": self._switch,
            "tap": f"wire{index}",
            "cable": f"port{index}",
            "delay_ms": delay_ms,
            "loss_percent": loss_percent,
        }
        wire = self._wires[index] = Program("wire.py", options, log, (self._switch,))
        wire.wait_up()
        self._ip(
            self._switch,
            f"link set port{index} nomaster\nlink set port{index} promisc on\nlink set wire{index} master switch up\n",
        )

    def _stop_wire(self, index: int) -> None:
        wire = self._wires.pop(index, None)
        if wire:
            wire.kill()
            wire.wait_gone()
            self._ip(self._switch, f"link set port{index} promisc off\nlink set port{index} master switch\n")
            self._offload(index, "on")

    def _offload(self, index: int, how: str) -> None:
        in_net(self.nets[index], ["ethtool", "-K", "eth0", "tx", how, "tso", how, "gso", how])

    def heal(self, index: int) -> None:
        """The host's network as after its boot."""
        self._stop_wire(index)
        for tool in ("iptables", "ip6tables") if self.ipv6 else ("iptables",):
            in_net(self.nets[index], [tool, "-w", "-F"])
        in_net(self.nets[index], ["ip", "neigh", "flush", "dev", "eth0"])
        self.broken.discard(index)
