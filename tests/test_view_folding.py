"""Folding of alike lines, and what the console makes of output: histories through the pure parts, time injected."""

from __future__ import annotations

import random

import pytest

from zlaunch.events import Output
from zlaunch.model import span_words
from zlaunch.view.folding import Folder, Shown
from zlaunch.view.ranklines import RankLines, prefixed
from zlaunch.view.settings import ViewSettings, log_level, parse_ranks


def shown(items: list[Shown]) -> list[str]:
    return [f"{span_words(ranks)} {stream} {data.decode()!r}" for ranks, stream, data in items]


def test_alike_lines_are_shown_once_as_soon_as_all_have_said_them() -> None:
    folder = Folder(range(3))
    assert folder.feed(0, "out", b"a\n", 0.0) == []
    assert folder.feed(2, "out", b"a\n", 0.01) == []
    assert shown(folder.feed(1, "out", b"a\n", 0.02)) == ["0-2 out 'a\\n'"]
    assert folder.due() is None


def test_a_line_waits_no_longer_than_50_ms() -> None:
    folder = Folder(range(3))
    folder.feed(0, "out", b"a\n", 1.0)
    folder.feed(1, "out", b"a\n", 1.04)
    assert folder.due() == pytest.approx(1.05)
    assert folder.release(1.049) == []
    assert shown(folder.release(1.05)) == ["0-1 out 'a\\n'"]


def test_another_stream_or_another_byte_is_another_line() -> None:
    folder = Folder(range(2))
    folder.feed(0, "out", b"a\n", 0.0)
    folder.feed(1, "err", b"a\n", 0.0)
    folder.feed(1, "out", b"a \n", 0.0)
    assert shown(folder.drain()) == ["0 out 'a\\n'", "1 err 'a\\n'", "1 out 'a \\n'"]


def test_a_rank_that_repeats_itself_is_not_folded_with_itself() -> None:
    folder = Folder(range(2))
    assert folder.feed(0, "out", b"a\na\n", 0.0) == []
    assert shown(folder.feed(1, "out", b"a\n", 0.0)) == ["0-1 out 'a\\n'"]
    assert shown(folder.feed(1, "out", b"a\n", 0.0)) == ["0-1 out 'a\\n'"]


def test_the_order_of_a_rank_comes_before_folding() -> None:
    folder = Folder(range(2))
    folder.feed(0, "out", b"a\nb\n", 0.0)
    folder.feed(1, "out", b"b\na\n", 0.0)
    assert shown(folder.drain()) == ["0 out 'a\\n'", "0-1 out 'b\\n'", "1 out 'a\\n'"]


def test_nobody_waits_for_the_dead() -> None:
    folder = Folder(range(3))
    folder.feed(0, "out", b"a\n", 0.0)
    folder.feed(1, "out", b"a\n", 0.0)
    assert shown(folder.ended(2, 0.01)) == ["0-1 out 'a\\n'"]


def test_above_a_thousand_lines_a_second_chunks_pass_whole_and_in_order() -> None:
    folder = Folder(range(2))
    folder.feed(0, "out", b"early\n", 0.0)
    many = b"x\n" * 1000
    assert shown(folder.feed(0, "out", many, 0.01)) == ["0 out 'early\\n'", f"0 out {many.decode()!r}"]
    assert shown(folder.feed(1, "out", b"y\n", 0.5)) == ["1 out 'y\\n'"], "the second is not over"
    assert folder.feed(1, "out", b"y\n", 1.02) == [], "now it is"
    assert shown(folder.feed(0, "out", b"y\n", 1.03)) == ["0-1 out 'y\\n'"]


def test_one_rank_alone_never_waits() -> None:
    assert shown(Folder([4]).feed(4, "out", b"a\nb\n", 0.0)) == ["4 out 'a\\nb\\n'"]


def test_returns_within_a_line_do_not_cut_it() -> None:
    folder = Folder(range(2))
    folder.feed(0, "out", b"a\r\nb\x0bc\n", 0.0)
    assert [data for _, _, data in folder.drain()] == [b"a\r\n", b"b\x0bc\n"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_each_rank_keeps_its_lines_in_order(seed: int) -> None:
    chance = random.Random(seed)
    folder, now = Folder(range(4)), 0.0
    said: dict[int, list[tuple[str, bytes]]] = {rank: [] for rank in range(4)}
    heard: dict[int, list[tuple[str, bytes]]] = {rank: [] for rank in range(4)}
    items: list[Shown] = []
    for _ in range(400):
        now += chance.choice([0.0, 0.001, 0.03])
        rank, stream = chance.randrange(4), chance.choice(["out", "err"])
        lines = [chance.choice([b"a\n", b"b\n", b"c\n"]) for _ in range(chance.choice([1, 1, 3, 40]))]
        said[rank] += [(stream, line) for line in lines]
        items += folder.feed(rank, stream, b"".join(lines), now)  # type: ignore[arg-type]
        due = folder.due()
        assert due is None or due > now
    items += folder.drain()
    for ranks, stream, data in items:
        for rank in ranks:
            heard[rank] += [(stream, line) for line in data.splitlines(keepends=True)]
    assert heard == said


@pytest.mark.parametrize(
    ("ranks", "words"), [([0], "0"), ([0, 1], "0-1"), ([3, 0, 2], "0,2-3"), ([5, 7, 9], "5,7,9"), (range(8), "0-7")]
)
def test_span_words(ranks: list[int], words: str) -> None:
    assert span_words(ranks) == words


# --- what is written ------------------------------------------------------------------------------------------


def event(data: bytes, rank: int = 3, *, stream: str = "out", piece: bool = False) -> Output:
    return Output(0.0, "run", rank, rank, "h", stream, data, piece)  # type: ignore[arg-type]


def test_a_chunk_is_prefixed_line_by_line() -> None:
    assert prefixed(b"a\n\nb\n", b"> ") == b"> a\n> \n> b\n"
    assert prefixed(b"\n", b"> ") == b"> \n"


def test_lines_have_their_prefix_with_one_rank_too_and_an_end_in_any_case() -> None:
    lines = RankLines(frozenset([3]))
    assert lines.output(event(b"\xffbinary\nno end"), 0.0) == [("out", b"[rank 3] \xffbinary\n[rank 3] no end\n")]


def test_pieces_of_an_over_long_line_are_marked() -> None:
    lines = RankLines(frozenset([3]))
    history = [event(b"aaa", piece=True), event(b"bbb", piece=True), event(b"c\nd\n"), event(b"e\n")]
    written = b"".join(data for each in history for _, data in lines.output(each, 0.0))
    assert written == (
        b"[rank 3] aaa\n[rank 3] (line continues) bbb\n[rank 3] (line continues) c\n[rank 3] d\n[rank 3] e\n"
    )


def test_stderr_is_red_line_by_line_where_asked() -> None:
    lines = RankLines(frozenset([3]), red=True)
    assert lines.output(event(b"a\nb\n", stream="err"), 0.0) == [
        ("err", b"[rank 3] \x1b[31ma\x1b[0m\n[rank 3] \x1b[31mb\x1b[0m\n")
    ]
    assert lines.output(event(b"a\n"), 0.0) == [("out", b"[rank 3] a\n")]


def test_ranks_that_are_not_shown_are_not_waited_for_either() -> None:
    lines = RankLines(frozenset([0, 2]))
    assert lines.output(event(b"a\n", 1), 0.0) == []
    assert lines.output(event(b"a\n", 0), 0.0) == []
    assert lines.output(event(b"a\n", 2), 0.0) == [("out", b"[ranks 0,2] a\n")]


def test_records_of_several_lines_stay_together_and_fold() -> None:
    lines = RankLines(frozenset([0, 1]))
    assert lines.text(0, "ERROR app: x\nTraceback", 0.0) == []
    assert lines.text(1, "ERROR app: x\nTraceback", 0.0) == [
        ("err", b"[ranks 0-1] ERROR app: x\n[ranks 0-1] Traceback\n")
    ]


# --- settings and reports -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "world", "expected"),
    [
        (None, 3, {0, 1, 2}),
        (None, 64, set(range(64))),
        (None, 65, {0}),
        ("0,2-3", 8, {0, 2, 3}),
        ("all", 100, set(range(100))),
        ("none", 4, set()),
        ("2-1000000000000", 4, {2, 3}),
        (frozenset([1, 99]), 4, {1}),
    ],
)
def test_which_ranks_the_console_shows(ranks: str | None, world: int, expected: set[int]) -> None:
    assert ViewSettings(ranks=ranks).shown(world) == expected


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "3-1", "1,,2", "1;2"])
def test_ranks_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="rank"):
        parse_ranks(text)
    with pytest.raises(ValueError, match="rank"):
        ViewSettings(ranks=text)


def test_log_levels_by_name_and_number() -> None:
    assert log_level({}) == 20
    assert log_level({"ZLAUNCH_LOG_LEVEL": "debug"}) == 10
    assert log_level({"ZLAUNCH_LOG_LEVEL": "35"}) == 35
    with pytest.raises(ValueError, match="WARNING"):
        log_level({"ZLAUNCH_LOG_LEVEL": "loud"})
    with pytest.raises(ValueError, match="live, plain"):
        ViewSettings(view="fancy")  # type: ignore[arg-type]
