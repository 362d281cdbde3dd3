"""Whoever comes to the wire without being asked, or says what nobody says: refused, counted, told; the others go on.

In each test an honest agent is connected throughout, and has to be there, and served, at the end.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq
from wiring import PATIENCE, Child, Stranger, hear, hello, join, listen, some, while_serving

from zlaunch._version import __version__
from zlaunch.link.hub import Heard, Hub, Joined, Left, LinkError, Refused
from zlaunch.link.reception import _REPORTS
from zlaunch.link.spoke import Lost, Spoke, Told
from zlaunch.link.spoke import Refused as SpokeRefused
from zlaunch.protocol import messages as m
from zlaunch.protocol.frames import ATTACH_LIMIT, CONTROL_MAX, PIECE, Inbound, VersionMismatch, encode
from zlaunch.protocol.frames import TO_AGENT as AGENT_DECODER

NOBODY = 7


class Scene:
    """A hub, an honest agent as host 0, and strangers."""

    def __init__(self) -> None:
        self.hub = Hub(heartbeat=0.5, silence=2.0)
        self.honest = join(self.hub, 0)
        self.strangers: list[Stranger] = []

    def stranger(self, invitation: Any = None, **how: Any) -> Stranger:
        invitation = self.hub.invite(1) if invitation is None else invitation
        self.strangers.append(Stranger(self.hub, invitation, **how))
        return self.strangers[-1]

    def known(self) -> Stranger:
        """One with a good key, who has joined as host 1 and now begins to misbehave."""
        stranger = self.stranger()
        stranger.greet()
        hear(self.hub, some(Joined))
        return stranger

    def refused(self, kind: str, times: int = 1) -> list[Refused]:
        told = hear(self.hub, lambda _: self.hub.counters.get(kind, 0) >= times, self.honest)
        told += self.hub.poll(0)[0]
        assert not [event for event in told if isinstance(event, Heard | Joined | Left)], told
        return [event for event in told if isinstance(event, Refused) and event.kind == kind]

    def hung_up_on(self, times: int) -> None:
        """Refused in the handshake. Where both ends see that it cannot work, the first one hangs up."""
        counters = self.hub.counters
        while (counters.get("handshake", 0) + counters.get("dropped", 0)) < times:
            told = hear(self.hub, some(Refused), self.honest)
            assert {type(event) for event in told} == {Refused}
            counters = self.hub.counters

    def undisturbed(self) -> None:
        self.hub.send(0, m.Ping(4.5))
        assert Told(m.Ping(4.5), None) in listen(self.honest, some(Told), self.hub)
        self.honest.send(m.Pong(4.5, 1.0, False))
        told = hear(self.hub, some(Heard), self.honest)
        assert Heard(0, m.Pong(4.5, 1.0, False), None) in told


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    try:
        scene.undisturbed()
    finally:
        for stranger in scene.strangers:
            stranger.close()
        scene.honest.close()
        scene.hub.close()


# --- without a key that counts --------------------------------------------------------------------------------------


def test_a_client_without_curve(scene: Scene) -> None:
    scene.stranger(server=None).greet()
    scene.hung_up_on(2)


def test_a_client_with_a_key_that_nobody_gave(scene: Scene) -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    scene.stranger(public=public, secret=secret).greet()
    refused = scene.refused("key", 2)
    assert "127.0.0.1" in refused[0].text


def test_a_client_that_knows_another_server_key(scene: Scene) -> None:
    scene.stranger(server=zmq.curve_keypair()[0].decode()).greet()
    scene.hung_up_on(2)


def test_the_public_key_of_another_without_its_secret(scene: Scene) -> None:
    scene.stranger(secret=zmq.curve_keypair()[1].decode()).greet()
    scene.hung_up_on(2)


def test_a_spoke_is_told_why_it_may_not_come_in(scene: Scene) -> None:
    stale = scene.hub.invite(1)
    scene.hub.invite(1)
    spoke = Spoke(stale)
    with pytest.raises(LinkError, match="does not accept this agent's key"):
        while_serving(scene.hub, lambda: spoke.connect(5))
    spoke.close()


def test_a_key_that_was_revoked(scene: Scene) -> None:
    stale = scene.hub.invite(1)
    scene.hub.forget(1)
    scene.stranger(stale).greet()
    assert scene.refused("key", 2)


def test_a_key_that_is_revoked_while_it_is_used(scene: Scene) -> None:
    stranger = scene.known()
    fresh = scene.hub.invite(1)
    stranger.say(2, m.Pong(1.0, 1.0, False))
    stranger.say(2, m.Piece(1, 0), b"x", bulk=True)
    assert all("not expected any more" in event.text for event in scene.refused("identity", 2))
    assert fresh.incarnation == 2
    spoke = join(scene.hub, invitation=fresh)
    stranger.close()
    assert scene.hub.poll(0.1)[0] == []  # the end of the former agent is not the end of the new one
    spoke.close()
    assert hear(scene.hub, some(Left))[-1] == Left(1, "the connection to its agent broke")


# --- with a good key, under another name ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0.1.abcdefghijkl/0", "1.1/0", "", "\x01binary", "x" * 255, "1.1.{key}/0/0"])
def test_a_good_key_under_another_name(scene: Scene, name: str) -> None:
    invitation = scene.hub.invite(1)
    scene.stranger(invitation, identity=name.format(key=invitation.public_key[:12])).greet()
    assert [event.host for event in scene.refused("identity", 2)] == [1, 1]


def test_the_name_of_one_who_is_there(scene: Scene) -> None:
    theirs = scene.honest._invitation.user + "/0"
    scene.stranger(identity=theirs).greet()  # a ROUTER does not even take up a name twice
    assert scene.hub.poll(0.2)[0] == []


def test_a_name_cannot_be_taken_before_its_owner_comes(scene: Scene) -> None:
    squatter = scene.hub.invite(1)
    scene.stranger(squatter, identity="2.1.guessed/0").greet()
    scene.refused("identity", 2)
    late = join(scene.hub, 2)
    late.close()
    hear(scene.hub, some(Left))


def test_a_second_connection_with_the_same_key(scene: Scene) -> None:
    first = scene.known()
    scene.stranger(first.invitation, identity=first.invitation.user + "/1").greet()
    assert all("connected already" in event.text for event in scene.refused("identity", 2))


# --- not even ZeroMQ ------------------------------------------------------------------------------------------------

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE".ljust(24, b"\0") + bytes(31)


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        os.urandom(4096),
        b"\xff" * 4096,
        bytes(4096),
        GREETING[:20],
        GREETING,
        GREETING + b"\x04\xc8\x05HELLO" + bytes(194),
        GREETING + b"\x04\x05\x05HELL",
        GREETING + b"\x06" + b"\xff" * 8,
        pickle.dumps(os.system),
    ],
)
def test_noise(scene: Scene, noise: bytes) -> None:
    for endpoint in scene.honest._invitation.control + scene.honest._invitation.bulk:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as client:
            client.sendall(noise)
            scene.hub.poll(0.02)
    hear(scene.hub, lambda _: sum(scene.hub.counters.values()) >= 2, scene.honest)
    assert set(scene.hub.counters) <= {"dropped", "handshake"}


def test_a_thousand_strangers_are_counted_and_few_are_told(scene: Scene) -> None:
    endpoint = scene.honest._invitation.control[0]
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    told = []
    for _ in range(1000):
        socket.create_connection((host, int(port)), timeout=5).close()
    begun = time.monotonic()
    while sum(scene.hub.counters.values()) < 1000:
        assert time.monotonic() < begun + PATIENCE
        told += scene.hub.poll(0.01)[0]
    assert len(told) <= _REPORTS * (2 + time.monotonic() - begun)


def test_connections_that_say_nothing_do_not_keep_others_out(scene: Scene) -> None:
    endpoint = scene.honest._invitation.control[0]
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    mute = [socket.create_connection((host, int(port)), timeout=5) for _ in range(200)]
    join(scene.hub, 2).close()
    hear(scene.hub, some(Left))
    for client in mute:
        client.close()


def test_running_out_of_descriptors_is_said() -> None:
    program = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from zlaunch.link.hub import Hub
hub = Hub()
host, _, port = hub.invite(0).control[0].removeprefix("tcp://").rpartition(":")
print(host, port, flush=True)
while not hub.counters.get("accept"):
    events = hub.poll(20)[0]
print([event.text for event in events if event.kind == "accept"][0])
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=_root())
    assert child.stdout is not None
    host, port = child.stdout.readline().split()
    clients = [socket.create_connection((host, int(port)), timeout=5) for _ in range(64)]
    said, _ = child.communicate(timeout=PATIENCE)
    assert "Too many open files" in said
    for client in clients:
        client.close()


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# --- a good key, and nonsense ---------------------------------------------------------------------------------------


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def _header(message: Any, seq: int = 2, protocol: int = m.PROTOCOL, magic: bytes = b"zl") -> Any:
    return lambda nonce: msgspec.msgpack.encode([magic, protocol, nonce, seq, message])


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda _: b"", "malformed"),
        (lambda _: os.urandom(300), "malformed"),
        (lambda _: pickle.dumps(Trap()), "malformed"),
        (lambda nonce: encode(nonce, 2, m.Bye())[:-3], "malformed"),
        (lambda _: encode(b"another nonce", 2, m.Bye()), "malformed"),
        (lambda nonce: encode(nonce, 2, m.Shutdown()), "malformed"),  # an agent does not say that
        (_header({"type": "eval", "code": "1/0"}), "unknown"),
        (_header({"type": "said", "level": "info"}), "malformed"),
        (_header(m.Said("info", "x"), magic=b"LZ"), "malformed"),
        (lambda nonce: encode(nonce, 1, m.Bye()), None),
        (lambda _: b"x" * (CONTROL_MAX + 1), "oversized"),
    ],
)
def test_a_header_that_is_none(scene: Scene, make: Any, kind: str | None, bulk: bool) -> None:
    stranger = scene.known()
    header = make(stranger.invitation.nonce)
    if kind is None:  # said again, with the number that it had
        header, kind = encode(stranger.invitation.nonce, 1, None if bulk else hello()), "replayed"
    if bulk and kind == "oversized":
        header = b"x" * (PIECE + PIECE // 2)  # above that its connection would end
        kind = "malformed"
    stranger.raw(header, bulk=bulk)
    (refused,) = scene.refused(kind)
    assert refused.host == 1
    assert not os.path.exists("sprung")
    stranger.say(3, m.Said("info", "I will be good"))  # and is heard: one bad word is no reason to lose a host
    assert Heard(1, m.Said("info", "I will be good"), None) in hear(scene.hub, some(Heard))


@pytest.mark.parametrize(
    ("message", "frames", "bulk", "kind"),
    [
        (m.Said("info", "x"), [b"surplus"], False, "malformed"),
        (m.Answered("s", 0, 0, "value", 1.0, payload=m.Attached(5)), [], False, "malformed"),
        (m.Answered("s", 0, 0, "value", 1.0, payload=m.Attached(5)), [b"four"], False, "malformed"),
        (m.Answered("s", 0, 0, "value", 1.0, payload=m.Attached(5)), [b"five!", b"six"], False, "malformed"),
        (
            m.Answered("s", 0, 0, "value", 1.0, payload=m.Attached(ATTACH_LIMIT + 1)),
            [bytes(ATTACH_LIMIT + 1)],
            False,
            "oversized",
        ),
        (hello(), [], False, "malformed"),
        (None, [], True, "malformed"),
        (m.Piece(1, 0), [bytes(PIECE + 1)], True, "oversized"),
        (m.Piece(1, 0), [], True, "malformed"),
        (m.Log(1, "s", 0, "out", 1.0, 9), [b"more than nine"], True, "malformed"),
        (m.Log(1, "s", 0, "out", 1.0, 2000), [b"x"] * 2000, True, "malformed"),
    ],
)
def test_frames_that_are_not_what_the_header_says(
    scene: Scene, message: Any, frames: list[bytes], bulk: bool, kind: str
) -> None:
    scene.known().say(2, message, *frames, bulk=bulk)
    assert scene.refused(kind)[0].host == 1


def test_pieces_out_of_their_place(scene: Scene) -> None:
    stranger = scene.known()
    stranger.say(2, m.Answered("s", 0, 0, "value", 1.0, payload=m.Pieces(1, 10)))
    hear(scene.hub, some(Heard))
    stranger.say(2, m.Piece(1, 4), b"gap", bulk=True)
    stranger.say(3, m.Piece(1, 0), b"more than was announced", bulk=True)
    assert len(scene.refused("malformed", 2)) == 2


def test_pieces_that_nothing_announces_are_held_within_bounds(scene: Scene) -> None:
    stranger = scene.known()
    for number in range(200):
        stranger.say(number + 2, m.Piece(number, 0), b"x", bulk=True)
    assert "nothing has announced" in scene.refused("unknown", 200 - 64)[0].text


def test_words_before_a_hello(scene: Scene) -> None:
    stranger = scene.stranger()
    stranger.say(1, m.Bye())
    stranger.say(1, m.Log(1, "s", 0, "out", 1.0, 1), b"x", bulk=True)
    assert [event.host for event in scene.refused("malformed", 2)] == [1, 1]
    stranger.say(2, hello())
    stranger.say(2, None, bulk=True)
    assert Joined(1) in hear(scene.hub, some(Joined))


def test_too_much_before_both_channels_are_there(scene: Scene) -> None:
    stranger = scene.stranger()
    stranger.say(1, hello())
    for number in range(3000):
        stranger.say(number + 2, m.Said("info", "x"))
    scene.refused("malformed", 3000 + 1 - 1024)


def test_a_frame_beyond_all_bounds_ends_its_connection_only(scene: Scene) -> None:
    stranger = scene.known()
    stranger.raw(bytes(2 * CONTROL_MAX + 1))
    assert hear(scene.hub, some(Left), scene.honest)[-1] == Left(1, "the connection to its agent broke")


def test_another_version_is_refused_in_words_that_both_can_read(scene: Scene) -> None:
    stranger = scene.stranger()
    newer = msgspec.structs.replace(hello(), facts=msgspec.structs.replace(hello().facts, version="7.8"))
    stranger.raw(_header(newer, seq=1, protocol=2)(stranger.invitation.nonce))
    (refused,) = scene.refused("version")
    assert f"zlaunch {__version__}, protocol {m.PROTOCOL}" in refused.text
    assert "zlaunch 7.8, protocol 2" in refused.text
    deadline = time.monotonic() + PATIENCE
    while not stranger.control.poll(10):
        scene.hub.poll(0.01)
        assert time.monotonic() < deadline
    answer = stranger.control.recv()
    assert msgspec.msgpack.decode(answer)[:2] == [b"zl", m.PROTOCOL]
    text = Inbound(stranger.invitation.nonce, AGENT_DECODER).decode(answer)
    assert "zlaunch 7.8, protocol 2" in text
    with pytest.raises(VersionMismatch, match="zlaunch 7"):  # what an agent of that version will say
        Inbound(b"", AGENT_DECODER).decode(msgspec.msgpack.encode([b"zl", 2, b"", 1, text]))


def test_a_flood_of_nonsense_delays_nobody_for_long(scene: Scene) -> None:
    stranger = scene.known()
    for _ in range(5000):
        stranger.raw(b"nonsense")
    begun = time.monotonic()
    scene.undisturbed()
    assert time.monotonic() - begun < 2.0
    scene.refused("malformed", 5000)


def test_a_stranger_that_is_killed_amid_a_payload(scene: Scene) -> None:
    child = Child(scene.hub, 1)
    scene.hub.send(1, m.Start("s", 0, "k", (), m.Pieces(1, 64 * PIECE)))
    scene.hub.send_payload(1, 1, memoryview(bytes(64 * PIECE)))
    child.signal(signal.SIGKILL)
    assert hear(scene.hub, some(Left), scene.honest)[-1] == Left(1, "the connection to its agent broke")
    child.end()


# --- a supervisor that is none --------------------------------------------------------------------------------------


def test_an_agent_refuses_nonsense_too() -> None:
    """Whoever has the supervisor's secret key can still say nothing that stops an agent's loop."""
    context = zmq.Context()
    server, secret = zmq.curve_keypair()
    routers = [context.socket(zmq.ROUTER) for _ in range(2)]
    for router in routers:
        router.linger = 0
        router.curve_server, router.curve_secretkey = 1, secret
        router.bind("tcp://127.0.0.1:*")
    control, bulk = ((router.getsockopt_string(zmq.LAST_ENDPOINT),) for router in routers)
    invitation = msgspec.structs.replace(_invitation(), control=control, bulk=bulk, server_key=server.decode())
    spoke = Spoke(invitation)
    spoke.connect(5)
    me = invitation.user.encode() + b"/0"
    for n, header in enumerate(
        [b"", pickle.dumps(Trap()), encode(invitation.nonce, 1, m.Bye()), _header("x", protocol=9)(invitation.nonce)]
    ):
        routers[n % 2].send_multipart([me, header])
    routers[1].send_multipart([me, encode(invitation.nonce, 1, m.Log(1, "s", 0, "out", 1.0, 0))])
    routers[0].send_multipart([me, encode(invitation.nonce, 7, m.Shutdown())])
    told = listen(spoke, lambda told: len(told) >= 6)
    assert sum(isinstance(event, SpokeRefused) for event in told) == 5
    assert Told(m.Shutdown(), None) in told
    assert not os.path.exists("sprung")
    context.destroy(linger=0)
    assert isinstance(listen(spoke, some(Lost))[-1], Lost)
    spoke.close()


def test_an_agent_does_not_talk_to_whoever_has_its_supervisors_address() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.curve_server, router.curve_secretkey = 1, zmq.curve_keypair()[1]
    router.bind("tcp://127.0.0.1:*")
    endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
    spoke = Spoke(msgspec.structs.replace(_invitation(), control=(endpoint,), bulk=(endpoint,)))
    with pytest.raises(LinkError, match="not this run's supervisor"):
        spoke.connect(5)
    spoke.close()
    context.destroy(linger=0)


def _invitation() -> Any:
    hub = Hub()
    try:
        return hub.invite(0)
    finally:
        hub.close()
