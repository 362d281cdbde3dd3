"""How an agent gets through to its supervisor: by which address, how soon, and what is said where none does."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from contextlib import closing
from pathlib import Path

import msgspec
import psutil
import pytest
from wiring import PATIENCE, Tunnel, hear, hello, join, joined, listen, some, while_serving

from zlaunch.link import dialing
from zlaunch.link.hub import Heard, Hub, Invitation, Joined, Left, LinkError, Refused
from zlaunch.link.spoke import PieceCame, Spoke, Told
from zlaunch.protocol import messages as m
from zlaunch.protocol.frames import PIECE, VersionMismatch


def test_the_address_that_answers_is_taken_and_nothing_is_lost() -> None:
    hub = Hub(("127.0.0.1", "127.0.0.2", "127.0.0.3"))
    spokes = [join(hub, host) for host in range(4)]
    for host, spoke in enumerate(spokes):
        for n in range(500):
            spoke.send(m.Pong(float(n), 0.0, False))
            hub.send(host, m.Ping(float(n)))
    told = hear(hub, lambda told: sum(isinstance(e, Heard) and isinstance(e.message, m.Pong) for e in told) == 2000)
    for host, spoke in enumerate(spokes):
        pongs = [e.message for e in told if isinstance(e, Heard) and e.host == host and isinstance(e.message, m.Pong)]
        assert [pong.sent for pong in pongs] == list(map(float, range(500)))
        assert len(listen(spoke, lambda told: len(told) >= 500)) == 500
        spoke.close()
    hub.close()


def test_an_address_that_nobody_answers_does_no_harm() -> None:
    hub = Hub()
    invitation = hub.invite(0)
    dead = f"tcp://127.0.0.1:{_closed_port()}"
    spoke = join(hub, invitation=_with(invitation, dead))
    hub.send(0, m.Shutdown())
    assert listen(spoke, some(Told)) == [Told(m.Shutdown(), None)]
    spoke.close()
    hub.close()


def test_ipv6() -> None:
    hub = Hub(("::1", "127.0.0.1"))
    if "::1" in hub.skipped:
        hub.close()
        pytest.skip("this machine has no IPv6")
    invitation = hub.invite(0)
    assert invitation.control[0].startswith("tcp://[::1]:")
    only = msgspec.structs.replace(invitation, control=invitation.control[:1], bulk=invitation.bulk[:1])
    spoke = join(hub, invitation=only, first="0:0:0:0:0:0:0:1")
    assert spoke.way == only.control[0]
    spoke.close()
    hub.close()


def test_who_cannot_get_through_says_where_it_tried_and_why() -> None:
    hub = Hub()
    port = _closed_port()
    invitation = msgspec.structs.replace(
        hub.invite(0), control=(f"tcp://127.0.0.1:{port}",), bulk=(f"tcp://127.0.0.1:{port}",)
    )
    hub.close()
    spoke = Spoke(invitation)
    with pytest.raises(LinkError, match=f"127.0.0.1:{port}: .*refused"):
        spoke.connect(5)
    spoke.close()


def test_who_gets_no_answer_gives_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        hub = Hub()
        endpoint = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        spoke = Spoke(msgspec.structs.replace(hub.invite(0), control=(endpoint,), bulk=(endpoint,)))
        with pytest.raises(LinkError, match=r"no answer within 0\.3 s"):
            spoke.connect(0.3)
        spoke.close()
        hub.close()


def test_an_address_that_is_not_ours_cannot_be_listened_on() -> None:
    with pytest.raises(LinkError, match=r"192\.0\.2\.1"):
        Hub(("192.0.2.1",))


def test_addresses_that_cannot_be_listened_on_are_left_out() -> None:
    hub = Hub(("192.0.2.1", "127.0.0.2", "fe80::1%lo", "0.0.0.0", "localhost"))
    assert set(hub.skipped) == {"192.0.2.1", "fe80::1%lo", "0.0.0.0", "localhost"}
    assert "link-local" in hub.skipped["fe80::1%lo"]
    assert [_host(endpoint) for endpoint in hub.invite(0).control] == ["127.0.0.2", "127.0.0.1"]
    join(hub).close()
    hub.close()


def test_another_machine_is_not_sent_to_its_own_loopback() -> None:
    others = _other_addresses()
    hub = Hub(("127.0.0.2", *others))
    here, there = hub.invite(0), hub.invite(1, here=False, tunnel="/tmp/of-ssh")
    assert [_host(endpoint) for endpoint in here.control] == ["127.0.0.2", "127.0.0.1"]
    assert [_host(endpoint) for endpoint in there.control] == [_host(endpoint) for endpoint in there.bulk] == others
    assert here.tunnel is None
    assert there.tunnel == ("ipc:///tmp/of-ssh.c", "ipc:///tmp/of-ssh.b")
    assert here.control[-1] == f"tcp://127.0.0.1:{hub.tunnel_ports[0]}"
    assert here.bulk[-1] == f"tcp://127.0.0.1:{hub.tunnel_ports[1]}"
    if others:
        spoke = join(hub, 1, there)
        assert spoke.way in there.control
        spoke.close()
    hub.close()


def test_the_address_that_is_known_to_be_good_has_a_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "HEAD_START", PATIENCE)
    hub = Hub(("127.0.0.1", "127.0.0.2", "127.0.0.3"))
    spoke = join(hub, first="127.0.0.3")
    assert _host(spoke.way) == "127.0.0.3"
    assert hub.poll(0.05) == ([], set())
    assert hub.counters == {}  # no other was dialed
    spoke.close()
    hub.close()


def test_a_good_address_that_fails_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "HEAD_START", 2 * PATIENCE)
    hub = Hub()
    invitation = hub.invite(0)
    dead = f"tcp://127.0.0.2:{_closed_port()}"
    spoke = join(hub, 0, _with(invitation, dead), first="127.0.0.2")
    assert spoke.way == invitation.control[0]
    spoke.close()
    hub.close()


def test_a_good_address_that_is_mute_delays_by_its_head_start(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.2", 0)) as mute:
        hub = Hub()
        invitation = hub.invite(0)
        spoke = Spoke(_with(invitation, f"tcp://127.0.0.2:{mute.getsockname()[1]}"))
        assert spoke.way == ""
        begun = time.monotonic()
        while_serving(hub, lambda: spoke.connect(PATIENCE, "127.0.0.2"))
        took = time.monotonic() - begun
        assert spoke.way == invitation.control[0]
        assert dialing.HEAD_START <= took < dialing.HEAD_START + 2
        spoke.close()
        hub.close()
    with capsys.disabled():
        print(f"\npast a mute address: {took * 1e3:.0f} ms")


def test_ways_that_were_not_taken_are_no_reason_to_worry() -> None:
    hub = Hub(("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"))
    spokes, told = [], []
    for host in range(12):
        spokes.append(Spoke(hub.invite(host)))
        told += while_serving(hub, lambda: spokes[-1].connect(PATIENCE))
        spokes[-1].send(hello())
        told += hear(hub, some(Heard))
    told += hub.poll(0.1)[0]
    assert {event.kind for event in told if isinstance(event, Refused)} <= {"dropped"}
    assert set(hub.counters) <= {"dropped"}
    assert sum(isinstance(event, Joined) for event in told) == len(spokes)
    for host, spoke in enumerate(spokes):
        hub.send(host, m.Shutdown())
        assert listen(spoke, some(Told)) == [Told(m.Shutdown(), None)]
        spoke.close()
    hub.close()


def test_the_end_of_a_way_not_taken_is_not_the_end_of_who_has_its_number_now() -> None:
    """Control's monitor may tell an end after bulk's has told that the descriptor came again."""
    with joined() as (hub, spoke):
        reception = hub._reception
        numbers = [channel.fd for channel in reception.peers[0].channels()]
        for bulk, number in enumerate(numbers):
            reception.accepted(number, bulk=not bulk)
            assert not reception.disconnected(number, bulk=not bulk)
        assert hub.poll(0.1) == ([], set())
        spoke.send(m.Bye())
        assert hear(hub, some(Heard)) == [Heard(0, m.Bye(), None)]


def test_the_tunnel_is_taken_where_no_address_gets_through(tmp_path: Path) -> None:
    hub = Hub()
    with socket.create_server(("127.0.0.2", 0)) as mute, closing(Tunnel(hub, f"{tmp_path}/t")):
        invitation = hub.invite(0, here=False, tunnel=f"{tmp_path}/t")
        endpoint = f"tcp://127.0.0.2:{mute.getsockname()[1]}"
        begun = time.monotonic()
        spoke = join(hub, invitation=msgspec.structs.replace(invitation, control=(endpoint,), bulk=(endpoint,)))
        assert time.monotonic() - begun >= dialing.TUNNEL_START
        assert invitation.tunnel is not None
        assert spoke.way == invitation.tunnel[0]
        assert list(tmp_path.iterdir()) == []
        payload = memoryview(os.urandom(5 * PIECE))
        hub.send(0, m.Start("s", 0, "k", (), m.Pieces(9, len(payload))))
        hub.send_payload(0, 9, payload)
        arrived = listen(spoke, lambda told: len(told) == 6, hub)
        assert b"".join(event.data for event in arrived if isinstance(event, PieceCame)) == payload
        spoke.send(m.Bye())
        assert spoke.flush(5)
        spoke.close()
        assert hear(hub, some(Left))[-1] == Left(0, "its agent left")
    hub.close()


def test_the_tunnel_is_taken_at_once_where_all_addresses_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "TUNNEL_START", 2 * PATIENCE)
    hub = Hub()
    with closing(Tunnel(hub, f"{tmp_path}/t")):
        dead = f"tcp://127.0.0.1:{_closed_port()}"
        spoke = join(hub, 0, _with(hub.invite(0, here=False, tunnel=f"{tmp_path}/t"), dead))
        assert spoke.way == f"ipc://{tmp_path}/t.c"
        spoke.close()
    hub.close()


def test_a_tunnel_that_is_not_needed_is_not_used_and_its_files_go(tmp_path: Path) -> None:
    hub = Hub()
    with closing(Tunnel(hub, f"{tmp_path}/t")):
        there, here = hub.invite(1, here=False, tunnel=f"{tmp_path}/t"), hub.invite(0)
        spoke = join(hub, invitation=msgspec.structs.replace(here, tunnel=there.tunnel))
        assert spoke.way in here.control
        assert list(tmp_path.iterdir()) == []
        assert hub.counters == {}
        spoke.close()
    hub.close()


def test_who_cannot_get_through_tells_of_the_tunnel_too(tmp_path: Path) -> None:
    hub = Hub()
    port = _closed_port()
    invitation = _with(hub.invite(0, here=False, tunnel=f"{tmp_path}/t"), f"tcp://127.0.0.1:{port}")
    (tmp_path / "t.b").touch()
    spoke = Spoke(invitation)
    with pytest.raises(LinkError, match=f"127.0.0.1:{port}: .*refused; through ssh: No such file"):
        spoke.connect(5)
    spoke.close()
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        spoke = Spoke(msgspec.structs.replace(invitation, control=(endpoint,), bulk=(endpoint,)))
        with pytest.raises(LinkError, match=r"no answer within 0\.3 s; through ssh: there was no time"):
            spoke.connect(0.3)
        spoke.close()
    hub.close()


def test_an_invitation_says_how_long_silence_may_last() -> None:
    hub = Hub(heartbeat=0.5, silence=90_000.0)  # more than ZMTP can say
    invitation = hub.invite(0)
    assert (invitation.heartbeat, invitation.silence) == (0.5, 90_000.0)
    join(hub, invitation=invitation).close()
    hub.close()
    hub = Hub(silence=0.9)
    assert hub.invite(0).heartbeat == pytest.approx(0.3)
    hub.close()


def _with(invitation: Invitation, endpoint: str) -> Invitation:
    """The same with another address before its own."""
    return msgspec.structs.replace(
        invitation, control=(endpoint, *invitation.control), bulk=(endpoint, *invitation.bulk)
    )


def _host(endpoint: str) -> str:
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def _other_addresses() -> list[str]:
    """This machine's addresses that are not loopback: perhaps none."""
    families = (socket.AF_INET, socket.AF_INET6)
    found = [a.address for nic in psutil.net_if_addrs().values() for a in nic if a.family in families]
    ips = [ipaddress.ip_address(address) for address in found]
    return [str(ip) for ip in ips if not ip.is_loopback and not ip.is_link_local]


def test_an_invitation_travels_as_a_line_and_does_not_show_its_secret() -> None:
    hub = Hub()
    invitation = hub.invite(2)
    line = invitation.to_line()
    assert line.count(b"\n") == 1
    assert Invitation.from_line(line) == invitation
    assert invitation.secret_key not in repr(invitation) + str(invitation)
    newer = msgspec.json.encode({**msgspec.to_builtins(invitation), "protocol": 2, "version": "7.8", "host": "new"})
    with pytest.raises(VersionMismatch, match=r"zlaunch 7\.8, protocol 2"):
        Invitation.from_line(newer)
    with pytest.raises(LinkError):
        Invitation.from_line(b"ssh: a banner\n")
    spoke = Spoke(msgspec.structs.replace(invitation, protocol=2, version="7.8"))
    with pytest.raises(LinkError, match=r"zlaunch 7\.8, protocol 2"):
        spoke.connect(1)
    spoke.close()
    hub.close()


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
