"""``logging`` of functions, end to end: records arrive as records, and stand in the files where they were made."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from out_rig import PATIENCE, QUICK, environment, lines_of, program, rank_file, zrun

import zlaunch
from zlaunch import log_handling


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def texts(self, name: str = "") -> list[str]:
        return [record.getMessage() for record in self.records if record.name.startswith(name)]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler at the logger above all ranks'; loggers are as before afterwards."""
    handler = Kept()
    root = logging.getLogger("zlaunch")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    for name in ("zlaunch", "zlaunch.localhost", "zlaunch.localhost.0", "zlaunch.localhost.1"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def two(**fields: object) -> zlaunch.Launcher:
    """A launcher whose files are the test's own."""
    return zlaunch.Launcher(**{"workers_per_host": 2, "backend": None, "preload": (), "grace_period": 5, **fields})  # type: ignore[arg-type]


def test_records_arrive_as_records(kept: Kept, logs: Path) -> None:
    def step() -> float:
        print("first")
        log = logging.getLogger("my.module")
        log.info("one %s", "argument")
        log.debug("not wanted")
        print("second")
        try:
            raise KeyError("lost")
        except KeyError:
            log.exception("it failed")
        logging.warning("of the root")
        print("third")
        return time.time()

    began = time.time()
    ended = two().run(step)[0]
    for local_rank in (0, 1):
        name = f"zlaunch.localhost.{local_rank}"
        records = [record for record in kept.records if record.name == name]
        assert [r.getMessage() for r in records] == ["my.module: one argument", "my.module: it failed", "of the root"]
        assert [r.levelno for r in records] == [logging.INFO, logging.ERROR, logging.WARNING]
        assert all(began <= r.created <= max(ended, time.time()) for r in records)
        assert [r.created for r in records] == sorted(r.created for r in records)
        assert "KeyError: 'lost'" in logging.Formatter().format(records[1])
        assert (records[0].filename, records[0].funcName) == (Path(__file__).name, "step")
        text = rank_file(logs, local_rank).read_text()
        stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
        assert re.fullmatch(
            f"first\n{stamp}INFO my.module: one argument\nsecond\n{stamp}ERROR my.module: it failed\n"
            f"Traceback [^\0]*KeyError: 'lost'\n{stamp}WARNING root: of the root\nthird\n",
            text,
        ), text


def test_a_record_within_an_unfinished_line(kept: Kept, logs: Path) -> None:
    def step() -> None:
        print("a line ", end="")
        logging.warning("between")
        print("whole", flush=True)

    two(workers_per_host=1).run(step)
    assert kept.texts() == ["between"]
    text = rank_file(logs, 0).read_text()
    assert "a line whole\n" in text
    assert "WARNING root: between\n" in text
    assert "\x1e" not in text


def test_many_records_and_lines_keep_their_order(kept: Kept, logs: Path) -> None:
    def step() -> None:
        for i in range(5000):
            logging.warning("%d", i)
            print(i)

    two().run(step)
    for rank in (0, 1):
        assert kept.texts(f"zlaunch.localhost.{rank}") == [str(i) for i in range(5000)]
        got = [line.rsplit(" ", 1)[-1] for line in rank_file(logs, rank).read_text().splitlines()]
        assert got == [str(i // 2) for i in range(10_000)]


def test_large_records_of_threads_and_of_a_forked_child_are_not_torn(kept: Kept) -> None:
    """Such a record fills the pipe and waits in the middle; others wait until it is whole."""

    def work(letter: str) -> None:
        for _ in range(40):
            logging.warning(letter * 200_000)

    def step() -> None:
        threads = [threading.Thread(target=work, args=(letter,)) for letter in "abc"]
        for thread in threads:
            thread.start()
        processes = [multiprocessing.get_context("fork").Process(target=logging.warning, args=(n * 10,)) for n in "de"]
        for task in processes:
            task.start()
        for each in [*threads, *processes]:
            each.join()
        assert [task.exitcode for task in processes] == [0, 0]

    two(workers_per_host=1).run(step)
    texts = kept.texts()
    assert sorted(texts) == sorted([letter * 200_000 for letter in "abc" for _ in range(40)] + ["d" * 10, "e" * 10])


def test_levels_are_set_by_rank(kept: Kept) -> None:
    def step() -> None:
        for level in (logging.DEBUG, logging.INFO, logging.ERROR):
            logging.log(level, logging.getLevelName(level))

    logging.getLogger("zlaunch.localhost.0").setLevel(logging.ERROR)
    logging.getLogger("zlaunch.localhost.1").setLevel(logging.DEBUG)
    two().run(step)
    assert kept.texts("zlaunch.localhost.0") == ["ERROR"]
    assert kept.texts("zlaunch.localhost.1") == ["DEBUG", "INFO", "ERROR"]


@pytest.mark.parametrize(
    ("level", "texts"), [("DEBUG", ["d", "i", "e"]), ("", ["i", "e"]), ("error", ["e"]), ("10", ["d", "i", "e"])]
)
def test_the_level_from_the_environment(
    level: str, texts: list[str], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step() -> None:
        logging.debug("d")
        logging.info("i")
        logging.error("e")

    monkeypatch.setenv("ZLAUNCH_LOG_LEVEL", level)
    two(workers_per_host=1).run(step)
    assert [line.split()[-1] for line in rank_file(logs, 0).read_text().splitlines()] == texts


def test_the_users_own_basic_config_works(kept: Kept, logs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def step() -> None:
        logging.basicConfig(format="mine: %(message)s", level=logging.INFO)
        logging.info("hello")

    two(workers_per_host=1).run(step)
    assert kept.texts() == ["hello"]
    assert capfd.readouterr().err.count("[rank 0] mine: hello") == 1
    assert rank_file(logs, 0).read_text() == "mine: hello\n", "once, as the user's handler has written it"


def test_warnings_are_seen(kept: Kept, logs: Path) -> None:
    def step() -> None:
        warnings.warn("as text", stacklevel=1)
        logging.captureWarnings(True)
        warnings.warn("as a record", stacklevel=1)

    two(workers_per_host=1).run(step)
    (text,) = kept.texts()
    assert text.startswith("py.warnings: ")
    assert "UserWarning: as a record" in text
    kept_lines = rank_file(logs, 0).read_text()
    assert "UserWarning: as text" in kept_lines
    assert "UserWarning: as a record" in kept_lines


def test_handlers_of_the_users_choice(capfd: pytest.CaptureFixture[str]) -> None:
    def step() -> None:
        print("printed")
        print("on stderr", file=sys.stderr)
        logging.getLogger("a").warning("logged")
        logging.debug("quietly")

    handler = Kept()
    filtered = Kept()
    filtered.addFilter(log_handling.get_handler_filter("localhost", 1, logging.WARNING))
    launcher = two().set_logging_handlers(lambda: [handler, filtered])
    launcher.run(step)
    for local_rank in (0, 1):
        mine = [r for r in handler.records if r.hostname == "localhost" and r.local_rank == local_rank]  # type: ignore[attr-defined]
        got = {(r.levelno, r.getMessage()) for r in mine}
        assert got == {
            (logging.INFO, "printed"),
            (logging.ERROR, "on stderr"),
            (logging.WARNING, "a: logged"),
            (logging.DEBUG, "quietly"),
        }
    assert {r.getMessage() for r in filtered.records} == {"on stderr", "a: logged"}
    assert {r.local_rank for r in filtered.records} == {1}  # type: ignore[attr-defined]
    assert "printed" not in "".join(capfd.readouterr()), "the handlers are in the console's place"


def test_a_file_per_rank_by_handlers(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()

    def factory() -> list[logging.Handler]:
        return log_handling.file_handlers(["localhost"], [2], log_dir=str(folder))

    two().set_logging_handlers(factory).run(lambda: print("I am", os.environ["RANK"]))
    texts = [path.read_text() for path in sorted(folder.rglob("*[[]?].log"))]
    assert len(texts) == 2
    assert all(f"I am {rank}" in text for rank, text in enumerate(texts))


def test_the_last_record_before_a_kill_is_not_lost(kept: Kept) -> None:
    def step() -> None:
        logging.warning("last words")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(zlaunch.WorkerFailedError) as caught:
        two(workers_per_host=1).run(step)
    assert kept.texts() == ["last words"]
    assert caught.value.last_output == ["WARNING root: last words"]


def test_records_of_a_forked_child(kept: Kept, logs: Path) -> None:
    def child() -> None:
        logging.warning("by multiprocessing")

    def step() -> None:
        logging.warning("parent")
        if os.fork() == 0:
            logging.warning("forked")
            os._exit(0)
        os.wait()
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()

    two(workers_per_host=1).run(step)
    assert kept.texts() == ["parent", "forked", "by multiprocessing"]
    assert rank_file(logs, 0).read_text().count("WARNING root: ") == 3


def test_a_rank_whose_stdout_is_closed_logs_on(kept: Kept) -> None:
    def step() -> None:
        print("before")
        sys.stdout.close()
        os.close(1)
        logging.warning("after")

    two(workers_per_host=1).run(step)
    assert kept.texts() == ["after"]


def test_records_are_handled_when_the_call_returns(cluster: zlaunch.Launcher, kept: Kept) -> None:
    for i in range(8):
        cluster.run(lambda i=i: logging.warning("%d", i))  # type: ignore[misc]
        assert kept.texts()[-1] == str(i)
    assert len(kept.records) == 16


def test_without_a_handler_records_are_shown_on_stderr(tmp_path: Path) -> None:
    text = """
import logging, zlaunch
def step():
    logging.getLogger("a").info("hello")
    logging.getLogger("a").debug("unwanted")
zlaunch.Launcher(workers_per_host=2, backend=None, preload=()).run(step)
"""
    program(tmp_path, text)
    done = subprocess.run(
        [sys.executable, "prog.py"], env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert lines_of(done.stderr, rank) == ["INFO a: hello"]


def test_in_scripts_logging_is_untouched(tmp_path: Path, logs: Path) -> None:
    text = "import logging\nlogging.info('a')\nlogging.warning('b')\nprint(logging.root.level, logging.root.handlers)\n"
    prog = program(tmp_path, text)
    plain = subprocess.run([sys.executable, prog], capture_output=True, text=True, timeout=PATIENCE, check=True)
    ran = zrun(*QUICK, "-n", "1", prog)
    assert lines_of(ran.out, 0) == plain.stdout.splitlines()
    assert lines_of(ran.err, 0) == plain.stderr.splitlines() == ["WARNING:root:b"]
    assert sorted(rank_file(logs, 0).read_text().splitlines()) == sorted([*plain.stdout.splitlines(), "WARNING:root:b"])
