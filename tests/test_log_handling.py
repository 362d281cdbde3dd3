"""``zlaunch.log_handling``: the handlers that a program builds its own logging from."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from zlaunch.log_handling import RedirectHandler, default_handlers, file_handlers, get_handler_filter


def record(
    text: str, hostname: str = "node", local_rank: int | None = 0, level: int = logging.INFO
) -> logging.LogRecord:
    name = f"zlaunch.{hostname}" + ("" if local_rank is None else f".{local_rank}")
    made = logging.LogRecord(name, level, "", 0, text, None, None)
    made.hostname = hostname
    made.local_rank = local_rank
    return made


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*/*")}


def test_a_filter_lets_one_rank_pass_from_a_level_up() -> None:
    passes = get_handler_filter("node", 1, logging.WARNING)
    assert passes(record("", "node", 1, logging.WARNING))
    assert not passes(record("", "node", 1, logging.INFO))
    assert not passes(record("", "node", 0, logging.ERROR))
    assert not passes(record("", "other", 1, logging.ERROR))
    assert not passes(record("", "node", None, logging.ERROR))
    assert get_handler_filter("node", None)(record("", "node", None, logging.DEBUG))
    assert not passes(logging.LogRecord("x", 50, "", 0, "of someone else", None, None))


def test_redirected_records_obey_the_loggers_level(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("zlaunch.node.0").setLevel(logging.ERROR)
    try:
        RedirectHandler().handle(record("quiet"))
        RedirectHandler().handle(record("loud", level=logging.ERROR))
    finally:
        logging.getLogger("zlaunch.node.0").setLevel(logging.NOTSET)
    assert [(each.name, each.getMessage()) for each in caplog.records] == [("zlaunch.node.0", "loud")]


def test_files_per_agent_and_rank(tmp_path: Path) -> None:
    handlers = file_handlers(["a", "b"], [1, 2], tmp_path / "deep" / "logs", logging.INFO)
    assert len(handlers) == 5
    for handler in handlers:
        for each in (record("agent", "a", None), record("one", "b", 1), record("low", "b", 0, logging.DEBUG)):
            handler.handle(each)
        handler.close()
    found = files(tmp_path / "deep" / "logs")
    assert {name: text.split(":", 3)[3] for name, text in found.items()} == {
        "a.log": "INFO: agent\n",
        "b[1].log": "INFO: one\n",
    }
    with pytest.raises(ValueError, match="zip"):
        file_handlers(["a", "b"], [1], tmp_path)


def test_the_default_is_the_first_host_here_and_everyone_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ZLAUNCH_LOG_DIR", str(tmp_path))
    monkeypatch.setenv("ZLAUNCH_LOG_LEVEL", "warning")
    caplog.set_level(logging.INFO)
    handlers = default_handlers(["a", "b"], [2, 2])
    for each in (record("mine", "a", 0), record("its", "a", 1, logging.WARNING), record("theirs", "b", 0)):
        for handler in handlers:
            handler.handle(each)
    for handler in handlers:
        handler.close()
    assert [each.getMessage() for each in caplog.records] == ["mine"]
    assert list(files(tmp_path)) == ["a[1].log"]


def test_no_files_where_the_directory_is_empty_and_an_error_for_no_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZLAUNCH_LOG_DIR", "")
    assert len(default_handlers(["a"], [1])) == 2
    assert not os.listdir(tmp_path)
    monkeypatch.setenv("ZLAUNCH_LOG_DIR", "logs")
    monkeypatch.setenv("ZLAUNCH_LOG_LEVEL", "loud")
    with pytest.raises(ValueError, match="ZLAUNCH_LOG_LEVEL"):
        default_handlers(["a"], [1])
