"""``zlaunch run`` on a real Slurm: from outside of a job, inside of one, and as a batch job."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bed.programs import until
from bed.slurm import Slurm

ZLAUNCH = [sys.executable, "-m", "zlaunch", "run", "--preload", ""]
PROGRAM = """
import os, sys
print(os.environ["RANK"], os.environ["WORLD_SIZE"], os.uname().nodename, os.environ.get("MINE"), sys.argv[1:])
sys.exit(7 if os.environ["RANK"] == "3" else 0)
"""
ENV = {"PYTHONPATH": str(Path(__file__).parent.parent), "ZLAUNCH_LOG_DIR": "logs"}


def nothing_is_left(slurm: Slurm) -> None:
    until(lambda: slurm.ask("squeue", "--noheader") == "", "the queue to be empty")
    assert {host: slurm.bed.processes(host) for host in slurm.bed.hosts} == {host: [] for host in slurm.bed.hosts}


def lines(text: str) -> list[str]:
    return sorted(line.partition("] ")[2] for line in text.splitlines())


def test_from_outside(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(PROGRAM)
    options = ["-N", "2", "-n", "2", "-q", "batch", "-x", "--comment=a b", "MINE=yes", "--save-hostlist"]
    done = slurm.run([*ZLAUNCH, "--scheduler", "slurm", *options, "prog.py", "-N"], env=ENV)
    expected = [f"{rank} 4 node{1 + rank // 2} yes ['-N']" for rank in range(4)]
    assert set(lines(done.stdout)) <= set(expected), done.stderr  # a failure ends those that are still to print
    assert expected[3] in lines(done.stdout), done.stderr
    assert done.returncode == 7
    assert (tmp_path / "hpc_launcher_hostlist.txt").read_text() == "node1\nnode2\n"
    nothing_is_left(slurm)
    refused = slurm.run([*ZLAUNCH, "-q", "nowhere", "prog.py"], env=ENV)  # Slurm is configured: nobody need name it
    assert refused.returncode == 125
    assert "invalid partition specified: nowhere" in refused.stderr


def test_inside_of_an_allocation(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(PROGRAM)
    done = slurm.run(["salloc", "-N3", *ZLAUNCH, "-n", "1", "prog.py"], env=ENV)
    assert lines(done.stdout) == [f"{rank} 3 node{rank + 1} None []" for rank in range(3)], done.stderr
    few = slurm.run(["salloc", "-N3", *ZLAUNCH, "-N", "2", "-n", "1", "-q", "short", "prog.py"], env=ENV)
    assert lines(few.stdout) == [f"{rank} 2 node{rank + 1} None []" for rank in range(2)], few.stderr
    assert "left aside: -q" in few.stderr
    nothing_is_left(slurm)


def test_as_a_batch_job(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(PROGRAM)
    name = 'it\'s "odd" $x; #y\\ %j'
    folder = tmp_path / "a 100% folder"
    words = ["-N", "2", "-n", "1", "-J", name, "-l", folder.name, "-t", "0.5", "--setup", "export MINE='a  b'"]
    env = {**ENV, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = slurm.run([*ZLAUNCH, "--bg", *words, "prog.py", "an\n#SBATCH -N3", "$HOME"], env=env)
    assert done.stdout.strip().isdecimal(), done.stderr
    job = int(done.stdout)
    assert slurm.wait(job, "COMPLETED", "FAILED") == "COMPLETED", (folder / "err.log").read_text()
    expected = [f"{rank} 2 node{rank + 1} a  b ['an\\n#SBATCH -N3', '$HOME']" for rank in range(2)]
    assert lines((folder / "out.log").read_text()) == expected
    assert slurm.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%j|%l|%D") == f"{name}|2:00|2"
    assert len(list((folder / "logs").glob("*/node?[[]0].log"))) == 2
    own = tmp_path / "own.sh"
    own.write_text("#!/bin/sh\n#SBATCH -o own.txt\necho $SLURM_JOB_NUM_NODES $1\n")
    done = slurm.run([*ZLAUNCH, "--batch-script", "own.sh", "-N", "2", "an argument"], env=env)
    assert slurm.wait(int(done.stdout), "COMPLETED", "FAILED") == "COMPLETED"
    assert (tmp_path / "own.txt").read_text() == "2 an argument\n"
    nothing_is_left(slurm)
