"""The meeting point: which of a host's addresses others can reach, found by trying; and the addresses that it has."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zlaunch.agent.reach import MeetingHost, Seeker
from zlaunch.protocol.messages import MeetingPoint, Way
from zlaunch.systems.interfaces import interface_of, own_addresses, plain_address

TOKEN = bytes(range(16))
HERE = "127.0.0.1"


def wait_for(seeker: Seeker, host: MeetingHost | None = None):
    """As the agent's loop does it: readable descriptors only, errors and hang-ups wake it too."""
    while (found := seeker.done) is None:
        poll = select.poll()
        hosts = host.fds if host else ()
        for fd in (*seeker.fds, *hosts):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(max(0.0, seeker.deadline - time.monotonic()) * 1000 + 1):
            if host and fd in hosts:
                host.ready(fd)
            else:
                seeker.ready(fd)
    assert seeker.fds == ()
    return found


@contextlib.contextmanager
def listening(address: str = HERE, port: int = 0) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen()
        yield sock


def point(*addresses: str, port: int, token: bytes = TOKEN) -> MeetingPoint:
    return MeetingPoint(addresses, port, token)


# --- on this machine ------------------------------------------------------------------------------------------------


def test_a_meeting_on_loopback():
    host = MeetingHost()
    whole = host.open()
    assert len(whole.token) == 16
    assert host.open().token != whole.token
    whole = host.open()
    found = wait_for(Seeker(point(HERE, "127.0.0.3", port=whole.port, token=whole.token)), host)
    assert found.ways == (Way(HERE, "lo"), Way("127.0.0.3", "lo"))
    assert found.tried == ""
    host.close()
    host.close()
    assert host.fds == ()


def test_ways_are_in_the_point_s_order_whoever_answers_first():
    with listening() as first, listening("127.0.0.2", first.getsockname()[1]) as second:
        seeker = Seeker(point(HERE, "127.0.0.2", port=first.getsockname()[1]))
        for sock in (second, first):
            guest, _ = sock.accept()
            guest.sendall(TOKEN)
            guest.close()
        found = wait_for(seeker)
    assert [way.address for way in found.ways] == [HERE, "127.0.0.2"]


def test_another_machine_with_the_same_address_is_no_way():
    with listening() as sock:
        seeker = Seeker(point(HERE, port=sock.getsockname()[1]))
        guest, _ = sock.accept()
        guest.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        found = wait_for(seeker)
        guest.close()
    assert found.ways == ()
    assert "another machine" in found.tried


def test_a_token_may_come_in_parts_or_not_at_all():
    with listening() as sock:
        for words, reached in ((TOKEN[:7], False), (TOKEN, True)):
            seeker = Seeker(point(HERE, port=sock.getsockname()[1]))
            guest, _ = sock.accept()
            for byte in words:
                guest.send(bytes([byte]))
                (fd,) = seeker.fds
                select.select([fd], [], [])
                seeker.ready(fd)
                if seeker.done:
                    break
            guest.close()
            found = wait_for(seeker)
            assert bool(found.ways) is reached
            assert ("without a word" in found.tried) is not reached


def test_nobody_there():
    with listening() as sock:
        port = sock.getsockname()[1]
    began = time.monotonic()
    found = wait_for(Seeker(point(HERE, "no address", "::1", port=port)))
    assert time.monotonic() - began < 1
    assert found.ways == ()
    assert f"{HERE}:{port}: Connection refused" in found.tried
    assert "no address" in found.tried
    assert "[::1]:" in found.tried
    assert Seeker(point(port=port)).done == ((), "it has no address")


def test_silence_ends_at_the_deadline_and_sooner_once_one_has_answered():
    with listening() as silent, listening("127.0.0.2", silent.getsockname()[1]) as other:
        both = point(HERE, "127.0.0.2", port=silent.getsockname()[1])
        began = time.monotonic()
        found = wait_for(Seeker(both, began + 0.2))
        assert 0.2 <= time.monotonic() - began < 1
        assert found.ways == ()
        assert found.tried.count("no answer within 0.2 s") == 2
        other.accept()[0].close()

        seeker = Seeker(both)
        assert 2.5 < seeker.deadline - time.monotonic() <= 3
        guest, _ = other.accept()
        guest.sendall(TOKEN)
        found = wait_for(seeker)
        guest.close()
        assert [way.address for way in found.ways] == ["127.0.0.2"]
        assert "no answer within 0.5 s" in found.tried


def test_given_up_in_the_middle():
    with listening() as sock:
        seeker = Seeker(point(HERE, port=sock.getsockname()[1]))
        seeker.close()
        assert seeker.fds == ()


def test_many_guests_at_once():
    host = MeetingHost()
    whole = host.open()
    guests = []
    for _ in range(300):
        guest = socket.socket()
        guest.connect((HERE, whole.port))
        guests.append(guest)
    host.ready(host.fds[0])
    for guest in guests:
        assert guest.recv(100) == whole.token
        assert guest.recv(1) == b""
        guest.close()
    host.close()


def test_own_addresses_are_no_loopback():
    for name, address in own_addresses():
        assert name != "lo"
        assert not address.startswith(("127.", "fe80:", "::1"))
        assert interface_of(address) == name
    assert interface_of(HERE) == "lo"
    assert interface_of("::ffff:127.0.0.1") == "lo"
    assert interface_of("203.0.113.9") == interface_of("nonsense") == interface_of("") == ""
    assert [plain_address(a) for a in ("::ffff:10.0.0.1", "fe80::1%eth0", "fd00:0::2", "x")] == [
        "10.0.0.1",
        "fe80::1",
        "fd00::2",
        "x",
    ]


# --- between two machines -------------------------------------------------------------------------------------------

PROGRAM = """
import json, select, sys, time
sys.path.insert(0, sys.argv[1])
from zlaunch.agent.reach import MeetingHost, Seeker
from zlaunch.protocol.messages import MeetingPoint
host = seeker = None
print("up", flush=True)
while True:
    waiting = [0, *(host.fds if host else ()), *(seeker.fds if seeker else ())]
    timeout = max(0, seeker.deadline - time.monotonic()) if seeker else None
    for fd in select.select(waiting, [], [], timeout)[0]:
        if fd == 0:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                sys.exit()
            word, value = json.loads(line)
            if word == "host":
                host = MeetingHost()
                point = host.open(value)
                print(json.dumps([point.addresses, point.port, point.token.hex()]), flush=True)
            else:
                addresses, port, token = value
                seeker = Seeker(MeetingPoint(tuple(addresses), port, bytes.fromhex(token)))
        elif host and fd in host.fds:
            host.ready(fd)
        else:
            seeker.ready(fd)
    if seeker and (found := seeker.done):
        print(json.dumps([[[way.address, way.interface] for way in found.ways], found.tried]), flush=True)
        seeker = None
"""


class Machine:
    """A process in a network namespace of its own, which ends with it."""

    def __init__(self) -> None:
        root = str(Path(__file__).parent.parent)
        self.process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-c", PROGRAM, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout.readline() == b"up\n"
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> None:
        target = ["nsenter", "--net", "-t", str(self.process.pid), "ip"]
        subprocess.run([*target, *words], check=True, capture_output=True, timeout=10)

    def pair(self, name: str, peer: str, other: Machine) -> None:
        where = str(other.process.pid)
        self.ip("link", "add", name, "type", "veth", "peer", "name", peer, "netns", where)
        self.ip("link", "set", name, "up")
        other.ip("link", "set", peer, "up")

    def address(self, name: str, address: str) -> None:
        self.ip("addr", "add", address, "dev", name, *(["nodad"] if ":" in address else []))

    def tell(self, word: str, value: object) -> None:
        self.process.stdin.write(json.dumps([word, value]).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def ask(self, word: str, value: object):
        self.tell(word, value)
        return self.hear()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare") and shutil.which("nsenter")):
        pytest.skip("network namespaces need root, ip, unshare and nsenter")
    made: list[Machine] = []
    try:
        made.extend(Machine() for _ in range(2))
        one, two = made
        one.pair("eth7", "net0", two)
        one.address("eth7", "10.9.0.1/24")
        one.address("eth7", "fd09::1/64")
        two.address("net0", "10.9.0.2/24")
        two.address("net0", "fd09::2/64")
        for machine in made:  # both have Docker's network, with the same address
            machine.pair("docker0", "veth9", machine)
            machine.address("docker0", "172.17.0.1/16")
        yield one, two
    finally:
        for machine in made:
            machine.close()


def test_two_machines_find_the_address_that_both_can_use(machines):
    one, two = machines
    one.pair("lan0", "lan1", one)
    one.address("lan0", "10.50.0.1/24")  # nobody else has a route there
    addresses, port, token = one.ask("host", "")
    assert set(addresses) == {"10.9.0.1", "10.50.0.1", "fd09::1", "172.17.0.1"}
    assert addresses[2:] == ["fd09::1", "172.17.0.1"]
    ways, tried = two.ask("seek", [addresses, port, token])
    assert sorted(ways) == [["10.9.0.1", "net0"], ["fd09::1", "net0"]]
    assert f"10.50.0.1:{port}: Network is unreachable" in tried
    assert f"172.17.0.1:{port}: Connection refused" in tried  # that is its own one


def test_the_address_that_somebody_came_by_goes_first(machines):
    one, _ = machines
    for prefer in ("fd09::1", "172.17.0.1", "::ffff:172.17.0.1"):
        assert one.ask("host", prefer)[0][0] == plain_address(prefer)
    for prefer in ("127.0.0.1", "203.0.113.1", "", "::1"):
        assert one.ask("host", prefer)[0] == ["10.9.0.1", "fd09::1", "172.17.0.1"]


def test_a_machine_reaches_its_own_meeting_point(machines):
    """So that rank 0's host, too, is told the interface of an address."""
    one, _ = machines
    ways, tried = one.ask("seek", one.ask("host", ""))
    assert ways == [["10.9.0.1", "eth7"], ["fd09::1", "eth7"], ["172.17.0.1", "docker0"]]
    assert tried == ""


def test_an_address_that_swallows_everything_holds_nobody_up(machines):
    one, two = machines
    addresses, port, token = one.ask("host", "")
    two.ip("route", "add", "10.70.0.0/16", "dev", "net0")  # nobody there
    began = time.monotonic()
    ways, tried = two.ask("seek", [["10.70.0.1", *addresses], port, token])
    assert time.monotonic() - began < 3  # a connection to nobody is given up after 127 s
    assert ways == [["10.9.0.1", "net0"], ["fd09::1", "net0"]]
    assert re.search(rf"10\.70\.0\.1:{port}: no answer within 0\.\d s", tried)


def test_a_machine_without_ipv6_meets_too(machines):
    one, two = machines
    switch = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    for machine in machines:
        subprocess.run(["nsenter", "--net", "-t", str(machine.process.pid), "sh", "-c", switch], check=True, timeout=10)
    ways, _ = two.ask("seek", one.ask("host", ""))
    assert ways == [["10.9.0.1", "net0"]]
