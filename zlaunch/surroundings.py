"""Level 5: what a launcher takes from the program that it is used in: environment, levels of loggers, log directory."""

from __future__ import annotations

import fnmatch
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .torchenv.envfile import parse_env_file
from .torchenv.environment import without_stale
from .view.settings import HandlerFactory, ViewName, ViewSettings, log_level
from .view.terminal import aside

DEFAULT_ENV_VARS_FOR_COPY: tuple[str, ...] = (
    "PATH",
    "LD_LIBRARY*",
    "LIBRARY_PATH",
    "PYTHON*",
    "CUDA*",
    "TORCH*",
    "PYTORCH*",
    "NCCL*",
)
"""Shell patterns of the variables that ranks on other hosts get from here. Ranks on this machine inherit them all."""

OF_THIS_MACHINE = (
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "MAIL",
    "HOSTNAME",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
    "SSH_*",
    "DBUS_*",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_*",
    "PYTHONHOME",
    "*_VISIBLE_DEVICES",
    "PYTHONEXECUTABLE",
)
"""What tells of this machine, its GPUs, this session or this interpreter: a pattern like ``PYTHON*`` does not carry it
to other hosts, where it would be wrong (with another's PYTHONHOME no Python starts). Its full name does."""


def copied_environment(patterns: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """What of ``environ`` goes to ranks on other hosts: what one of the shell patterns matches, case counting."""
    return {
        name: value
        for name, value in environ.items()
        if name in patterns or (_matches(name, patterns) and not _matches(name, OF_THIS_MACHINE))
    }


def ranks_environment(
    extra: Mapping[str, str] | None,
    env_file: str | os.PathLike[str] | None,
    copy: Sequence[str] | None = None,
) -> dict[str, str]:
    """What ranks get from here: our variables, then ``extra``, then the file's. Later wins.

    Of ours all go but those that another launcher has set for us (``STALE``); who gives one of these means it.

    Args:
        extra: variables and their values.
        env_file: a ``.env`` file; ``$NAME`` in it means ``extra`` or ours, also where ours is not copied.
        copy: shell patterns of those of ours that go to other hosts; ``None``: all, for ranks on this machine.

    Raises:
        OSError, ValueError: the file cannot be read, or a line of it is no assignment.
    """
    ours = dict(os.environ)
    given = dict(extra or {})
    if env_file is not None:
        path = Path(env_file).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"env_file: there is no file {path.absolute()}")
        given.update(parse_env_file(path.read_text(), {**ours, **given}, str(path)))
    return without_stale(ours if copy is None else copied_environment(copy, ours)) | given


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def say(text: str) -> None:
    """zlaunch's own words, to stderr, where no run's console is there to say them."""
    if aside(f"zlaunch: {text}\n"):
        return
    with suppress(OSError):  # whoever has closed our stderr does not want to hear it, and nothing is over for that
        sys.stderr.write(f"zlaunch: {text}\n")
        sys.stderr.flush()


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
