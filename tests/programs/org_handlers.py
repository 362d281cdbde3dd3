"""Custom logging: the agent's words to the program's loggers, one rank's into a file; levels set on the rank."""

import logging
import os
import sys
from pathlib import Path

import zlaunch as torchrunx
from zlaunch.log_handling import RedirectHandler, default_handlers, file_handlers, get_handler_filter

HOSTNAMES = ["localhost"]


def work() -> None:
    """Prints and logs, as a library does."""
    logging.getLogger("chatty").setLevel(logging.ERROR)
    logging.getLogger("chatty").warning("not to be seen")
    logger = logging.getLogger("my_app")
    logger.setLevel(logging.DEBUG)
    logger.info("hello of %s", os.environ["RANK"])
    logger.debug("details of %s", os.environ["RANK"])
    print("printed by", os.environ["RANK"])
    print("complained by", os.environ["RANK"], file=sys.stderr)


def custom_handlers() -> list[logging.Handler]:
    """The agent of the first host to this program's loggers, its rank 0 to a file, its rank 1 to the loggers too."""
    redirect_handler = RedirectHandler()
    redirect_handler.addFilter(get_handler_filter(hostname=HOSTNAMES[0], local_rank=None, log_level=logging.DEBUG))
    file_handler = logging.FileHandler("output.txt")
    file_handler.addFilter(get_handler_filter(hostname=HOSTNAMES[0], local_rank=0, log_level=logging.DEBUG))
    file_handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    errors = RedirectHandler()
    errors.addFilter(get_handler_filter(HOSTNAMES[0], 1, log_level=logging.ERROR))
    return [redirect_handler, file_handler, errors]


def builders() -> list[logging.Handler]:
    """What torchrunx's builders make; the file for the second rank only has errors in it."""
    return [
        *default_handlers(HOSTNAMES, [2]),
        *file_handlers(HOSTNAMES, [2], log_dir="own_logs", log_level=logging.ERROR),
    ]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
    logging.getLogger("zlaunch").setLevel(logging.DEBUG)
    launcher = torchrunx.Launcher(hostnames=HOSTNAMES, workers_per_host=2, backend=None)

    launcher.set_logging_handlers(custom_handlers).run(work)
    print(Path("output.txt").read_text(), end="")

    print("-- builders")
    launcher.set_logging_handlers(builders).run(work)
    (errors,) = Path("own_logs").glob("*/localhost[[]1].log")
    print("file:", [line.split(":", 3)[-1].strip() for line in errors.read_text().splitlines()])

    print("-- none")
    launcher.set_logging_handlers(None).run(work)
