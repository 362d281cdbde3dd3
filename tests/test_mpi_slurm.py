"""A real MPI under a real Slurm: Open MPI by ``srun --mpi=pmix``, its world beside torch's."""

from __future__ import annotations

import ast
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bed.programs import PATH, until
from bed.slurm import Slurm
from sites import Site, of_slurm

RUN = [sys.executable, "-m", "zlaunch", "run", "-r", "mpi"]
ENV = {
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "ZLAUNCH_LOG_DIR": "logs",
    "PMIX_MCA_gds": "hash",  # under load PMIx's store in shared memory has crashed in MPI_Init: openpmix issue 1114
}
AGREES = """
import os, sys
import torch
import torch.distributed as dist
from mpi4py import MPI
world = MPI.COMM_WORLD
dist.init_process_group("gloo")
ours, theirs = (dist.get_rank(), dist.get_world_size()), (world.rank, world.size)
assert ours == theirs == (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])), (ours, theirs)
one = torch.ones(1)
dist.all_reduce(one)
print(world.rank, os.uname().nodename, int(one), world.allreduce(10), os.getpid(), flush=True)
if "stay" in sys.argv:
    world.recv()
dist.destroy_process_group()
"""


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path) -> Site:
    """All its nodes are idle, so that a job gets the first ones."""
    plugins = slurm.run(["srun", "--mpi=list"])
    works = slurm.run(["srun", "--mpi=pmix", "true"]) if "pmix" in plugins.stdout + plugins.stderr else plugins
    if works.returncode or not shutil.which("mpirun", path=PATH):
        pytest.skip(f"MPI under Slurm needs openmpi-bin and libpmix-dev: {works.stderr}")
    pytest.importorskip("mpi4py")
    (tmp_path / "agrees.py").write_text(AGREES)
    slurm.ready()
    return of_slurm(slurm)


def said(text: str) -> list[str]:
    """By rank, and without pids."""
    return sorted(" ".join(line.partition("] ")[2].split()[:-1]) for line in text.splitlines())


def expected(*hosts: str) -> list[str]:
    return [f"{rank} {host} {len(hosts)} {10 * len(hosts)}" for rank, host in enumerate(hosts)]


def test_its_ranks_are_torchs(site: Site, tmp_path: Path) -> None:
    words = [*RUN, "--scheduler", "slurm", "--setup", "true # or module load", "-N", "2", "-n", "2", "agrees.py"]
    outside = site.cluster.run(words, env=ENV)
    assert said(outside.stdout) == expected("node1", "node1", "node2", "node2"), outside.stderr
    assert outside.returncode == 0, outside.stderr
    site.nothing_is_left()
    site.cluster.ready()  # the same nodes once more
    batch = site.cluster.run([*words[:-1], "--bg", "-l", "batch", "-n", "3", "agrees.py"], env=ENV)
    until(lambda: site.jobs() == [], "the end of the job")
    assert said((tmp_path / "batch" / "out.log").read_text()) == expected(*["node1"] * 3, *["node2"] * 3), batch.stderr
    site.nothing_is_left()


def test_a_function_on_hosts_in_another_order(site: Site, tmp_path: Path) -> None:
    program = (
        "import os, zlaunch\n"
        "def place(factor):\n"
        "    from mpi4py import MPI\n"
        "    world = MPI.COMM_WORLD\n"
        "    return [world.rank, os.environ['RANK'], os.uname().nodename, world.allreduce(factor)]\n"
        "with zlaunch.Launcher(hostnames='slurm', rendezvous='mpi', workers_per_host=1, log_dir=None) as cluster:\n"
        "    print(cluster.run(place, 2)[:])\n"
        "    print(cluster.on(hostnames=['node2', 'node1'], workers_per_host=[2, 1]).run(place, 3)[:])\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = site.inside(tmp_path, 2, [sys.executable, "program.py"], env=ENV)
    answers = [ast.literal_eval(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert answers == [
        [[0, "0", "node1", 4], [1, "1", "node2", 4]],
        [[0, "0", "node2", 9], [1, "1", "node2", 9], [2, "2", "node1", 9]],
    ], done.stderr
    site.nothing_is_left()


def test_a_rank_that_is_killed(site: Site) -> None:
    words = [*RUN, "--scheduler", "slurm", "-N", "2", "-n", "2", "--max-restarts", "1", "agrees.py", "stay"]
    with site.cluster.popen(words, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        for _ in range(2):  # it is begun again once, as a world of its own
            lines = [program.stdout.readline().split() for _ in range(4)]
            (victim,) = (line for line in lines if "1]" in line)
            host, pid = victim[3], victim[-1]
            site.cluster.bed.run(host, ["kill", "-9", pid])
            killed_at = time.monotonic()
        _, told = program.communicate(timeout=30)
        took = time.monotonic() - killed_at
    assert program.returncode == 128 + signal.SIGKILL, told
    assert f"rank 1 ({host}, local rank 1, pid {pid}) killed by SIGKILL" in told
    assert took < 5.0, f"{took:.1f} s"
    site.nothing_is_left()


def test_an_mpi_that_slurm_cannot_start(site: Site, tmp_path: Path) -> None:
    done = site.inside(tmp_path, 1, [*RUN, "-n", "1", "-x", "--mpi=nonsense", "--", "agrees.py"], env=ENV)
    assert done.returncode == 125, done.stderr
    assert "Invalid MPI type 'nonsense'" in done.stderr
    site.nothing_is_left()


def test_gpus_of_the_job_are_not_in_the_way(site: Site, tmp_path: Path) -> None:
    show = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"
    for words in (["--gpus-per-node=4"], ["--gpus-per-task=1", "--ntasks-per-node=2"]):
        argv = [*RUN, "-n", "2", "--preload", "", sys.executable, "-c", show]
        done = site.cluster.run(["salloc", "-N2", *words, site.script(tmp_path, argv)], env=ENV)
        assert done.returncode == 0, done.stderr
    site.nothing_is_left()
