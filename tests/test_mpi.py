"""Rendezvous over MPI, with a real Open MPI: on this machine, and over hosts that are reached by ssh."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mpi_steps
import psutil
import pytest
from bed import Bed
from far_rig import Ears, far

import zlaunch
from zlaunch.agent.callers import Callers
from zlaunch.backends import mpi
from zlaunch.torchenv.calls import address

SOON = 2.0
"""Seconds from a rank's death to the exception, on a machine that has other things to do; 0.03 as a rule."""


def here(ranks: int = 3, **fields: Any) -> zlaunch.Launcher:
    chosen = {"backend": None, "preload": (), "view": "none", "grace_period": 2, "rendezvous": "mpi", **fields}
    return zlaunch.Launcher(hostnames="local", workers_per_host=ranks, **chosen)


@pytest.fixture(autouse=True)
def _no_launcher_left() -> Iterator[None]:
    yield
    assert not _running("zlaunch-rank")


def _running(word: str) -> list[psutil.Process]:
    """Of this test's processes, wherever they hang, those with such a word in their command line."""
    ours = ("XDG_STATE_HOME", os.environ["XDG_STATE_HOME"])
    found = [one for one in psutil.process_iter(["cmdline", "environ"]) if word in (one.info["cmdline"] or ())]
    return [one for one in found if ours in (one.info["environ"] or {}).items()]


def printed(ears: Ears, count: int) -> list[str]:
    """What ranks have said, in any order."""
    lines: list[str] = []
    while len(lines) < count:
        record = ears.heard.get(timeout=20)
        lines += [record.getMessage()] if record.local_rank is not None else []  # type: ignore[attr-defined]
    return sorted(lines)


def check(places: list[mpi_steps.Place], local: int) -> None:
    """All who know say the same of every rank, and the sums are right."""
    size = len(places)
    for rank, place in enumerate(places):
        assert place.environment == place.mpi == (rank, size, rank % local)
        assert place.torch == (rank, size)
        assert place.total == size * sum(range(size))


def test_ranks_are_the_same_to_mpi_and_to_torch() -> None:
    with here(4, backend="gloo", preload=("torch",)) as cluster:
        check(list(cluster.run(mpi_steps.place)), 4)
        other = cluster.on(workers_per_host=2)
        check(list(other.run(mpi_steps.place)), 2)


def test_ranks_that_are_new_interpreters_are_too() -> None:
    check(list(here(2, backend="gloo", start_method="spawn").run(mpi_steps.place)), 2)


def test_a_script_finds_its_world(tmp_path: Path) -> None:
    script = tmp_path / "world.py"
    script.write_text(
        "import os\nfrom mpi4py import MPI\nimport torch.distributed as dist\n"
        "dist.init_process_group('gloo')\nworld = MPI.COMM_WORLD\n"
        "assert (world.rank, world.size) == (dist.get_rank(), dist.get_world_size())\n"
        "assert os.environ['RANK'] == str(world.rank)\nprint('sum', world.allreduce(world.rank))\n"
    )
    ears = Ears()
    here(3, preload=("torch",)).set_logging_handlers(lambda: [ears]).run_script(script)
    assert printed(ears, 3) == ["sum 3"] * 3


JOB = {
    "SLURM_JOBID": "9",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "n[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "1(x2)",
}
"""What Open MPI knows a job by; we are not asked to run on its nodes."""


def test_a_program_of_its_own_gets_what_mpi_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    ears = Ears()
    launcher = here(2).set_logging_handlers(lambda: [ears])
    launcher.run_command("sh", "-c", "echo $RANK $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE$SLURM_PROCID")
    assert printed(ears, 2) == ["0 0 of 2", "1 1 of 2"]


@pytest.fixture
def staying() -> Iterator[tuple[zlaunch.Run[None], list[int], Ears]]:
    ears = Ears()
    with pytest.raises(zlaunch.ZlaunchError), here(3).set_logging_handlers(lambda: [ears]) as cluster:
        run = cluster.submit(mpi_steps.stay)
        yield run, ears.pids(3)["localhost"], ears
        run.result(timeout=20)


def test_a_rank_that_is_killed_is_told_as_soon_as_without_mpi(staying: Any) -> None:
    run, pids, _ = staying
    began = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    error = run.exception(20)
    assert isinstance(error, zlaunch.WorkerFailedError)
    assert (error.rank, error.signal) == (1, signal.SIGKILL)
    assert error.failures[0].at - began < SOON


def test_mpirun_does_not_wait_for_those_that_it_kills() -> None:
    """It would, for a second, after every fourth death of a rank; and so would whoever waits for the step."""
    name = "odls_base_sigkill_timeout"
    words = ["ompi_info", "--param", "odls", "base", "--level", "9", "--parsable"]
    known = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    assert f":{name}:" in known
    assert list(here(2).run(os.getenv, f"OMPI_MCA_{name}")) == ["0", "0"]


def test_a_launcher_that_is_killed_is_named(staying: Any) -> None:
    run, _, _ = staying
    (mpirun,) = _running(shutil.which("mpirun") or "")
    mpirun.kill()
    error = run.exception(20)
    assert isinstance(error, zlaunch.AgentFailedError)
    assert "mpirun, which starts the ranks: it was killed by SIGKILL" in str(error)


def test_a_cancelled_run_leaves_no_launcher(staying: Any) -> None:
    run, _, _ = staying
    run.cancel()
    assert isinstance(run.exception(20), zlaunch.RunCancelled)


def test_an_abort_of_the_world_has_its_status() -> None:
    with pytest.raises(zlaunch.WorkerFailedError) as caught:
        here(3).run(mpi_steps.abort, 7)
    assert (caught.value.rank, caught.value.exit_code) == (1, 7)


def test_a_restart_has_a_world_of_its_own() -> None:
    assert list(here(2, max_restarts=1).run(mpi_steps.once, "x")) == [(1, 2), (1, 2)]


def test_a_caller_whose_launcher_is_gone_goes_too() -> None:
    with subprocess.Popen((*mpi.caller("nobody", None), "0"), stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        caller.stdout.close()
        try:
            assert caller.wait(20) == 1
        finally:
            caller.kill()


NO_CALLS = [
    b"",
    b"\xff",
    b"[" * 200_000,
    b"[]",
    b'{"rank":0}',
    b'{"rank":"0","size":1,"env":{}}',
    b'{"rank":0,"size":1,"env":[]}',
    b'{"rank":1e999,"size":1,"env":{}}',
]


def test_what_is_no_call_is_hung_up_on() -> None:
    callers = Callers()
    callers.open(("garbage", 0))
    (door,) = callers.fds()
    for data in NO_CALLS:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as wire, open(os.devnull) as file:
            wire.connect(address("garbage", 0))
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            socket.send_fds(wire, [data], [file.fileno()])
            before = len(os.listdir("/proc/self/fd"))
            assert callers.ready(door) is None
            assert callers.ready(callers.fds()[-1]) is None
            assert callers.fds() == [door]
            assert wire.recv(1) == b""
            assert len(os.listdir("/proc/self/fd")) == before
    callers.dismiss()


# --- bad input ------------------------------------------------------------------------------------------------------


def fake_mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """An mpirun that starts three processes of its last arguments, each after ``text``; it knows no MPI."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "mpirun"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo "mpirun (Open MPI) 4.1.4"; exit; }\n'
        'while [ "${1#*python}" = "$1" ]; do shift; done\n'
        f'for rank in 0 1 2; do ({text}; exec "$@") & done\nwait\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_launcher_that_knows_no_world_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpirun(tmp_path, monkeypatch, ":")
    with pytest.raises(zlaunch.ZlaunchError, match="it has started rank 0 of 1 there, where ranks 0-2 of 3"):
        here(3).run(mpi_steps.place)


def test_a_library_of_another_mpi_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpirun(tmp_path, monkeypatch, "export OMPI_COMM_WORLD_RANK=$rank OMPI_COMM_WORLD_SIZE=3")
    with pytest.raises(RuntimeError, match=r"rank \d of 3 is 0 of 1 in MPI.COMM_WORLD: .*Open MPI.* is not that of"):
        here(3).run(mpi_steps.place)


def test_a_launcher_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpirun(tmp_path, monkeypatch, "echo no licence >&2; kill $$; exit")
    with pytest.raises(zlaunch.LaunchError, match="which starts the ranks: it was killed by SIGTERM; it said:\nno lic"):
        here(2).run(mpi_steps.place)


def test_without_mpirun_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(zlaunch.LaunchError, match="there is no mpirun on PATH; load the site's MPI module"):
        here(2).run(mpi_steps.place)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("raise ModuleNotFoundError(\"No module named 'mpi4py'\")", "mpi4py is not installed: pip install mpi4py"),
        ("raise RuntimeError('cannot load MPI library')", "mpi4py cannot be loaded: RuntimeError: cannot load MPI lib"),
    ],
)
def test_without_mpi4py_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    (tmp_path / "mpi4py.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(zlaunch.LaunchError, match=words):
        here(2).run(mpi_steps.place)


def test_two_mpis_are_told_apart_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "mpirun").write_text("#!/bin/sh\necho HYDRA build details:\n")
    (folder / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(zlaunch.LaunchError, match="mpirun is of MPICH or its kin, and mpi4py's library of Open MPI"):
        here(2).run(mpi_steps.place)


# --- several hosts --------------------------------------------------------------------------------------------------


def test_two_hosts_are_one_world(bed: Bed) -> None:
    launcher = far(bed, "node1", "node2", workers_per_host=2, backend="gloo", preload=("torch",), rendezvous="mpi")
    with launcher as cluster:
        results = cluster.run(mpi_steps.place)
        check(list(results), 2)
        assert list(results.results) == ["node1", "node2"]


def test_a_rank_that_is_killed_on_another_host_is_told_as_soon(bed: Bed) -> None:
    ears = Ears()
    launcher = far(bed, "node1", "node2", workers_per_host=2, rendezvous="mpi").set_logging_handlers(lambda: [ears])
    with pytest.raises(zlaunch.WorkerFailedError), launcher as cluster:
        run = cluster.submit(mpi_steps.stay)
        pids = ears.pids(4)
        began = time.monotonic()
        os.kill(bed.pid_in_root("node2", pids["node2"][0]), signal.SIGKILL)
        error = run.exception(20)
        assert isinstance(error, zlaunch.WorkerFailedError)
        assert (error.rank, error.hostname, error.signal) == (2, "node2", signal.SIGKILL)
        assert error.failures[0].at - began < SOON
        run.result()
    for host in ("node1", "node2"):
        assert not [command for _, command in bed.processes(host) if "zlaunch" in command or "orted" in command]


def test_a_user_at_a_host_is_for_the_configuration_of_ssh(bed: Bed) -> None:
    with pytest.raises(zlaunch.LaunchError, match="root@node1: mpirun takes names alone; say User root for node1"):
        far(bed, "root@node1", rendezvous="mpi").run(mpi_steps.place)
