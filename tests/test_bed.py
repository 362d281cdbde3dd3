"""The test bed does what it says: without it no test of hosts means anything."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from bed import Bed, freezer, missing
from bed.programs import until

SILENCE = 0.3
"""Seconds in which something that takes a millisecond would have come."""


def ssh(bed: Bed, name: str, command: str, timeout: float = 30) -> str:
    argv = ["ssh", "-F", str(bed.ssh_config), name, command]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=timeout).stdout.strip()


@contextmanager
def connected(bed: Bed, name: str) -> Iterator[socket.socket]:
    """A connection to a host's sshd that has said its banner and now waits for us."""
    with socket.create_connection((bed.address(name), 22), 5) as connection:
        assert connection.recv(100).startswith(b"SSH-2.0")
        yield connection


def hears(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], SILENCE)[0])


def connects(bed: Bed, name: str, timeout: float = SILENCE) -> bool:
    try:
        socket.create_connection((bed.address(name), 22), timeout).close()
    except OSError:
        return False
    return True


def reaches(bed: Bed, name: str, address: str, port: int) -> bool:
    """Whether a connection can be opened from within a host."""
    dial = f"import socket; socket.create_connection(('{address}', {port}), {SILENCE})"
    return bed.run(name, [sys.executable, "-S", "-c", dial]).returncode == 0


@pytest.fixture
def listener(bed: Bed) -> Iterator[int]:
    """The port of a socket that listens on the head."""
    with socket.create_server((bed.head_address, 0)) as server:
        yield server.getsockname()[1]


def test_ssh_reaches_every_host_by_name_address_and_ipv6(bed: Bed) -> None:
    assert [ssh(bed, name, "hostname") for name in bed.hosts[:2]] == bed.hosts[:2]
    assert ssh(bed, bed.address("node2"), "hostname; whoami; pwd").split() == ["node2", "root", "/root"]
    came_from = ssh(bed, "node3-six", "hostname; echo $SSH_CONNECTION").split()
    assert came_from[:2] == ["node3", bed.address("head", six=True)]


def test_a_host_is_one_of_its_own(bed: Bed) -> None:
    asked = "cat /etc/machine-id /proc/sys/kernel/random/boot_id; ls -A /tmp/mine /root/mine /dev/shm/mine"
    bed.path("node1", "/root/mine").write_text("")
    assert ssh(bed, "node1", "touch /tmp/mine /dev/shm/mine; ls /root") == "mine"
    facts = [bed.run(name, ["sh", "-c", f"{asked} 2>&1"]).stdout.splitlines() for name in bed.hosts]
    assert len({line for fact in facts for line in fact[:2]}) == 2 * len(bed.hosts)
    assert facts[0][2:] == ["/dev/shm/mine", "/root/mine", "/tmp/mine"]
    assert all("No such file" in line for fact in facts[1:] for line in fact[2:])
    assert not any(os.path.exists(path) for path in ("/tmp/mine", "/root/mine", "/dev/shm/mine"))
    bed.run("node1", ["rm", "/tmp/mine", "/root/mine", "/dev/shm/mine"])
    assert bed.run("node1", ["getent", "hosts", "example.org"]).returncode != 0


def test_names_and_addresses_are_as_awkward_as_in_life(bed: Bed) -> None:
    own = "import socket; print(socket.gethostbyname(socket.gethostname()), socket.gethostbyname('node2'))"
    assert ssh(bed, "node1", f'{sys.executable} -c "{own}"').split() == ["127.0.1.1", bed.address("node2")]
    decoys = {bed.run(name, ["ip", "-4", "-o", "addr", "show", "docker0"]).stdout.split()[3] for name in bed.hosts}
    assert decoys == {"172.17.0.1/16"}


def test_what_is_shared_is_there(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("from the head")
    assert ssh(bed, "node2", f"cat {tmp_path}/here && echo back > {tmp_path}/there") == "from the head"
    assert (tmp_path / "there").read_text() == "back\n"
    where = ssh(bed, "node2", f"{sys.executable} -c 'import zlaunch; print(zlaunch.__file__)'")
    assert where == sys.modules["zlaunch"].__file__


def test_run_goes_in_without_ssh(bed: Bed) -> None:
    done = bed.run("node1", ["sh", "-c", "hostname; pwd; cat; echo oops >&2; exit 3"], input="word", cwd="/etc")
    assert (done.returncode, done.stdout, done.stderr) == (3, "node1\n/etc\nword", "oops\n")
    with pytest.raises(subprocess.TimeoutExpired):
        bed.run("node1", ["sleep", "987"], timeout=0.2)
    bed.restore()


def test_processes_are_told_and_restore_finds_strays(fresh_bed: Bed) -> None:
    bed = fresh_bed
    assert bed.processes("node1") == []
    with bed.popen("node1", ["sleep", "4321"], stdin=subprocess.DEVNULL) as sleeper:
        ssh(bed, "node1", "setsid sleep 1234 >&- 2>&- <&- &")
        until(lambda: "sleep 1234" in dict(map(reversed, bed.processes("node1"))), "the shell becomes it")
        commands = {command: pid for pid, command in bed.processes("node1")}
        assert set(commands) == {"sleep 4321", "sleep 1234"}
        here = psutil.Process(bed.pid_in_root("node1", commands["sleep 1234"]))
        assert here.cmdline() == ["sleep", "1234"]
        sleeper.kill()
    with pytest.raises(AssertionError, match="sleep 1234") as error:
        bed.restore()
    assert "4321" not in str(error.value)
    assert bed.processes("node1") == []
    assert ssh(bed, "node1", "hostname") == "node1"


def test_a_killed_host_says_so_and_boots_again(fresh_bed: Bed) -> None:
    bed = fresh_bed
    boot = ssh(bed, "node2", "cat /proc/sys/kernel/random/boot_id")
    with connected(bed, "node2") as connection:
        bed.kill("node2")
        assert hears(connection)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((bed.address("node2"), 22), 5)
    bed.boot("node2")
    assert ssh(bed, "node2", "cat /proc/sys/kernel/random/boot_id") != boot


def test_a_host_without_power_is_silent(fresh_bed: Bed) -> None:
    bed = fresh_bed
    with connected(bed, "node2") as connection:
        bed.poweroff("node2")
        connection.sendall(b"SSH-2.0-anybody there\r\n")
        assert not hears(connection)
        assert not bed.alive("node2")
        assert not connects(bed, "node2")
    bed.restore()
    assert ssh(bed, "node2", "hostname") == "node2"


def test_a_frozen_host_accepts_and_says_nothing(fresh_bed: Bed) -> None:
    bed = fresh_bed
    bed.freeze("node3")
    with socket.create_connection((bed.address("node3"), 22), 5) as connection:
        assert not hears(connection)
        bed.thaw("node3")
        assert connection.recv(100).startswith(b"SSH-2.0")


@pytest.mark.parametrize("ways", [slice(0, 1), slice(1, 2), slice(0, 0)], ids=["first", "second", "signals"])
def test_every_way_to_freeze(ways: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing():
        pytest.skip(reason)
    there = freezer._places()[ways]  # where there is none the signals are tested again
    monkeypatch.setattr(freezer, "_places", lambda: there)
    with Bed(1) as bed:
        bed.freeze("node1")
        with socket.create_connection((bed.address("node1"), 22), 5) as connection:
            assert not hears(connection)
            bed.thaw("node1")
            assert connection.recv(100).startswith(b"SSH-2.0")
        bed.freeze("node1")


def test_a_cut_is_silent_and_heals(fresh_bed: Bed) -> None:
    bed = fresh_bed
    with connected(bed, "node1") as connection:
        bed.cut("node1")
        connection.sendall(b"SSH-2.0-OpenSSH_9.0\r\n")
        assert not hears(connection)
        assert not connects(bed, "node1")
        bed.heal("node1")
        connection.settimeout(10)
        assert connection.recv(100)  # nothing was lost: the kernels asked again


def test_a_cut_may_be_one_way(fresh_bed: Bed, listener: int) -> None:
    bed = fresh_bed
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as letters:
        letters.bind((bed.head_address, 0))
        send = ["bash", "-c", f"echo hello >/dev/udp/{bed.head_address}/{letters.getsockname()[1]}"]
        bed.cut("node1", outgoing=False)
        bed.run("node1", send)
        assert hears(letters)
        letters.recv(100)
        assert not connects(bed, "node1")
        bed.heal("node1")
        bed.cut("node1", incoming=False)
        bed.run("node1", send)
        assert not hears(letters)
    receive = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 7777)); print(flush=True); s.recv(9)"
    )
    with bed.popen("node1", [sys.executable, "-S", "-c", receive], stdout=subprocess.PIPE) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(b"come in", (bed.address("node1"), 7777))
        assert receiver.wait(10) == 0


def test_two_hosts_can_be_parted(fresh_bed: Bed, listener: int) -> None:
    bed = fresh_bed
    bed.part("node1", "node2")
    assert not reaches(bed, "node1", bed.address("node2"), 22)
    assert not reaches(bed, "node2", bed.address("node1", six=True), 22)
    assert reaches(bed, "node3", bed.address("node1", six=True), 22)
    assert reaches(bed, "node1", bed.head_address, listener)
    bed.heal("node1")
    assert reaches(bed, "node2", bed.address("node1"), 22)


def test_a_head_behind_nat_can_be_dialed_by_nobody(fresh_bed: Bed, listener: int) -> None:
    bed = fresh_bed
    assert reaches(bed, "node1", bed.head_address, listener)
    bed.block_head("node1")
    assert not reaches(bed, "node1", bed.head_address, listener)
    assert not reaches(bed, "node1", bed.address("head", six=True), 22)
    assert reaches(bed, "node1", bed.address("node2"), 22)
    assert ssh(bed, "node1", "hostname") == "node1"


def test_a_slow_link_delays_loses_and_heals(fresh_bed: Bed) -> None:
    bed = fresh_bed

    def trip() -> float:
        began = time.monotonic()
        assert connects(bed, "node1", 5)
        return time.monotonic() - began

    bed.slow("node1", 60)
    assert trip() >= 0.12
    bed.slow("node1", 5, 1)
    assert ssh(bed, "node1", "head -c 1000000 /dev/zero | md5sum; head -c 300000 /dev/zero").count("\0") == 300000
    bed.slow("node1", 0, 100)
    assert not connects(bed, "node1")
    bed.heal("node1")
    assert trip() < 0.1


def traces(folder: Path, interface: str, pids: list[int]) -> list[str]:
    """What there is of a bed that should be gone; children of init that nobody has buried yet do not count."""
    found = [str(folder)] if folder.exists() else []
    found += [name for name in psutil.net_if_addrs() if name == interface]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if folder.name in line]
    for place in freezer._places():
        found += [str(path) for path in place.glob(f"{folder.name}*")]
    for pid in pids:
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            found.append(f"process {pid}")
    return found


def test_down_leaves_nothing_and_two_beds_live_side_by_side(bed: Bed) -> None:
    with Bed(2, decoy=False, ipv6=False, debian_hosts=False) as other:
        assert other.address("node1") != bed.address("node1")
        assert ssh(other, "node2", "hostname; ls /sys/class/net").split() == ["node2", "eth0", "lo"]
        assert other.address("node1") in other.run("node1", ["getent", "hosts", "node1"]).stdout
        with other.popen("node1", ["sleep", "100"]) as sleeper:
            other.slow("node1", 1)
            other.freeze("node2")
            mine = [(p.pid, " ".join(p.info["cmdline"] or [])) for p in psutil.process_iter(["cmdline"])]
            pids = [pid for pid, command in mine if str(other.folder) in command]
            pids += [other.pid_in_root("node1", pid) for pid, _ in other.processes("node1")]
            assert len(pids) >= 5
            interface = (other.folder / "interface").read_text()
            assert len(traces(other.folder, interface, pids)) >= len(pids) + 2
            other.down()
            assert sleeper.wait(10) != 0
        assert traces(other.folder, interface, pids) == []
        other.down()
    assert ssh(bed, "node1", "hostname") == "node1"


DOOMED = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from bed import Bed
bed = Bed(2, folder=sys.argv[2])
bed.slow("node1", 1)
bed.freeze("node2")
print(bed.folder, *(bed._programs[name].pid for name in bed.hosts), flush=True)
time.sleep(1000)
"""


def test_what_a_killed_bed_has_left_the_next_one_removes(bed: Bed, tmp_path: Path) -> None:
    folder = tempfile.mkdtemp(dir=tmp_path)
    argv = [sys.executable, "-c", DOOMED, str(Path(__file__).parent), folder]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        name, *words = owner.stdout.readline().split()
        interface, pids = (Path(name) / "interface").read_text(), [int(word) for word in words]
        thawed = os.pidfd_open(pids[0])
        owner.send_signal(signal.SIGKILL)
    assert select.select([thawed], [], [], 10)[0], "a host outlives its owner"
    os.close(thawed)
    assert any("process" in trace for trace in traces(Path(name), interface, pids)), "the frozen one cannot know"
    Bed(0, folder=folder).down()
    assert traces(Path(name), interface, pids) == []
    assert os.listdir(folder) == []


def test_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert missing() == "a test bed of hosts needs root"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("bed.needs.PATH", "/nowhere")
    assert "openssh-server" in str(missing())
