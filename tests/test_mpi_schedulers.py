"""Ranks that a scheduler's own command calls for, ``--rdv mpi``: where they are, and how a run of them ends.

The simulated Flux and jsrun start processes and number them, and know nothing of MPI: most ranks here ask no more. For
Slurm ``test_mpi_slurm`` has the real thing.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bed.programs import until
from sim.lsf import Lsf
from sites import Site, of_lsf

RUN = [sys.executable, "-m", "zlaunch", "run", "-r", "mpi"]
ENV = {"PYTHONPATH": str(Path(__file__).parent.parent), "ZLAUNCH_LOG_DIR": "logs"}
ODD = "it's {{{id}} $HOME; \\ #"
NUMBERS = "OMPI_COMM_WORLD_RANK PMIX_RANK PMI_RANK SLURM_PROCID FLUX_TASK_RANK"
SAYS = f"""
for name in {NUMBERS}; do eval "theirs=\\$$name"; [ -z "$theirs" ] || break; done
echo "$RANK $theirs $(uname -n) $*"
case $1 in
stay) trap 'exit 0' TERM; while [ ! -e go ]; do sleep 0.02; done ;;
fail) [ $RANK != 1 ] || exit 7; sleep 60 ;;
esac
"""


@pytest.fixture(autouse=True)
def program(tmp_path: Path) -> None:
    (tmp_path / "says.sh").write_text(SAYS)


def run(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    return site.cluster.run([*RUN, "--scheduler", site.scheduler, *words], env=ENV, timeout=60)


def lines(text: str) -> list[str]:
    return sorted(line.partition("] ")[2] for line in text.splitlines())


def expected(site: Site, *words: str) -> list[str]:
    return [" ".join([str(rank), str(rank), site.hosts[rank // 2], *words]) for rank in range(4)]


@pytest.mark.parametrize("site", ["flux", "lsf", "coral"], indirect=True)
def test_from_outside_of_a_job(site: Site) -> None:
    done = run(site, "-N", "2", "-n", "2", "sh", "says.sh", ODD)
    assert lines(done.stdout) == expected(site, ODD), done.stderr
    assert done.returncode == 0, done.stderr
    site.nothing_is_left()
    done = run(site, "-N", "2", "-n", "2", "sh", "says.sh", "fail")
    assert done.returncode == 7, done.stderr
    assert "exit status 7: rank 1" in done.stderr
    site.nothing_is_left()


@pytest.mark.parametrize("site", ["flux", "lsf", "coral"], indirect=True)
def test_inside_of_a_job(site: Site, tmp_path: Path) -> None:
    done = site.inside(tmp_path, 2, [*RUN, "-n", "2", "sh", "says.sh"], env=ENV)
    assert lines(done.stdout)[-4:] == [f"{line} " for line in expected(site)], done.stderr
    site.nothing_is_left()


def start(site: Site, *words: str) -> subprocess.Popen[str]:
    argv = [*RUN, "--scheduler", site.scheduler, "-N", "2", "-n", "2", *words]
    return site.cluster.popen(argv, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def staying(site: Site, *words: str) -> subprocess.Popen[str]:
    program = start(site, *words, "sh", "says.sh", "stay")
    assert program.stdout is not None
    for _ in range(4):
        assert " stay" in program.stdout.readline(), program.communicate()
    return program


@pytest.mark.parametrize("site", ["slurm", "lsf"], indirect=True)
def test_ctrl_c_from_outside(site: Site) -> None:
    program = staying(site)
    program.send_signal(signal.SIGINT)
    _, told = program.communicate(timeout=30)
    assert program.returncode == 130, told
    assert "Ctrl-C: ending the ranks" in told
    site.nothing_is_left()


@pytest.mark.parametrize("site", ["flux"], indirect=True)
def test_the_wait_is_told_and_can_be_given_up(site: Site) -> None:
    first = staying(site, "-N", str(len(site.hosts)), "--exclusive")
    second = start(site, "sh", "says.sh")
    assert second.stderr is not None
    told = second.stderr.readline()
    assert "'s job " in told
    assert any(word in told for word in (" is SCHED", " is PEND")), told
    second.send_signal(signal.SIGINT)
    assert second.communicate(timeout=20)[1] == "zlaunch: Ctrl-C: no rank had started\n"
    assert second.returncode == 130
    until(lambda: len(site.jobs()) == 1, "the other job is given up")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)
    site.nothing_is_left()


@pytest.mark.parametrize("site", ["flux", "coral"], indirect=True)
def test_twice_ends_the_job_itself(site: Site, tmp_path: Path) -> None:
    (tmp_path / "says.sh").write_text(SAYS.replace("exit 0", "echo ignored"))
    program = staying(site, "-l", "kept", "--grace", "60")
    program.send_signal(signal.SIGINT)
    assert program.stdout is not None
    line = program.stdout.readline()
    assert line.endswith("ignored\n"), program.communicate()
    program.send_signal(signal.SIGINT)
    _, told = program.communicate(timeout=30)
    assert program.returncode == 130, told
    assert "once more to have" in told
    site.nothing_is_left()
    assert "exec " in (tmp_path / "kept" / "launch.sh").read_text()
    assert list((tmp_path / "kept" / "logs").rglob("*.log"))
    assert list((tmp_path / "cache").rglob("job.sh")) == []


@pytest.mark.parametrize("site", ["flux", "lsf"], indirect=True)
def test_what_is_refused_is_told_in_the_schedulers_words(site: Site) -> None:
    done = run(site, "-q", "nowhere", "-N", "2", "-n", "2", "sh", "says.sh")
    assert done.returncode == 125
    assert "gave no nodes" in done.stderr
    assert "nowhere" in done.stderr
    site.nothing_is_left()


@pytest.mark.parametrize("site", ["flux", "lsf"], indirect=True)
def test_a_launcher_outside_of_a_job_says_where_it_can_be(site: Site) -> None:
    program = (
        "import zlaunch\n"
        f"one = zlaunch.Launcher(hostnames={site.scheduler!r}, rendezvous='mpi', workers_per_host=1, log_dir=None)\n"
        "try: one.run_command('true')\n"
        "except zlaunch.LaunchError as error: print(error)\n"
    )
    done = site.cluster.run([sys.executable, "-c", program], env=ENV)
    how = {"flux": "flux alloc", "lsf": "bsub -I"}[site.scheduler]
    assert done.stdout.endswith(f"within its jobs only, and we are in none: run the script in one, as by {how}\n")


def test_open_mpi_by_blaunch(lsf_cluster: Lsf, tmp_path: Path) -> None:
    """The real mpirun, which knows nothing of this LSF."""
    pytest.importorskip("mpi4py")
    (tmp_path / "world.py").write_text(
        "import os\nfrom mpi4py import MPI\n"
        "print(MPI.COMM_WORLD.rank, os.environ['RANK'], os.uname().nodename, MPI.COMM_WORLD.allreduce(1))\n"
    )
    done = run(of_lsf(lsf_cluster), "-N", "2", "-n", "2", "world.py")
    assert lines(done.stdout) == [f"{rank} {rank} node{rank // 2 + 1} 4" for rank in range(4)], done.stderr
    assert done.returncode == 0, done.stderr
