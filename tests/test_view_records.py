"""The view's pure parts that cut bytes: records taken out of stdout, last lines kept. Histories are data."""

from __future__ import annotations

import json

import pytest

from zlaunch.events import Output, Record
from zlaunch.view.records import RecordSplitter
from zlaunch.view.tail import KEPT_LINES, LINE_LIMIT, Tail

TOKEN = "tok"


def output(data: bytes, *, piece: bool = False, rank: int = 0, stream: str = "out") -> Output:
    return Output(1.0, "run", rank, rank, "h", stream, data, piece)  # type: ignore[arg-type]


def mark(message: str, **more: object) -> bytes:
    fields = {"name": "app", "level": 20, "created": 5.5, "message": message, **more}
    return b"\x1e" + TOKEN.encode() + json.dumps(fields).encode() + b"\n"


def parts(message: str, name: bytes) -> list[bytes]:
    """A record as three marked lines."""
    whole, start = mark(message), 1 + len(TOKEN)
    cuts = [(b"+", start, 20), (b"+", 20, 30), (b".", 30, -1)]
    return [whole[:start] + sign + name + b" " + whole[begin:end] + b"\n" for sign, begin, end in cuts]


def told(history: list[Output], *, ends: bool = False) -> list[tuple[str, str | bytes, bool]]:
    splitter = RecordSplitter(TOKEN)
    events = [event for each in history for event in splitter.feed(each)]
    if ends:
        events += splitter.finish(0, 2.0, output(b""))
    return [
        ("record", event.message, False) if isinstance(event, Record) else ("text", event.data, event.piece)
        for event in events
    ]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([output(b"a\nb\n")], [("text", b"a\nb\n", False)]),
        ([output(mark("one"))], [("record", "one", False)]),
        (
            [output(b"a\n" + mark("one") + b"b\n" + mark("two"))],
            [("text", b"a\n", False), ("record", "one", False), ("text", b"b\n", False), ("record", "two", False)],
        ),
        # a record in the middle of a line does not tear it: the line is told when its rest comes
        (
            [output(b"x\nhalf" + mark("one")), output(mark("two")), output(b" done\ny\n")],
            [
                ("text", b"x\n", False),
                ("record", "one", False),
                ("record", "two", False),
                ("text", b"half done\ny\n", False),
            ],
        ),
        ([output(b"half" + mark("one") + b" done\n")], [("record", "one", False), ("text", b"half done\n", False)]),
        # an unterminated end passes as it is
        ([output(mark("one") + b"end")], [("record", "one", False), ("text", b"end", False)]),
        # a record that is longer than a line may be comes in pieces
        (
            [output(mark("long")[:20], piece=True), output(mark("long")[20:30], piece=True), output(mark("long")[30:])],
            [("record", "long", False)],
        ),
        ([output(b"aaa", piece=True), output(b"bbb\n")], [("text", b"aaa", True), ("text", b"bbb\n", False)]),
        # what looks like a record and is none stays text, and so does all of stderr
        ([output(b"\x1etok{nonsense\n")], [("text", b"\x1etok{nonsense\n", False)]),
        ([output(b"\x1eother{}\n")], [("text", b"\x1eother{}\n", False)]),
        ([output(mark("one"), stream="err")], [("text", mark("one"), False)]),
        # bytes that are not UTF-8 are nobody's business
        ([output(b"\xff\xfe\n" + mark("one"))], [("text", b"\xff\xfe\n", False), ("record", "one", False)]),
        # a large record comes in parts; lines and other records come between them, not into them
        (
            [output(b"half" + parts("large", b"1.0")[0] + b" done\n" + parts("other", b"2.0")[0])]
            + [output(a + b) for a, b in zip(parts("large", b"1.0")[1:], parts("other", b"2.0")[1:], strict=True)],
            [("text", b"half done\n", False), ("record", "large", False), ("record", "other", False)],
        ),
        # a line that was redrawn after the record keeps its last state only
        ([output(b"10%" + mark("one")), output(b"\r20%\n")], [("record", "one", False), ("text", b"20%\n", False)]),
    ],
)
def test_histories(history: list[Output], expected: list[tuple[str, str | bytes, bool]]) -> None:
    assert told(history) == expected


def test_a_dead_rank_leaves_no_text_behind() -> None:
    assert told([output(b"half" + mark("one"))], ends=True) == [("record", "one", False), ("text", b"half", False)]
    half_a_record = mark("two")[:25]
    assert told([output(half_a_record)], ends=True) == [("text", half_a_record, False)]
    first_parts = b"".join(parts("large", b"1.0")[:2])
    assert told([output(first_parts)], ends=True) == [("text", mark("large")[1 + len(TOKEN) : 30], False)]


def test_ranks_do_not_share_their_half_lines() -> None:
    splitter = RecordSplitter(TOKEN)
    splitter.feed(output(b"zero" + mark("x"), rank=0))
    (event,) = splitter.feed(output(b"one\n", rank=1))
    assert isinstance(event, Output)
    assert event.data == b"one\n"


def test_without_a_token_bytes_are_not_looked_at() -> None:
    event = output(b"\x1e" + mark("one"))
    assert RecordSplitter("").feed(event) == [event]


def test_every_field_of_a_record_arrives() -> None:
    more = {"handled": True, "exc_text": "Traceback", "pathname": "/a/b.py", "lineno": 7, "func": "f"}
    (record,) = RecordSplitter(TOKEN).feed(output(mark("caf\u00e9 \ud800", **more), rank=3))
    assert record == Record(
        1.0, "run", 3, 3, "h", "app", 20, 5.5, "caf\u00e9 \ud800", True, "Traceback", "/a/b.py", 7, "f"
    )


def test_the_tail_keeps_the_last_lines_only() -> None:
    tail = Tail()
    for number in range(1000):
        tail.add(b"line %d\n" % number)
    assert tail.lines() == [f"line {number}" for number in range(1000 - KEPT_LINES, 1000)]


@pytest.mark.parametrize("width", [10, 1500])
def test_the_tail_of_one_large_chunk(width: int) -> None:
    tail = Tail()
    tail.add(b"first\n")
    tail.add(b"".join(b"%d %s\n" % (number, b"x" * width) for number in range(5000)))
    tail.add(b"no end")
    lines = tail.lines()
    assert len(lines) >= 50
    assert lines[-1] == "no end"
    assert [line.split()[0] for line in lines[:-1]] == [str(n) for n in range(5000 - len(lines) + 1, 5000)]


def test_the_tail_cuts_long_lines_and_takes_any_bytes() -> None:
    tail = Tail()
    tail.add(b"y" * 3_000_000)
    tail.add(b"\xff\r\n")
    long, odd = tail.lines()
    assert len(long) < LINE_LIMIT + 50
    assert "3000000 bytes" in long
    assert odd == "\ufffd"
