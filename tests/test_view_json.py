"""Events as JSON: what was told can be told again from the lines, whatever the ranks print, and the schema holds."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest

import zlaunch
from zlaunch import events as ev
from zlaunch import model
from zlaunch.view.board import Board
from zlaunch.view.desk import Desk
from zlaunch.view.jsonlines import VERSION, json_lines, read_line, schema
from zlaunch.view.settings import ViewSettings

FATE = model.Fate(rank=1, local_rank=1, hostname="h", pid=7, kind=model.FateKind.SIGNALED, at=2.5, signal=9)
FACTS = model.HostFacts(hostname="h", pid=1, cores=8, gpus=(model.Gpu(0, "H100", 80 << 30, "GPU-1"),))
WHOSE = (1.5, "r", 1, 1, "h")
EVENTS: list[ev.Event] = [
    ev.AgentConnected(1.0, "h", FACTS),
    ev.AgentLost(1.0, "h", "it was silent"),
    ev.RunStarted(1.0, "r", "train", (model.HostPlan(0, "h", 2),), 1, "", "/logs/r", 1.7e9),
    ev.RankStarted(*WHOSE, 7),
    ev.Output(*WHOSE, "err", b'"quoted" \xc3\xa9\n'),
    ev.Output(*WHOSE, "out", b"the first 16 MiB", piece=True),
    ev.Redrawn(*WHOSE, "out", "50%"),
    ev.Record(
        *WHOSE, "a.b", 30, 1.7e9, "two\nlines", exc_text="Traceback", lineno=3, extra={"epoch": 3, "tags": ["a", None]}
    ),
    ev.Usage(1.0, "r", "h", (model.RankUsage(1, 99.5, 1 << 30, 80.0, 1 << 35, (0,)), model.RankUsage(2, 0.0, 1))),
    ev.RankEnded(2.6, "r", FATE),
    ev.RunRestarting(2.7, "r", FATE, 1, 3),
    ev.RunEnded(3.0, "r", "failed", FATE, (FATE,), (model.Survivor("h", 9, "python"),), ("other",)),
    ev.Notice(3.0, "warning", "careful", "h"),
]


def valid(value: Any, rule: dict[str, Any], parts: dict[str, Any]) -> bool:
    """As much of JSON Schema as ours has: an unknown word in a rule is an error."""
    for word, said in rule.items():
        match word:
            case "$ref":
                fine = valid(value, parts[said.removeprefix("#/$defs/")], parts)
            case "anyOf":
                fine = any(valid(value, one, parts) for one in said)
            case "const":
                fine = value == said
            case "enum":
                fine = value in said
            case "type":
                kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
                numbers: dict[str, Any] = {"integer": int, "number": (int, float)}
                fine = isinstance(value, {**kinds, **numbers}[said]) and isinstance(value, bool) == (said == "boolean")
            case "properties":  # every field of a line is described
                fine = value.keys() <= said.keys() and all(valid(value[key], said[key], parts) for key in value)
            case "required":
                fine = set(said) <= value.keys()
            case "items":
                fine = all(valid(item, said, parts) for item in value)
            case "title" | "description" | "default":
                fine = True
            case _:
                raise ValueError(word)
        if not fine:
            return False
    return True


def problems(lines: list[bytes]) -> list[bytes]:
    """Lines that the schema forbids."""
    whole = schema()
    return [line for line in lines if not valid(json.loads(line), {"anyOf": whole["anyOf"]}, whole["$defs"])]


def test_every_event_is_told_and_can_be_read_again() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(ev.Event))
    for event in EVENTS:
        line = json_lines(event)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert (json.loads(line)["v"], json.loads(line)["event"]) == (VERSION, event.__struct_config__.tag)
        assert read_line(line) == event
    assert not problems([json_lines(event) for event in EVENTS])


def test_the_schema_forbids_what_is_wrong() -> None:
    ended = json.loads(json_lines(EVENTS[-2]))
    wrong = [ended | {"v": 2}, ended | {"outcome": "fine"}, ended | {"cause": {"rank": 1}}, ended | {"new": 1}]
    wrong += [{key: ended[key] for key in ended if key != "fates"}, {"v": 1, "event": "unknown", "at": 0.0}]
    assert len(problems([json.dumps(line).encode() for line in wrong])) == len(wrong)


def test_the_token_of_records_is_told_to_nobody() -> None:
    line = json_lines(ev.RunStarted(1.0, "r", "n", (), 0, "the-token"))
    assert b"token" not in line
    assert "token" not in json.dumps(schema()["$defs"]["RunStarted"])


def test_an_output_is_a_line_each() -> None:
    lines = json_lines(ev.Output(*WHOSE, "out", b"a\n\nb\r\xff\0\x1b[2J\n")).splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a", "", "b\r\ufffd\0\x1b[2J"]
    assert b"\x1b" not in b"".join(lines), "a terminal that shows them is not cleared"


def test_what_is_not_unicode_is_told_all_the_same() -> None:
    """File names and host names may be bytes that Python has as lone surrogates."""
    plan = model.HostPlan(0, "h\udcff", 1)
    lines = json_lines(ev.RunStarted(1.0, "r", "n\udce9", (plan,), 0, "", "/logs/\udcff"))
    lines += json_lines(ev.Output(1.0, "r", 0, 0, "h\udcff", "out", b"x\n"))
    started, printed = map(json.loads, lines.splitlines())
    assert (started["name"], started["hosts"][0]["name"], started["log_folder"]) == (
        "n\\udce9",
        "h\\udcff",
        "/logs/\\udcff",
    )
    assert (printed["hostname"], printed["text"]) == ("h\\udcff", "x")


def test_what_a_reader_does_not_know() -> None:
    assert read_line('{"v": 1, "event": "from-the-future", "at": 1.0}') is None
    later = json.dumps(json.loads(json_lines(EVENTS[3])) | {"nice": "field"})
    assert read_line(later) == EVENTS[3]
    newer = json.dumps(json.loads(json_lines(EVENTS[3])) | {"v": 2})
    for line in (newer, "[]", '"v"', "{", '{"v": 1, "event": "notice", "at": []}'):
        with pytest.raises(ValueError, match=r"."):
            read_line(line)


# --- real runs --------------------------------------------------------------------------------------------------------

TRAINS = """
import os, sys, time
rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
print("begins", rank, flush=True)
for i in range(6 if attempt == "1" else 1):
    sys.stderr.write(f"\\r{i}/5")
    sys.stderr.flush()
    time.sleep(0.25)
sys.stderr.write("\\n")
os.write(1, b"done \\xff\\n")
if rank == attempt == "0":
    sys.exit(3)
"""


def rows(board: Board) -> list[Any]:
    """All that the board tells of its runs."""
    told: list[Any] = []
    for run in board.runs.values():
        told.append((run.run, run.name, run.log_folder, run.restart, run.restarts, [h.plan for h in run.hosts]))
        for rank in run.ranks:
            fields = {f.name: getattr(rank, f.name) for f in dataclasses.fields(rank) if f.name != "last"}
            told.append((fields, rank.state(), rank.status(), rank.said()))
    return told


def test_the_lines_of_a_run_give_the_same_view_as_its_events(capfd: pytest.CaptureFixture[str]) -> None:
    events: list[ev.Event] = []
    launcher = zlaunch.Launcher(workers_per_host=2, view="json", max_restarts=1)
    with launcher:
        loop = launcher._shared.cluster.loop  # type: ignore[union-attr]
        emit = loop.emit

        def listen(event: ev.Event) -> None:
            events.append(event)
            emit(event)

        loop.emit = listen
        launcher.run_command(sys.executable, "-c", TRAINS)
    lines = capfd.readouterr().out.encode().splitlines()
    assert not problems(lines)
    first = next(event for event in events if isinstance(event, ev.RunStarted))
    assert abs(first.created - time.time()) < 60
    told, known = Board(), Board()
    queue = iter(events)
    seen = set()
    for line in lines:
        read = read_line(line)
        assert read is not None
        if isinstance(read, ev.RankStarted | ev.Usage | ev.RankEnded | ev.RunRestarting | ev.RunEnded):
            for event in queue:
                if type(event) is type(read):
                    break
                known.handle(event)
            assert rows(told) == rows(known)
            assert rows(told)
            assert read == event
            known.handle(event)
            seen.add(type(read))
        told.handle(read)
    assert len(seen) == 5, "a run of two seconds has told of everything"
    used = [use for event in events if isinstance(event, ev.Usage) for use in event.ranks]
    assert {use.rank for use in used} == {0, 1}
    assert all(use.memory > 1 << 20 and use.gpu is None for use in used)


def test_the_files_are_where_the_event_says(tmp_path: Path) -> None:
    desk = Desk(ViewSettings(view="none", log_dir=str(tmp_path / "other")), lambda host, size: None)
    desk.put(ev.RunStarted(1.0, "r", "train", (model.HostPlan(0, "h", 2),), 0, "", str(tmp_path / "here")))
    desk.put(ev.Output(*WHOSE, "out", b"line\n"))
    desk.close()
    assert (tmp_path / "here" / "h[1].log").read_bytes() == b"line\n"
    assert desk.log_folder("r", 0.0).startswith(str(tmp_path / "other"))


WILD = r"""
import os, sys
os.write(1, b"x" * (10 << 20) + b"\n")
os.write(1, b"\xff\xfe\x00 \xe2\x80\xa8\xc2\x85\xc3\xa9 \x1b[2J\xc2\x9b2J\x07\n")
os.write(2, b"".join(b"\r%d%%" % i for i in range(100)) + b"\n")
out = os.fdopen(1, "wb", 1 << 16)
out.writelines(b"line %d\n" % i for i in range(100_000))
out.flush()
os.write(1, b"no end")
"""


def test_whatever_a_rank_prints_is_one_object_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launcher = zlaunch.Launcher(workers_per_host=1, view="json", log_dir=tmp_path / "logs")
    launcher.run_command(sys.executable, "-c", WILD)
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    texts = {
        s: [line["text"] for line in lines if line["event"] == "output" and line["stream"] == s] for s in ["out", "err"]
    }
    out = texts["out"]
    assert out[0] == "x" * (10 << 20)
    assert out[1] == "\ufffd\ufffd\0 \u2028\x85\xe9 \x1b[2J\x9b2J\x07"
    assert out[2:-1] == [f"line {i}" for i in range(100_000)]
    assert out[-1] == "no end"
    assert texts["err"] == ["99%"]
    assert (tmp_path / "logs").is_dir()
    started = next(line for line in lines if line["event"] == "run-started")
    assert (Path(started["log_folder"]) / "localhost[0].log").read_bytes().count(b"\nline ") == 100_000
    assert lines[-1]["event"] == "run-ended"
