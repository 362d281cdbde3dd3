"""Level 5: logging handlers for what ranks and agents say, for ``Launcher.set_logging_handlers``.

Handlers made here get a record for every printed line (INFO from stdout, ERROR from stderr) and every
``logging`` record of a rank. Each record has ``hostname`` and ``local_rank``; ``local_rank`` is ``None``
for an agent's own words.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .view.files import safe_name
from .view.settings import log_level as _level_of

__all__ = ["RedirectHandler", "default_handlers", "file_handlers", "get_handler_filter"]


def get_handler_filter(
    hostname: str, local_rank: int | None, log_level: int = logging.NOTSET
) -> Callable[[logging.LogRecord], bool]:
    """A filter for ``Handler.addFilter``: one rank's records from a level up.

    Args:
        hostname: the host as the launcher names it.
        local_rank: the rank on that host; ``None`` for its agent.
        log_level: the lowest level that passes.
    """

    def passes(record: logging.LogRecord) -> bool:
        whose = (getattr(record, "hostname", ""), getattr(record, "local_rank", None))
        return whose == (hostname, local_rank) and record.levelno >= log_level

    return passes


class RedirectHandler(logging.Handler):
    """Gives records to this program's loggers of the same name, so that its own configuration shows them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hands the record on where its logger is enabled for its level."""
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


def file_handlers(
    hostnames: Sequence[str],
    workers_per_host: Sequence[int],
    log_dir: str | os.PathLike[str] = "zlaunch_logs",
    log_level: int = logging.NOTSET,
) -> list[logging.Handler]:
    """One file handler per agent and rank, in a new folder of ``log_dir`` named after the present time.

    The files are ``<hostname>.log`` and ``<hostname>[<local rank>].log``; a handler opens its file with its
    first record.

    Args:
        hostnames: the hosts, as the launcher names them.
        workers_per_host: how many ranks each has.
        log_dir: made where it is not there.
        log_level: the lowest level that is written.

    Raises:
        ValueError: where the two lists differ in length.
        OSError: where the folder cannot be made.
    """
    folder = Path(log_dir).absolute() / time.strftime("%Y-%m-%dT%H:%M:%S")
    folder.mkdir(parents=True, exist_ok=True)
    formatter = logging.Formatter("%(asctime)s:%(levelname)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    handlers: list[logging.Handler] = []
    for hostname, workers in zip(hostnames, workers_per_host, strict=True):
        for local_rank in (None, *range(workers)):
            place = "" if local_rank is None else f"[{local_rank}]"
            handler = logging.FileHandler(folder / f"{safe_name(hostname)}{place}.log", delay=True)
            handler.addFilter(get_handler_filter(hostname, local_rank, log_level))
            handler.setFormatter(formatter)
            handlers.append(handler)
    return handlers


def default_handlers(hostnames: Sequence[str], workers_per_host: Sequence[int]) -> list[logging.Handler]:
    """The first host's agent and its rank 0 go to this program's loggers, everyone to files.

    The files are in ``$ZLAUNCH_LOG_DIR`` (``zlaunch_logs``; empty: no files), from ``$ZLAUNCH_LOG_LEVEL``
    (INFO) up.

    Raises:
        ValueError: where ``$ZLAUNCH_LOG_LEVEL`` is no level, or the two lists differ in length.
    """
    handlers: list[logging.Handler] = []
    for local_rank in (None, 0):
        handler = RedirectHandler()
        handler.addFilter(get_handler_filter(hostnames[0], local_rank))
        handlers.append(handler)
    if log_dir := os.environ.get("ZLAUNCH_LOG_DIR", "zlaunch_logs"):
        handlers += file_handlers(hostnames, workers_per_host, log_dir, _level_of(os.environ))
    return handlers
