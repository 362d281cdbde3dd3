"""``logging`` of functions, what programs count on: fields, handlers and levels by rank, libraries, the very end."""

from __future__ import annotations

import atexit
import io
import logging
import logging.handlers
import math
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from out_rig import rank_file

import zlaunch


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


NAMES = ("zlaunch", "zlaunch.localhost", "zlaunch.localhost.0", "zlaunch.localhost.1")


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Levels and handlers are as before afterwards."""
    yield
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)


@contextmanager
def no_handlers() -> Iterator[None]:
    """Without those that pytest puts on root, a program's loggers have none but its own."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    yield
    root.handlers = handlers


def listen(name: str = "zlaunch", level: int = logging.INFO) -> Kept:
    handler = Kept()
    logging.getLogger(name).addHandler(handler)
    logging.getLogger(name).setLevel(level)
    return handler


def launcher(ranks: int = 1, **fields: object) -> zlaunch.Launcher:
    return zlaunch.Launcher(**{"workers_per_host": ranks, "backend": None, "preload": (), "grace_period": 5, **fields})  # type: ignore[arg-type]


# --- fields -----------------------------------------------------------------------------------------------------------


def test_extra_fields_are_attributes_of_the_record() -> None:
    def step() -> None:
        extra = {
            "loss": 0.25,
            "diverged": math.nan,
            "epoch": 3,
            "best": None,
            "name_of": "caf\u00e9 \udcff",
            "shape": (2, [3, {"deep": True}]),
            "hostname": "not mine",
            "local_rank": 77,
            "_hidden": 1,
            "thing": object(),
            "data": "x" * 100_000,
            "loop": loop,
            "huge": 1 << 60,
            "too_huge": 10**30,
        }
        logging.getLogger("a").warning("one", extra=extra)
        logging.getLogger("a").warning("two")

    loop: list[object] = []
    loop.append(loop)
    kept = listen()
    launcher().run(step)
    record, plain = kept.records
    assert logging.Formatter("%(loss).2f %(epoch)03d").format(record) == "0.25 003"
    assert math.isnan(record.diverged)  # type: ignore[attr-defined]
    assert record.best is None  # type: ignore[attr-defined]
    assert record.name_of == "caf\u00e9 \\udcff"  # type: ignore[attr-defined]
    assert record.shape == [2, [3, {"deep": True}]]  # type: ignore[attr-defined]
    assert (record.hostname, record.local_rank) == ("localhost", 0), "filters of ranks go by these"  # type: ignore[attr-defined]
    assert record.getMessage() == "a: one"
    assert record.huge == 1 << 60  # type: ignore[attr-defined]
    assert record.too_huge == 1e30, "as a float has it"  # type: ignore[attr-defined]
    assert {"thing", "data", "loop", "_hidden"}.isdisjoint(vars(record))
    assert not hasattr(plain, "loss")


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")

    def step() -> None:
        extra = {"half": numpy.float32(0.5), "whole": numpy.int64(7), "array": numpy.zeros(3)}
        logging.getLogger("a").warning("one", extra=extra)

    kept = listen()
    launcher().run(step)
    (record,) = kept.records
    assert (record.half, record.whole) == (0.5, 7)  # type: ignore[attr-defined]
    assert not hasattr(record, "array")


def test_where_it_was_made() -> None:
    def step() -> int:
        thread = threading.Thread(target=lambda: logging.warning("hello"), name="loader")
        thread.start()
        thread.join()
        return os.getpid()

    kept = listen()
    (pid,) = launcher().run(step)
    (record,) = kept.records
    assert (record.process, record.threadName, record.module) == (pid, "loader", Path(__file__).stem)


def test_an_exception_is_text_with_its_causes_and_notes() -> None:
    def step() -> None:
        try:
            try:
                int("x")
            except ValueError as error:
                error.add_note("a note")
                raise KeyError("outer") from error
        except KeyError:
            logging.getLogger("a").exception("it failed", stack_info=True)

    kept = listen()
    launcher().run(step)
    (record,) = kept.records
    text = logging.Formatter("%(message)s").format(record)
    for words in (
        "it failed",
        "invalid literal",
        "a note",
        "direct cause",
        "KeyError: 'outer'",
    ):
        assert words in text
    assert "Stack (most recent call last)" in text


def test_what_cannot_be_written_as_text_is_not_lost() -> None:
    def step() -> None:
        logging.getLogger("caf\udce9").warning("a %s", "\udce9")
        logging.getLogger("b").warning("%d", "no number")
        logging.getLogger("c").warning("x" * 20 + "\x00\x1e\n\x1b[2J")

    kept = listen()
    launcher().run(step)
    first, second, third = kept.texts()
    assert first == "caf\\udce9: a \\udce9"
    assert "no number" in second
    assert third == "c: " + "x" * 20 + "\x00\x1e\n\x1b[2J"


def test_a_huge_record_arrives_and_a_monstrous_one_says_how_much_is_missing() -> None:
    def step() -> None:
        logging.warning("a" * 10_000_000)
        logging.warning("b" * 40_000_000)
        logging.warning("after")

    kept = listen()
    launcher(log_dir=None).run(step)
    huge, monstrous, after = kept.texts()
    assert huge == "a" * 10_000_000
    assert monstrous == "b" * (1 << 20) + " … (40000000 characters)"
    assert after == "after"


# --- levels and handlers by host and rank -----------------------------------------------------------------------------


def test_a_handler_of_one_rank_gets_its_records_and_the_console_those_of_others(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def step() -> None:
        logging.getLogger("a").info("I am %s", os.environ["RANK"])

    kept = listen("zlaunch.localhost.1")
    with no_handlers():
        launcher(2).run(step)
    assert kept.texts() == ["a: I am 1"]
    err = capfd.readouterr().err
    assert "[rank 0] INFO a: I am 0" in err
    assert "I am 1" not in err


def test_levels_of_a_host_hold_for_its_ranks() -> None:
    def step() -> None:
        for level in (logging.INFO, logging.ERROR):
            logging.getLogger("a").log(level, "%s", os.environ["RANK"])

    kept = listen()
    logging.getLogger("zlaunch.localhost").setLevel(logging.ERROR)
    logging.getLogger("zlaunch.localhost.1").setLevel(logging.INFO)
    with launcher(2) as cluster:
        cluster.run(step)
        assert sorted(kept.texts()) == ["a: 0", "a: 1", "a: 1"]
        logging.getLogger("zlaunch.localhost.1").setLevel(logging.CRITICAL)
        kept.records.clear()
        cluster.run(step)
        assert kept.texts() == ["a: 0"]


def test_handlers_can_be_changed_while_agents_are_there(capfd: pytest.CaptureFixture[str]) -> None:
    def step(word: str) -> None:
        print("printed", word)
        logging.getLogger("a").info("logged %s", word)

    first, second = Kept(), Kept()
    with no_handlers(), launcher() as cluster:
        cluster.run(step, "before")
        assert "[rank 0] printed before" in capfd.readouterr().out
        cluster.set_logging_handlers(lambda: [first]).run(step, "one")
        cluster.set_logging_handlers(lambda: [second]).run(step, "two")
        assert "printed" not in "".join(capfd.readouterr())
        cluster.set_logging_handlers(None).run(step, "none")
        assert "".join(capfd.readouterr()) == ""
        cluster.set_logging_handlers("auto").run(step, "three")
        shown = capfd.readouterr()
        assert "[rank 0] printed three" in shown.out
        assert "[rank 0] INFO a: logged three" in shown.err
    assert sorted(first.texts()) == ["a: logged one", "printed one"]
    assert sorted(second.texts()) == ["a: logged two", "printed two"]


# --- libraries --------------------------------------------------------------------------------------------------------


def test_records_of_torch_arrive_and_are_shown_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Torch has handlers of its own, which print on the rank's stderr: its words are there already."""

    def step() -> None:
        import torch.distributed  # noqa: F401 - for its loggers

        logging.getLogger("torch.distributed.elastic").warning("by elastic")
        logging.getLogger("torch._dynamo").warning("by dynamo")

    with no_handlers():
        launcher(preload=("torch",)).run(step)
    err = capfd.readouterr().err
    assert err.count("by elastic") == 1, err
    assert err.count("by dynamo") == 1, err
    kept = listen()
    launcher(preload=("torch",)).run(step)
    assert kept.texts() == ["torch.distributed.elastic: by elastic", "torch._dynamo: by dynamo"]
    assert [record.levelno for record in kept.records] == [logging.WARNING] * 2


def test_a_handler_that_prints_nothing_takes_nothing_away(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One of a library that sends records somewhere else; what the rank's own handler prints is shown once."""

    def step() -> None:
        log = logging.getLogger("a")
        silent = [
            logging.handlers.QueueHandler(queue.Queue()),
            logging.handlers.MemoryHandler(100),
            logging.StreamHandler(io.StringIO()),
            logging.NullHandler(),
        ]
        for number, handler in enumerate(silent):
            log.addHandler(handler)
            log.warning("silent %d", number)
        log.addHandler(logging.StreamHandler())
        log.warning("printed")

    with no_handlers():
        launcher().run(step)
    err = capfd.readouterr().err
    kept = rank_file(tmp_path / "logs", 0).read_text()
    for number in range(4):
        assert err.count(f"WARNING a: silent {number}") == 1
        assert kept.count(f"WARNING a: silent {number}") == 1
    assert err.count("printed") == 1
    assert kept.count("printed") == 1


# --- the very end -----------------------------------------------------------------------------------------------------


def test_records_at_exit_and_of_threads_that_go_on() -> None:
    def late() -> None:
        threading.main_thread().join(0.2)
        logging.getLogger("thread").warning("still here")

    def step() -> str:
        atexit.register(logging.getLogger("exit").warning, "good bye")
        threading.Thread(target=late).start()
        return "done"

    kept = listen()
    assert list(launcher().run(step)) == ["done"]
    assert kept.texts() == ["thread: still here", "exit: good bye"]
