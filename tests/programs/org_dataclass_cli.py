"""A launcher made by a tool that reads dataclasses."""

import os

import tyro

import zlaunch as torchrunx


def work() -> tuple[str, str | None, str | None]:
    """What the command line asked for."""
    return os.environ["RANK"], os.environ.get("A"), os.environ.get("FROM_FILE")


if __name__ == "__main__":
    for value in tyro.cli(torchrunx.Launcher).run(work):
        print(*value)
