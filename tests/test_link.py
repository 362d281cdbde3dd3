"""Hub and spoke on real sockets: what is said arrives, and an end is told once, soon, and after the last words."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
from wiring import Child, Tunnel, hear, hello, join, joined, listen, some, while_serving

from zlaunch.link import post
from zlaunch.link.hub import Gone, Heard, Hub, Joined, Left, LogCame, PieceCame
from zlaunch.link.spoke import Lost, Spoke, Told
from zlaunch.link.spoke import PieceCame as PieceArrived
from zlaunch.protocol import messages as m
from zlaunch.protocol.frames import ATTACH_LIMIT, PIECE

BIG = 256 << 20


def test_an_agent_joins_and_its_hello_comes_next() -> None:
    hub = Hub()
    spoke = Spoke(hub.invite(3))
    while_serving(hub, lambda: spoke.connect(5))
    word = hello()
    spoke.send(word)
    told = hear(hub, some(Heard))
    assert told == [Joined(3), Heard(3, word, None)]
    spoke.close()
    hub.close()


def test_words_and_small_payloads_go_both_ways_in_order() -> None:
    with joined() as (hub, spoke):
        letter = os.urandom(ATTACH_LIMIT)
        words: list[m.ToAgent] = [m.Ping(float(n)) for n in range(2000)]
        for word in words:
            hub.send(0, word)
        hub.send(0, m.Start("s", 0, "k", (), m.Attached(len(letter))), letter)
        told = listen(spoke, lambda told: len(told) > len(words))
        assert [event.message for event in told[:-1] if isinstance(event, Told)] == words
        last = told[-1]
        assert isinstance(last, Told)
        assert last.payload is not None
        assert bytes(last.payload) == letter

        spoke.send(m.Answered("s", 0, 1, "value", 1.0, payload=m.Attached(0)), b"")
        spoke.send(m.Bye())
        events = hear(hub, lambda told: len(told) >= 2)
        assert [event.message for event in events if isinstance(event, Heard)][1] == m.Bye()


def test_pieces_are_told_after_the_word_that_announces_them() -> None:
    with joined() as (hub, spoke):
        result = memoryview(random.Random(1).randbytes(3 * PIECE + 17))
        spoke.send_payload(5, result)
        assert spoke.flush(5)
        assert hub.poll(0.2) == ([], set())
        spoke.send(m.Answered("s", 0, 1, "value", 1.0, payload=m.Pieces(5, len(result))))
        told = hear(hub, lambda told: len(told) == 5)
        assert isinstance(told[0], Heard)
        pieces = [event for event in told if isinstance(event, PieceCame)]
        assert [piece.offset for piece in pieces] == [n * PIECE for n in range(4)]
        assert b"".join(piece.data for piece in pieces) == result

        hub.send_payload(0, 9, result)
        assert spoke.poll(0.2) == ([], set())
        hub.send(0, m.Start("s", 0, "k", (), m.Pieces(9, len(result))))
        arrived = listen(spoke, lambda told: len(told) == 5, hub)
        assert b"".join(event.data for event in arrived if isinstance(event, PieceArrived)) == result


def test_control_does_not_wait_behind_a_large_payload(capsys: pytest.CaptureFixture[str]) -> None:
    with joined() as (hub, spoke):
        payload = memoryview(bytes(BIG))
        report = []
        for down in (True, False):
            if down:
                hub.send(0, m.Start("s", 0, "k", (), m.Pieces(1, BIG)))
                hub.send_payload(0, 1, payload)
            else:
                spoke.send(m.Answered("s", 0, 1, "value", 1.0, payload=m.Pieces(1, BIG)))
                spoke.send_payload(1, payload)
            begun, received, worst, pongs = time.monotonic(), 0, 0.0, 0
            hub.send(0, m.Ping(begun))
            while received < BIG:
                assert time.monotonic() < begun + 60
                for event in hub.poll(0)[0]:
                    match event:
                        case PieceCame(data=data):
                            received += len(data)
                        case Heard(message=m.Pong(sent=sent)):
                            worst, pongs = max(worst, time.monotonic() - sent), pongs + 1
                            hub.send(0, m.Ping(time.monotonic()))
                        case _:
                            pass
                for arrival in spoke.poll(0.001)[0]:
                    match arrival:
                        case PieceArrived(data=data):
                            received += len(data)
                        case Told(m.Ping(sent)):
                            spoke.send(m.Pong(sent, 0.0, False))
                        case _:
                            pass
            assert pongs > 5  # it did not wait for the payload's end
            speed = BIG / 1e9 / (time.monotonic() - begun)
            report.append(
                f"{'down' if down else 'up'}: {speed:.2f} GB/s, slowest of {pongs} pings {worst * 1e3:.1f} ms"
            )
        with capsys.disabled():
            print("\n" + "\n".join(report))


def test_lines_come_in_order_and_before_payloads_that_wait() -> None:
    with joined() as (hub, spoke):
        payload = memoryview(bytes(64 * PIECE))
        spoke.send(m.Answered("s", 0, 1, "value", 1.0, payload=m.Pieces(1, len(payload))))
        spoke.send_payload(1, payload)
        assert spoke.backlog() > 0
        for number in range(1, 501):
            spoke.send_log(m.Log(number, "s", 0, "out", 1.0, 9), [b"line ", b"%03d\n" % (number - 1)])
        told = hear(hub, lambda told: sum(isinstance(event, PieceCame) for event in told) == 64, spoke)
        lines = [event for event in told if isinstance(event, LogCame)]
        assert [line.log.number for line in lines] == list(range(1, 501))
        assert b"".join(part for line in lines for part in line.data) == b"".join(
            b"line %03d\n" % n for n in range(500)
        )
        assert isinstance(told[-1], PieceCame)
        assert spoke.backlog() == 0


# --- the end --------------------------------------------------------------------------------------------------------


def test_last_words_come_before_the_end_which_comes_once() -> None:
    hub = Hub()
    for _ in range(10):
        spoke = join(hub)
        for number in range(1, 301):
            spoke.send(m.Pong(float(number), 0.0, False))
            spoke.send_log(m.Log(number, "s", 0, "out", 1.0, 5), [b"line\n"])
        spoke.send(m.Bye())
        while not spoke.flush(0.01):
            pass
        spoke.close()
        told = hear(hub, some(Left))
        assert sum(isinstance(event, LogCame) for event in told) == 300
        assert [e.message for e in told if isinstance(e, Heard)][-1] == m.Bye()
        assert told[-1] == Left(0, "its agent left")
    assert hub.poll(0.1) == ([], set())
    assert hub.counters == {}
    hub.close()


def test_lines_that_are_slow_to_come_after_a_bye_are_not_lost() -> None:
    with joined() as (hub, spoke):
        assert spoke._pair is not None
        control, bulk = spoke._pair.lines
        spoke.send(m.Bye())
        assert spoke.flush(1)
        control.close(1.0)
        assert [e.message for e in hear(hub, some(Heard)) if isinstance(e, Heard)] == [m.Bye()]
        begun = time.monotonic()
        while time.monotonic() < begun + 0.3:  # its agent is not scheduled for so long
            assert hub.poll(0.1) == ([], set())
        spoke.send_log(m.Log(1, "s", 0, "out", 1.0, 5), [b"line\n"])
        bulk.close(1.0)
        told = hear(hub, some(Left))
        assert [type(event) for event in told] == [LogCame, Left]
        spoke._pair = None


def test_a_killed_agent_is_missed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    hub = Hub()
    child = Child(hub, 4)
    begun = time.monotonic()
    child.signal(signal.SIGKILL)
    told = hear(hub, some(Left))
    took = time.monotonic() - begun
    child.end()
    assert told == [Left(4, "the connection to its agent broke")]
    assert took < 0.5  # a heartbeat would take 4.5 s
    with capsys.disabled():
        print(f"\nSIGKILL to Left: {took * 1e3:.1f} ms")
    with pytest.raises(Gone):
        hub.send(4, m.Ping(1.0))
    hub.close()


def test_a_frozen_agent_is_missed_after_its_silence() -> None:
    hub = Hub(heartbeat=0.2, silence=0.8)
    child, steady = Child(hub, 0), join(hub, 1)
    begun = time.monotonic()
    child.signal(signal.SIGSTOP)
    told = hear(hub, some(Left), steady)
    took = time.monotonic() - begun
    child.end()
    assert told == [Left(0, "no heartbeat got through for 0.8 s", silent=True)]
    assert 0.5 < took < 3.0
    hub.send(1, m.Shutdown())
    assert listen(steady, some(Told)) == [Told(m.Shutdown(), None)]
    steady.close()
    hub.close()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_one_way_cut_is_noticed_at_both_ends(tmp_path: Path, direction: Literal["up", "down"]) -> None:
    hub = Hub(heartbeat=0.2, silence=0.8)
    with closing(Tunnel(hub, f"{tmp_path}/t")) as tunnel:
        spoke = join(hub, invitation=hub.invite(0, here=False, tunnel=f"{tmp_path}/t"))
        tunnel.hold(direction)
        begun = time.monotonic()
        left: list[object] = []
        lost: list[object] = []
        while not (left and lost):
            assert time.monotonic() < begun + 3.0, (left, lost)
            left += hub.poll(0.02)[0]
            lost += spoke.poll(0.02)[0]
        assert time.monotonic() - begun > 0.5
        assert lost == [Lost("the connection to the supervisor broke")]
        if direction == "up":  # else the agent may have hung up first
            assert left == [Left(0, "no heartbeat got through for 0.8 s", silent=True)]
        spoke.close()
    hub.close()


def test_the_supervisors_last_word_comes_before_its_end() -> None:
    hub = Hub()
    spoke = join(hub)
    hub.send(0, m.Shutdown())
    hub.close()
    begun = time.monotonic()
    told = listen(spoke, some(Lost))
    assert time.monotonic() - begun < 0.5
    assert told == [Told(m.Shutdown(), None), Lost("the connection to the supervisor broke")]
    spoke.send(m.Bye())  # said to nobody, and no error
    spoke.send_payload(1, memoryview(b"x"))
    assert spoke.poll(0.05) == ([], set())
    assert spoke.backlog() == 0
    begun = time.monotonic()
    spoke.close()
    assert time.monotonic() - begun < 0.5


def test_a_supervisor_that_is_busy_for_longer_than_the_silence_loses_nobody() -> None:
    with joined(heartbeat=0.1, silence=0.4) as (hub, spoke):
        payload = memoryview(bytes(128 * PIECE))
        spoke.send(m.Answered("s", 0, 1, "value", 1.0, payload=m.Pieces(1, len(payload))))
        spoke.send_payload(1, payload)
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:  # the hub reads nothing meanwhile; the bulk connection is full
            assert spoke.poll(0.05)[0] == []
        assert spoke.backlog() > 0
        told = hear(hub, lambda told: sum(isinstance(event, PieceCame) for event in told) == 128, spoke)
        assert not some(Left)(told)


def test_a_host_that_is_not_there_is_gone() -> None:
    with joined() as (hub, spoke):
        for host in (1, -1):
            with pytest.raises(Gone) as caught:
                hub.send(host, m.Shutdown())
            assert caught.value.host == host
        hub.invite(1)
        with pytest.raises(Gone):
            hub.send_payload(1, 1, memoryview(b"x"))
        hub.forget(0)
        with pytest.raises(Gone):
            hub.send(0, m.Shutdown())
        spoke.send(m.Bye())
        deadline = time.monotonic() + 5
        while not hub.counters.get("late"):
            assert hub.poll(0.01) == ([], set())
            assert time.monotonic() < deadline
        hub.forget(0)
        hub.forget(99)


def test_an_outbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "OUTBOX", 1 << 20)
    hub = Hub(silence=60)
    child = Child(hub, 0)
    child.signal(signal.SIGSTOP)
    text = m.Start("s" * 60_000, 0, "k", (), m.Pieces(1, 1))
    sent = 0
    with pytest.raises(Gone, match="has not taken 1 MiB"):
        while sent < 4 << 30:
            hub.send(0, text)
            sent += 60_000
    told = hear(hub, some(Left))
    assert told[-1] == Left(0, "its agent has not taken 1 MiB of messages")
    child.end()
    hub.close()


# --- waiting --------------------------------------------------------------------------------------------------------


def test_other_descriptors_are_waited_for_too() -> None:
    with joined() as (hub, spoke):
        for end in (hub, spoke):
            read_end, write_end = os.pipe()
            assert end.poll(0.01, [read_end]) == ([], set())
            os.write(write_end, b"x")
            begun = time.monotonic()
            assert end.poll(5, {read_end}) == ([], {read_end})
            os.close(read_end)
            os.close(write_end)
            again, write_end = os.pipe()  # most likely the same number
            assert end.poll(0.01, [again]) == ([], set())
            os.close(write_end)
            assert end.poll(5, [again]) == ([], {again})  # hung up
            assert time.monotonic() - begun < 1
            os.close(again)
            assert end.poll(0.01, []) == ([], set())


def test_waiting_takes_no_longer_than_asked_for_and_no_shorter() -> None:
    with joined() as (hub, spoke):
        for end in (hub, spoke):
            begun = time.monotonic()
            assert end.poll(0.2) == ([], set())
            assert 0.15 < time.monotonic() - begun < 1.0


def test_a_spoke_waits_for_others_before_it_is_connected() -> None:
    hub = Hub()
    spoke = Spoke(hub.invite(0))
    read_end, write_end = os.pipe()
    os.write(write_end, b"x")
    assert spoke.poll(1, [read_end]) == ([], {read_end})
    spoke.close()
    hub.close()
    os.close(read_end)
    os.close(write_end)
