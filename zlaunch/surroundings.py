"""Level 5: what a launcher takes from the program that it is used in: environment, levels of loggers, log directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from .torchenv.envfile import parse_env_file
from .view.settings import HandlerFactory, ViewName, ViewSettings, log_level


def ranks_environment(extra: Mapping[str, str] | None, env_file: str | os.PathLike[str] | None) -> dict[str, str]:
    """The environment of ranks on this machine: all of ours, then ``extra``, then the file's. Later wins.

    Raises:
        OSError, ValueError: the file cannot be read, or a line of it is no assignment.
    """
    env = {**os.environ, **(extra or {})}
    if env_file is not None:
        path = Path(env_file)
        env.update(parse_env_file(path.read_text(), env, str(path)))
    return env


def record_level(handlers: HandlerFactory | None) -> int:
    """The lowest level of record that anybody here wants to see: ranks send no others."""
    if handlers is not None:
        return logging.DEBUG
    levels = [log_level(os.environ)]
    for name, logger in logging.Logger.manager.loggerDict.items():
        ours = name == "zlaunch" or name.startswith("zlaunch.")
        if ours and isinstance(logger, logging.Logger) and logger.level:
            levels.append(logger.level)
    return min(levels)


def view_settings(
    view: ViewName, log_dir: str | os.PathLike[str] | None, default_log_dir: str, handlers: HandlerFactory | None
) -> ViewSettings:
    """How output is shown and kept; ``ZLAUNCH_LOG_DIR`` stands for a ``log_dir`` that nobody chose."""
    chosen = os.environ.get("ZLAUNCH_LOG_DIR", log_dir) if log_dir == default_log_dir else log_dir
    return ViewSettings(
        view=view,
        log_dir=os.fspath(chosen) if chosen else None,
        handlers=handlers,
        log_level=log_level(os.environ),
    )
