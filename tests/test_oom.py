"""Out of memory under a memory limit, made with a cgroup of our own: told for what it is, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import survival_rig as rig
from conftest import _shared as kept  # what is in there is spared by the promise that nothing is left

import zlaunch

LIMIT = 64 << 20
"""Bytes: room enough for a rank without torch, and soon used up."""


@pytest.fixture(scope="module")
def group() -> Iterator[Path]:
    """The ``cgroup.procs`` of a memory cgroup with a limit."""
    name = f"zlaunch-test-{os.getpid()}"
    one, two = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    try:
        if one.is_dir():
            folder, limits = one / name, ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        else:
            folder, limits = two / name, ["memory.max", "memory.swap.max"]
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"needs root and a cgroup tree that can be written to: {error}")
    try:
        (folder / limits[0]).write_text(str(LIMIT))
        with suppress(OSError):  # without swap there is nothing to limit
            (folder / limits[1]).write_text("0" if limits[1] == "memory.swap.max" else str(LIMIT))
    except OSError as error:
        folder.rmdir()
        pytest.skip(f"the memory controller is not there for us: {error}")
    yield folder / "cgroup.procs"
    folder.rmdir()


@pytest.fixture(scope="module")
def cluster() -> Iterator[zlaunch.Launcher]:
    launcher = zlaunch.Launcher(workers_per_host=2, backend=None, preload=(), log_dir=None, view="none")
    kept.append(launcher)
    with launcher:
        yield launcher
    kept.remove(launcher)


def eat(group: str | None) -> None:
    """Rank 1 moves into the cgroup, and allocates until it is killed; without one it kills itself."""
    if os.environ["RANK"] == "1":
        if group is None:
            os.kill(os.getpid(), signal.SIGKILL)
        Path(group or "").write_text(str(os.getpid()))
        print("about to eat", flush=True)
        eaten = []
        while True:
            eaten.append(b"x" * (1 << 20))
    rig.sleep_for_ever()


def test_out_of_memory_is_told(cluster: zlaunch.Launcher, group: Path) -> None:
    with pytest.raises(zlaunch.WorkerFailedError, match="out of memory") as caught:
        cluster.run(eat, str(group))
    error = caught.value
    assert (error.rank, error.signal, error.out_of_memory) == (1, signal.SIGKILL, True)
    assert "about to eat" in error.last_output
    assert "want of memory" in str(error)
    assert [fate.rank for fate in error.failures if fate.out_of_memory] == [1], "the rank that we ended has enough"


def test_a_plain_sigkill_is_none(cluster: zlaunch.Launcher) -> None:
    with pytest.raises(zlaunch.WorkerFailedError, match="SIGKILL") as caught:
        cluster.run(eat, None)
    assert (caught.value.rank, caught.value.out_of_memory) == (1, False)
    assert "memory" not in str(caught.value)


def test_the_command_line_s_status(group: Path, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(f"import test_oom\ntest_oom.eat({str(group)!r})\n")
    words = ["-m", "zlaunch", "run", "-n", "2", "--preload", "", "--log-dir", "none", "prog.py"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env=rig.environment(),
        capture_output=True,
        text=True,
        timeout=rig.PATIENCE,
        check=False,
    )
    assert done.returncode == 137, done.stderr
    assert "out of memory" in done.stderr.splitlines()[-1] + done.stderr.splitlines()[-2]
