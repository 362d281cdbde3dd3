"""The wire's headers: what is said is what is read, and nothing else is read at all."""

from __future__ import annotations

import pickle
import random
from typing import Any

import msgspec
import pytest

from zlaunch._version import __version__
from zlaunch.model import Fate, FateKind, HostFacts, Seat, TemplateSpec
from zlaunch.protocol import messages as m
from zlaunch.protocol.frames import (
    ATTACH_LIMIT,
    BULK,
    CONTROL_MAX,
    PIECE,
    TO_AGENT,
    TO_SUPERVISOR,
    Inbound,
    Malformed,
    Outbound,
    VersionMismatch,
    check_bulk,
    check_control,
    encode,
)

NONCE = b"n" * 16
SEAT = Seat(
    rank=1,
    local_rank=1,
    world_size=2,
    local_world_size=2,
    node_rank=0,
    nodes=1,
    hostname="a",
    master_addr="127.0.0.1",
    master_port=4711,
)
SPEC = TemplateSpec(key="k", preload=("torch",), start_method="fork", env={"A": "ä"}, sys_path=("/x",), cwd="/")
FACTS = HostFacts(hostname="a", pid=7, cores=4, version="9.9")
FATE = Fate(rank=1, local_rank=1, hostname="a", pid=9, kind=FateKind.RAISED, at=2.5, text="ValueError: ü")

TO_AGENTS = [
    m.Welcome(1, 2, b"probe", 3),
    m.Ping(1.5),
    m.Warm(SPEC),
    m.Reserve("s", 0),
    m.Start("s", 0, "k", (SEAT,), m.Pieces(1, 2)),
    m.Start("s", 0, "k", (SEAT,), m.Attached(2)),
    m.Start("s", 0, "k", (SEAT,), m.Shared(1, 2, 3, 4)),
    m.Stop("s", 0, 30.0),
    m.Credit(5),
    m.Release(6),
    m.Shutdown(),
]
TO_SUPERVISORS = [
    m.Hello(FACTS, 1.0),
    m.Pong(1.0, 2.0, True),
    m.Reserved("s", 0, 4711),
    m.Answered("s", 0, 1, "value", 1.0, payload=m.Attached(3)),
    m.Ended("s", 0, FATE, 3),
    m.Closed("s", 0, (), 3),
    m.Said("info", "ü"),
    m.Bye(),
]
BULKS = [None, m.Piece(1, PIECE), m.Log(1, "s", 0, "out", 1.0, 3)]


@pytest.mark.parametrize(
    ("decoder", "messages"), [(TO_AGENT, TO_AGENTS), (TO_SUPERVISOR, TO_SUPERVISORS), (BULK, BULKS)]
)
def test_what_is_said_is_what_is_read(decoder: Any, messages: list[Any]) -> None:
    outbound, inbound = Outbound(NONCE), Inbound(NONCE, decoder)
    assert [inbound.decode(outbound.encode(message)) for message in messages] == messages


def test_each_number_counts_once_and_they_rise() -> None:
    inbound = Inbound(NONCE, TO_AGENT)
    first, second, third = (encode(NONCE, seq, m.Ping(float(seq))) for seq in (1, 2, 3))
    inbound.decode(first)
    inbound.decode(third)
    for old in (first, second, third):
        with pytest.raises(Malformed) as caught:
            inbound.decode(old)
        assert caught.value.kind == "replayed"
    assert inbound.decode(encode(NONCE, 4, m.Shutdown())) == m.Shutdown()


def test_a_header_of_another_run_is_refused() -> None:
    with pytest.raises(Malformed, match="another run"):
        Inbound(NONCE, TO_AGENT).decode(encode(b"o" * 16, 1, m.Ping(1.0)))


@pytest.mark.parametrize(
    "header",
    [
        [b"zl", 2, NONCE, 1, {"type": "hello", "facts": {"version": "7.8"}, "of": "tomorrow"}],
        [b"zl", 2, {"all": "new"}, "and", {"type": "hello", "facts": {"version": "7.8"}}, "longer"],
        [b"zl", 2, NONCE, 1, m.Hello(HostFacts(hostname="a", pid=1, cores=1, version="7.8"), 1.0)],
    ],
)
def test_another_version_is_named_and_so_is_ours(header: list[Any]) -> None:
    with pytest.raises(VersionMismatch) as caught:
        Inbound(NONCE, TO_SUPERVISOR).decode(msgspec.msgpack.encode(header))
    text = str(caught.value)
    assert f"zlaunch {__version__}, protocol {m.PROTOCOL}" in text
    assert "zlaunch 7.8, protocol 2" in text
    assert (caught.value.theirs, caught.value.ours) == (2, m.PROTOCOL)


def test_a_refusal_of_another_version_can_be_read() -> None:
    refusal = msgspec.msgpack.encode([b"zl", 2, NONCE, 1, "no room for protocol 1"])
    with pytest.raises(VersionMismatch, match="no room for protocol 1"):
        Inbound(NONCE, TO_AGENT).decode(refusal)


class Trap:
    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _spring, ()


def _spring() -> None:
    Trap.sprung = True


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (b"\x91" * 200_000, "malformed"),
        (pickle.dumps(Trap()), "malformed"),
        (msgspec.msgpack.encode([b"zl"]), "malformed"),
        (msgspec.msgpack.encode([b"xx", 1, NONCE, 1, m.Bye()]), "malformed"),
        (msgspec.msgpack.encode([b"zl", "1", NONCE, 1, m.Bye()]), "malformed"),
        (msgspec.msgpack.encode([b"zl", 1, NONCE, 1, m.Bye(), "more"]), "malformed"),
        (msgspec.msgpack.encode([b"zl", 1, NONCE, 2**70 % 2**64, {"type": "hello"}]), "malformed"),
        (msgspec.msgpack.encode([b"zl", 1, NONCE, 1, {"type": "eval", "code": "1"}]), "unknown"),
        (msgspec.msgpack.encode([b"zl", 1, NONCE, 1, {"type": ["list"]}]), "malformed"),
        (msgspec.msgpack.encode([b"zl", 1, NONCE, 1, m.Ping(1.0)]), "malformed"),
        (b"\x95\xc4\x02zl\x01\xc4\x01n\x01\x81\xa4type\xa3\xff\xfe\xfd", "malformed"),
        (b"\x95\xc4\x02zl\x01\xc4\x01n\x01\x81\x80\x01", "malformed"),
        (b"z" * (CONTROL_MAX + 1), "oversized"),
    ],
)
def test_what_is_no_header_is_said_to_be_none(header: bytes, kind: str) -> None:
    with pytest.raises(Malformed) as caught:
        Inbound(NONCE, TO_SUPERVISOR).decode(header)
    assert caught.value.kind == kind
    assert not Trap.sprung


def test_no_mutation_of_a_header_raises_anything_else() -> None:
    dice = random.Random(4)
    headers = [encode(NONCE, 1, message) for message in [*TO_AGENTS, *TO_SUPERVISORS, *BULKS]]
    refused = 0
    for _ in range(20_000):
        header = bytearray(dice.choice(headers))
        for _ in range(dice.randint(1, 6)):
            header[dice.randrange(len(header))] = dice.randrange(256)
        if dice.random() < 0.3:
            del header[dice.randrange(len(header)) :]
        try:
            Inbound(NONCE, dice.choice([TO_AGENT, TO_SUPERVISOR, BULK])).decode(header)
        except (Malformed, VersionMismatch):
            refused += 1
    assert refused > 15_000


def test_a_header_too_large_is_not_even_made() -> None:
    with pytest.raises(Malformed) as caught:
        encode(NONCE, 1, m.Said("info", "x" * (CONTROL_MAX + 1)))
    assert caught.value.kind == "oversized"


START = m.Start("s", 0, "k", (), m.Attached(10))


@pytest.mark.parametrize(
    ("message", "sizes", "good"),
    [
        (m.Bye(), [], True),
        (m.Bye(), [0], False),
        (START, [10], True),
        (START, [], False),
        (START, [9], False),
        (START, [10, 1], False),
        (m.Start("s", 0, "k", (), m.Pieces(1, 10)), [10], False),
        (m.Answered("s", 0, 1, "value", 1.0, payload=m.Attached(0)), [0], True),
        (m.Answered("s", 0, 1, "value", 1.0, payload=m.Attached(ATTACH_LIMIT + 1)), [ATTACH_LIMIT + 1], False),
    ],
)
def test_only_what_is_announced_is_attached(message: Any, sizes: list[int], good: bool) -> None:
    assert _passes(check_control, message, sizes) is good


@pytest.mark.parametrize(
    ("message", "sizes", "good"),
    [
        (None, [], True),
        (None, [1], False),
        (m.Piece(1, 0), [PIECE], True),
        (m.Piece(1, 0), [PIECE + 1], False),
        (m.Piece(1, -1), [1], False),
        (m.Piece(1, 0), [0], False),
        (m.Piece(1, 0), [], False),
        (m.Piece(1, 0), [1, 1], False),
        (m.Log(1, "s", 0, "out", 1.0, 3), [1, 2], True),
        (m.Log(1, "s", 0, "out", 1.0, 3), [1, 1], False),
        (m.Log(1, "s", 0, "out", 1.0, 1000), [1] * 1000, False),
    ],
)
def test_bulk_frames_are_what_the_header_says(message: Any, sizes: list[int], good: bool) -> None:
    assert _passes(check_bulk, message, sizes) is good


def _passes(check: Any, message: Any, sizes: list[int]) -> bool:
    try:
        check(message, sizes)
    except Malformed:
        return False
    return True
