"""An agent's pump over real pipes, its clock in the test's hands."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from zlaunch.agent.pump import BATCH, SELDOM, STATE_EVERY, Pump
from zlaunch.protocol.messages import Log


class Rank:
    """A pump with one rank's stdout, and what it sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Log, bytes]] = []
        self.pump = Pump(lambda log, data: self.sent.append((log, b"".join(data))))
        self.pump.credit = 1 << 20
        self.write_end = self.pump.open("step", 0, "out")

    def prints(self, data: bytes, now: float) -> None:
        os.write(self.write_end, data)
        for fd in list(self.pump.watched()):
            self.pump.readable(fd, now)
        self.pump.tick(now + BATCH)

    def lines(self) -> list[bytes]:
        return [data for log, data in self.sent if not log.redraw]

    def states(self) -> list[bytes]:
        return [data for log, data in self.sent if log.redraw]


@pytest.fixture
def rank() -> Iterator[Rank]:
    made = Rank()
    yield made
    os.close(made.write_end)
    made.pump.close("step")


def test_a_pipe_that_woke_us_is_left_alone_for_a_moment(rank: Rank) -> None:
    (fd,) = rank.pump.watched()
    os.write(rank.write_end, b"a\n")
    rank.pump.readable(fd, 1.0)
    assert not rank.pump.watched()
    assert rank.pump.deadline() == 1.0 + BATCH
    os.write(rank.write_end, b"b\n")
    rank.pump.tick(1.0 + BATCH)
    assert rank.lines() == [b"a\nb\n"]
    assert list(rank.pump.watched()) == [fd]


def test_without_credit_nothing_is_read_until_there_is_some(rank: Rank) -> None:
    rank.pump.credit = 0
    assert not rank.pump.watched()
    rank.pump.credit = 1
    rank.prints(b"more than one byte\n", 1.0)
    assert rank.lines() == [b"more than one byte\n"]
    assert rank.pump.credit < 0
    assert not rank.pump.watched()


def test_a_dead_ranks_pipe_is_emptied_without_credit(rank: Rank) -> None:
    rank.pump.credit = 0
    os.write(rank.write_end, b"last words")
    rank.pump.drain("step", 0)
    assert rank.lines() == [b"last words"]


def test_a_short_progress_bar_is_one_line(rank: Rank) -> None:
    for percent in range(100):
        rank.prints(b"\r%d%%" % percent, percent * STATE_EVERY / 200)
    rank.prints(b"\n", STATE_EVERY)
    assert rank.lines() == [b"99%\n"]
    assert rank.states() == []


def test_a_long_progress_bar_is_seen_again_and_again(rank: Rank) -> None:
    for second in range(4):
        for tenth in range(10):
            rank.prints(b"\r%d.%d of 4" % (second, tenth), second + tenth / 10)
    rank.prints(b"\rdone\n", 4.0)
    rank.prints(b"an ordinary line\n", 30.0)
    rank.prints(b"a prompt without an end", 40.0)
    states = rank.states()
    assert states[0] == b"0.5 of 4"
    assert len(states) == 7
    assert rank.lines() == [b"done\n", b"an ordinary line\n"]
    assert rank.pump.deadline() is None


def test_a_bar_that_stands_still_is_shown_as_it_stands(rank: Rank) -> None:
    rank.prints(b"\r98%", 1.0)
    rank.prints(b"\r99%", 1.2)
    assert rank.states() == []
    due = rank.pump.deadline()
    assert due == 1.0 + BATCH + STATE_EVERY
    rank.pump.tick(due)
    assert rank.states() == [b"99%"]
    assert rank.pump.deadline() is None, "nobody wakes for what has not changed"
    rank.prints(b"\r100%", 30.0)
    assert rank.states() == [b"99%", b"100%"]


def test_a_bar_below_a_bar_is_no_flood_of_lines(rank: Rank) -> None:
    """What ``tqdm`` within ``tqdm`` writes: down a line, the bar, up again; what it prints between them is a line."""
    up = b"\x1b[A"
    rank.prints(b"\repoch 0", 0.0)
    for batch in range(30):
        for part in (b"\n", b"\r", b"batch %d" % batch, up):
            rank.prints(part, batch / 10)
    rank.prints(b"\n\rbatch 30" + up + b"\n\r        \r" + up + b"\r     \ra word\n\repoch 0\n\rbatch 30" + up, 3.0)
    assert b"".join(rank.lines()) == b"epoch 0\na word\nepoch 0\n"
    assert rank.states()[0].startswith(b"batch ")
    for batch in range(31, 60):  # a third one, to which there is no line at first
        rank.prints(b"\n\rbatch %d" % batch + up + b"\n\n\rpiece" + up + up, batch / 10)
    rank.prints(b"\n\r" + up + b"\repoch 1\nthe end\n", 7.0)
    assert rank.lines()[-1] == b"epoch 1\nthe end\n"
    assert b"".join(rank.lines()).count(b"\n") == 6


def test_the_bars_of_very_many_ranks_are_seen_now_and_then(rank: Rank) -> None:
    end = rank.pump.open("step", 1, "err", world_size=8000)
    os.write(end, b"\r1%")
    for fd in list(rank.pump.watched()):
        rank.pump.readable(fd, 0.0)
    rank.pump.tick(BATCH)
    due = rank.pump.deadline()
    assert due is not None
    assert due >= SELDOM
    os.close(end)
