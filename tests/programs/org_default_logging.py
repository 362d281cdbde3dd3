"""Logging without handlers of one's own: a level for all, one for a host, one for a rank."""

import logging
import os

import zlaunch as torchrunx


def work() -> None:
    """Logs at two levels."""
    logging.getLogger().setLevel(logging.DEBUG)
    logging.getLogger("my_app").debug("debug of %s", os.environ["RANK"])
    logging.getLogger("my_app").warning("warning of %s", os.environ["RANK"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
    logging.getLogger("zlaunch").setLevel(logging.DEBUG)
    logging.getLogger("zlaunch.localhost").setLevel(logging.INFO)
    logging.getLogger("zlaunch.localhost.1").setLevel(logging.DEBUG)
    logging.getLogger("zlaunch.localhost.2").setLevel(logging.ERROR)
    torchrunx.Launcher(workers_per_host=3, backend=None).run(work)
