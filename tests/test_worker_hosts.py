"""The ranks of several hosts meet, by the network: two fork templates on this machine, each in the place of a host."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from worker_rig import ROOT, Rank, Rig

from zlaunch.protocol import letter
from zlaunch.protocol.local import Ready
from zlaunch.systems.processes import descendants


@pytest.fixture(scope="module")
def hosts():
    with Rig(preload=("torch",)) as one, Rig(preload=("torch",)) as two:
        for rig in (one, two):
            assert isinstance(rig.ready, Ready)
        yield one, two


@pytest.fixture(autouse=True)
def _nothing_left(hosts):
    """In the place of conftest's: the templates stay for the module, and nothing may be left below them."""
    yield
    deadline = time.monotonic() + 5
    while any(descendants(rig.process.pid) for rig in hosts) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(descendants(rig.process.pid) for rig in hosts)


@contextlib.contextmanager
def kept_port():
    """As rank 0's agent keeps it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", 0))
        yield sock.getsockname()[1]


def run(hosts, function, *args, n=2, address="127.0.0.1", on_forked=None, only=None, **changes) -> list[Rank]:
    """Run a function with a gloo group on ``n`` ranks of each host; ``only`` leaves out the other hosts."""
    ranks: dict[int, list[Rank]] = {}
    frames = [bytes(frame) for frame in letter.dump((function, args, {}))]

    def one(node: int, port: int) -> None:
        step = hosts[node].step(**{"backend": "gloo"} | changes)
        ranks[node] = hosts[node].run(
            step,
            frames,
            n=n,
            port=port,
            node=node,
            nodes=len(hosts),
            on_forked=on_forked,
            master_addr=address,
        )

    with kept_port() as port:
        nodes = range(len(hosts)) if only is None else only
        threads = [threading.Thread(target=one, args=(node, port)) for node in nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [rank for node in sorted(ranks) for rank in ranks[node]]


def payloads(ranks: list[Rank]) -> list[object]:
    return [rank.payload if rank.answer.kind == "value" else rank.answer.text for rank in ranks]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_group_over_two_hosts(hosts, address):
    def work():
        import torch
        import torch.distributed as dist

        total = torch.ones(1) * dist.get_rank()
        dist.all_reduce(total)
        return total.item(), dist.get_world_size(), os.environ["NODE_RANK"], os.environ["MASTER_ADDR"]

    ranks = run(hosts, work, address=address)
    assert payloads(ranks) == [(6.0, 4, str(node), address) for node in (0, 0, 1, 1)]
    assert [rank.code for rank in ranks] == [0] * 4
    assert b"".join(rank.err for rank in ranks) == b""


def test_ranks_that_come_and_go_at_their_own_pace(hosts):
    """Rank 0, who serves the store, is through first; another rank still needs it for a group of two of them."""

    def work():
        import torch
        import torch.distributed as dist

        rank = dist.get_rank()
        if rank:
            time.sleep(0.3)
        pair = dist.new_group([1, 3])
        if rank not in (1, 3):
            return rank
        total = torch.ones(1)
        dist.all_reduce(total, group=pair)
        return total.item() + rank

    assert payloads(run(hosts, lambda: work() + 10)) == [10, 13, 12, 15]
    for _ in range(3):
        assert payloads(run(hosts, lambda: int(os.environ["RANK"]) + 1)) == [1, 2, 3, 4]


def test_the_port_is_the_function_s_own(hosts):
    """MASTER_PORT can be had by whoever makes a group of his own, in the first one's place or beside it."""

    def again():
        import torch
        import torch.distributed as dist

        total = torch.ones(1)
        dist.destroy_process_group()
        dist.init_process_group("gloo")
        dist.all_reduce(total)
        return total.item()

    def beside():
        import torch.distributed as dist

        rank = dist.get_rank()
        port = int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(os.environ["MASTER_ADDR"], port, 4, is_master=rank == 0)
        store.set(f"k{rank}", str(rank))
        values = [int(store.get(f"k{other}")) for other in range(4)]
        dist.barrier()
        return values

    assert payloads(run(hosts, again)) == [4.0] * 4
    assert payloads(run(hosts, beside)) == [[0, 1, 2, 3]] * 4


def test_a_rank_that_never_comes_is_named(hosts):
    ranks = run(hosts, os.getpid, only=[0], timeout=2.0)
    for rank in ranks:
        assert rank.answer.kind == "exception"
        assert "Timed out after 2 s waiting for ranks 2, 3 (joined)" in rank.answer.text
        assert rank.answer.symptom
    ranks = run(hosts, os.getpid, only=[1], timeout=1.0)
    assert all("Timed out after 1 s waiting for rank 0 at 127.0.0.1" in rank.answer.text for rank in ranks)
    assert all(rank.answer.symptom for rank in ranks)


def test_meeting_takes_no_longer_than_it_must(hosts):
    """The host of rank 0 is late: the others find it as soon as it is there."""
    began = time.monotonic()
    assert len(set(payloads(run(hosts, time.monotonic)))) == 4
    assert time.monotonic() - began < 2


# --- name servers ---------------------------------------------------------------------------------------------------

SILENT = """
mount --bind "$1" /etc/resolv.conf && ip link set lo up && ip addr add 10.1.1.1/32 dev lo && shift && exec "$@"
"""
ASKED = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from zlaunch.worker.linux import no_name_servers
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.99", 53))
server.settimeout(0.1)
def asked():
    try:
        socket.getnameinfo(("10.1.1.1", 1), 0)
    except socket.gaierror:  # that nobody has answered
        pass
    try:
        return bool(server.recv(1000))
    except TimeoutError:
        return False
    finally:
        server.setblocking(False)
        try:
            while server.recv(1000): pass
        except BlockingIOError:
            server.settimeout(0.1)
seen = []
with no_name_servers("10.1.1.1"):
    seen.append(asked())
    assert socket.gethostbyname("localhost") == "127.0.0.1"
seen.append(asked())
with no_name_servers("a.name"):
    seen.append(asked())
print(seen)
"""


def test_no_name_server_is_asked_while_ranks_meet(tmp_path):
    """In a network of its own, where a name server hears and never answers."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("a network of its own needs root and unshare")
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.99\noptions timeout:1 attempts:1\n")
    words = [
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-c",
        SILENT,
        "sh",
        str(resolv),
        sys.executable,
        "-c",
        ASKED,
        str(ROOT),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout == "[False, True, True]\n", done.stderr
