"""A launcher within what launches by itself: submitit, mpirun, libraries with threads and processes, torch.compile.

What these have done to the process that calls ``Launcher.run``, or CUDA has, is not to be seen in the ranks: agents are
new processes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import zlaunch


def launcher(ranks: int = 2, **fields: object) -> zlaunch.Launcher:
    chosen = {"backend": None, "preload": (), "view": "none", "log_dir": None, "grace_period": 5, **fields}
    return zlaunch.Launcher(workers_per_host=ranks, **chosen)  # type: ignore[arg-type]


# --- submitit ---------------------------------------------------------------------------------------------------------


def test_within_submitit(tmp_path: Path) -> None:
    """Its job is a process whose function is a launcher's: ranks, a process group, and an error that comes back."""
    import submitit

    def job() -> object:
        import torch
        import torch.distributed as dist

        def fail() -> None:
            raise LookupError(f"rank {dist.get_rank()}")

        def step() -> tuple[int, float, str]:
            total = torch.ones(1)
            dist.all_reduce(total)
            return dist.get_rank(), float(total.item()), os.environ["LOCAL_RANK"]

        with zlaunch.Launcher(workers_per_host=2, backend="gloo", view="none", log_dir=None) as made:
            returned = list(made.run(step))
            with pytest.raises(LookupError, match=r"^rank [01]$"):
                made.run(fail)
        return submitit.JobEnvironment().global_rank, returned

    executor = submitit.LocalExecutor(folder=tmp_path)
    executor.update_parameters(timeout_min=2)
    assert executor.submit(job).result() == (0, [(0, 2.0, "0"), (1, 2.0, "1")])


# --- mpirun -----------------------------------------------------------------------------------------------------------

WITHIN_MPIRUN = """
import os, sys
import zlaunch
if "first" in sys.argv:
    from mpi4py import MPI
    assert MPI.COMM_WORLD.size == 1

def look():
    from mpi4py import MPI
    world = MPI.COMM_WORLD
    told = [name for name in os.environ if name.startswith(("PMIX_", "OMPI_COMM_WORLD", "OMPI_ARGV"))]
    return world.rank, world.size, world.allreduce(1), int(os.environ["RANK"]), bool(told)

assert "OMPI_COMM_WORLD_RANK" in os.environ
fields = dict(workers_per_host=2, backend=None, preload=(), view="none", log_dir=None)
print(list(zlaunch.Launcher(rendezvous=sys.argv[1], **fields).run(look)))
"""


@pytest.mark.parametrize("first", ["", "first"])
@pytest.mark.parametrize("rendezvous", ["tcp", "mpi"])
def test_within_mpirun(tmp_path: Path, rendezvous: str, first: str) -> None:
    """``mpirun -n 1 python script.py``, be the script in its world or not: ranks have none, or their own."""
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("there is no mpirun")
    script = tmp_path / "script.py"
    script.write_text(WITHIN_MPIRUN)
    env = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    words = [mpirun, "-n", "1", sys.executable, str(script), rendezvous, first]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    of_rank = {
        "tcp": "[(0, 1, 1, 0, False), (0, 1, 1, 1, False)]\n",
        "mpi": "[(0, 2, 2, 0, True), (1, 2, 2, 1, True)]\n",
    }
    assert (done.returncode, done.stdout) == (0, of_rank[rendezvous]), done.stderr


# --- libraries that start threads and processes as they are imported --------------------------------------------------

BUSY = """
import atexit, queue, subprocess, sys, threading
WORK = queue.Queue()
THREAD = threading.Thread(target=WORK.get, daemon=True)
THREAD.start()
SERVICE = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
"""


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A module that is like those that send metrics; it is imported here by a call, and ended at the end."""
    (tmp_path / "busy.py").write_text(BUSY)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: __import__("busy")
    module = sys.modules.pop("busy", None)
    if module is not None:
        module.WORK.put(None)
        module.SERVICE.communicate(timeout=10)


def look() -> tuple[list[str], int, int]:
    files = [
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}")
    ]
    return files, threading.active_count(), len(psutil.Process().children())


def test_a_library_of_the_parent_s_with_threads_and_processes(busy: Callable[[], None]) -> None:
    busy()
    made = launcher()
    for _files, threads, children in made.run(look):
        assert (threads, children) == (1, 0)


def test_a_preloaded_one(busy: Callable[[], None], capfd: pytest.CaptureFixture[str]) -> None:
    """Ranks are new interpreters then, which import it themselves, and that is said."""

    def work() -> tuple[bool, int]:
        import busy

        busy.WORK.put(None)
        busy.THREAD.join()
        return busy.SERVICE.poll() is None, busy.SERVICE.pid

    answers = list(launcher(preload=("busy",), view="plain").run(work))
    assert [alive for alive, _ in answers] == [True, True]
    assert len({pid for _, pid in answers}) == 2
    assert not any(psutil.pid_exists(pid) for _, pid in answers)
    said = " ".join(capfd.readouterr().err.split())
    assert "ranks are started as new interpreters, since importing busy started 1 thread" in said


# --- torch.compile ----------------------------------------------------------------------------------------------------


def test_torch_compile_and_the_processes_that_it_starts() -> None:
    """The pool is inductor's own, which it starts where it has kernels to compile; a rank leaves nothing of it behind.

    The backend is one that needs no C++ compiler, which a host may not have.
    """

    def work() -> tuple[float, list[int]]:
        import torch
        from torch._inductor.async_compile import AsyncCompile

        pool = AsyncCompile.process_pool()
        assert pool.submit(abs, -3).result() == 3
        compiled = torch.compile(lambda x: (x.sin() + 1).sum(), backend="aot_eager")
        return compiled(torch.zeros(8)).item(), [child.pid for child in psutil.Process().children(recursive=True)]

    made = launcher(1, preload=("torch",), extra_env_vars={"TORCHINDUCTOR_COMPILE_THREADS": "2"})
    total, workers = made.run(work)[0]
    assert total == 8.0
    assert workers
    assert not any(map(psutil.pid_exists, workers))


# --- CUDA -------------------------------------------------------------------------------------------------------------


def test_cuda_in_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here, so this is what CUDA leaves in a process: an open device, and a variable that PyTorch sets.

    The device does not get to the ranks, though it is inheritable here. The variable does, as the environment of ranks
    on this machine is its own; they would set it to the same.
    """
    device = tmp_path / "nvidia0"
    device.touch()
    descriptor = os.open(device, os.O_RDWR)
    os.set_inheritable(descriptor, True)
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")

    def work() -> tuple[list[str], bool, bool, str]:
        import torch

        return look()[0], torch.cuda._is_in_bad_fork(), torch.cuda.is_initialized(), os.environ["CUDA_MODULE_LOADING"]

    try:
        for files, bad, initialised, loading in launcher(preload=("torch",)).run(work):
            assert not [name for name in files if "nvidia" in name]
            assert (bad, initialised, loading) == (False, False, "LAZY")
    finally:
        os.close(descriptor)
