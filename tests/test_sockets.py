"""Sockets that nobody listens on any more are removed, and no others."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

from zlaunch.systems.sockets import remove_dead_sockets


def listener(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)
    return server


def test_only_ours_that_refuse_are_removed(tmp_path: Path) -> None:
    listener(tmp_path / "zlaunch-dead.c").close()
    listener(tmp_path / "other-dead.c").close()
    listener(tmp_path / "zlaunch-foreign.c").close()
    (tmp_path / "zlaunch-file.c").write_text("")
    (tmp_path / "zlaunch-link.c").symlink_to(tmp_path / "other-dead.c")
    with closing(listener(tmp_path / "zlaunch-alive.c")):
        gone = ["zlaunch-dead.c"]
        if os.geteuid() == 0:
            os.chown(tmp_path / "zlaunch-foreign.c", 12345, -1)
        else:
            gone.append("zlaunch-foreign.c")
        assert sorted(map(os.path.basename, remove_dead_sockets(str(tmp_path), "zlaunch-"))) == gone
    left = {"other-dead.c", "zlaunch-foreign.c", "zlaunch-file.c", "zlaunch-link.c", "zlaunch-alive.c"} - set(gone)
    assert {path.name for path in tmp_path.iterdir()} == left
    assert remove_dead_sockets(str(tmp_path / "nowhere"), "zlaunch-") == []
