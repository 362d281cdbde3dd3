"""``zlaunch run`` on each scheduler: from outside of a job, inside of one, and as a batch job."""

from __future__ import annotations

import ast
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from bed.programs import until
from bed.slurm import Slurm
from sim.lsf import Lsf
from sites import Site, of_lsf
from test_cli_reference import LINES as LINES_OF_USERS

ZLAUNCH = [sys.executable, "-m", "zlaunch"]
RUN = [*ZLAUNCH, "run", "--preload", ""]
IMPATIENT = "import sys, zlaunch.asking as a; a.ASK_EVERY = 0.2; from zlaunch.cli.main import main; sys.exit(main())"
ENV = {"PYTHONPATH": str(Path(__file__).parent.parent), "ZLAUNCH_LOG_DIR": "logs"}
ODD = "a, 'b' \"c\" $HOME; `d` 100% %j \\ {} (e) [1-2] #f"
MARKS = "#SBATCH --nodes=3\n#BSUB -q nowhere\n#PBS -q nowhere\n# flux: --queue=nowhere\n#flux: -q nowhere\n"
"""Nobody's directives, in an argument: sbatch reads those for LSF and PBS wherever they stand."""
LINES = f"{ODD}\n{MARKS}"

SAYS = """
import os, pathlib, sys, time
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
print([rank, world, os.uname().nodename, os.environ.get("MINE"), *sys.argv[1:]], flush=True)
if "fail" in sys.argv:
    pathlib.Path(f"said-{rank}").touch()
    while rank == 3 and len(list(pathlib.Path().glob("said-*"))) < 4: time.sleep(0.01)
    sys.exit(7 if rank == 3 else 0)
"""
STAYS = """
import os, pathlib, signal, sys, time
def end(*_):
    time.sleep(0.2)
    print("bye", os.environ["RANK"], flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("here", os.environ["RANK"], *sys.argv[1:], os.environ.get("MINE", ""), flush=True)
while not pathlib.Path("go").exists(): time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def programs(tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text(SAYS)
    (tmp_path / "stays.py").write_text(STAYS)


def said(text: str) -> list[str]:
    """By the ranks, without their numbers; in order of these."""
    return sorted(line.partition("] ")[2] for line in text.splitlines() if line.startswith("[rank"))


def says(site: Site, count: int, each: int, *words: str | None) -> list[str]:
    """What ``says.py`` does, on so many nodes."""
    names = [name for name in site.hosts[:count] for _ in range(each)]
    return [str([rank, len(names), name, *words]) for rank, name in enumerate(names)]


def run(site: Site, *words: str | Path | int, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``zlaunch run`` on the login node."""
    return site.cluster.run([*RUN, "--scheduler", site.scheduler, *words], env=ENV | (env or {}))


def submit(site: Site, *words: str | Path) -> str:
    """The same with ``--bg``; the job's id."""
    done = run(site, "--bg", *words)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1, done.stdout
    return done.stdout.strip()


def asks(site: Site, *words: str) -> str:
    """What another of zlaunch's commands prints."""
    return site.cluster.ask(*ZLAUNCH, *words, env=ENV)


def start(site: Site, *words: str) -> subprocess.Popen[str]:
    """The same as ``run``, but it looks often where its job stands; and come back."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    argv = [sys.executable, "-c", IMPATIENT, *RUN[3:], "--scheduler", site.scheduler, *words]
    return site.cluster.popen(argv, env=ENV, **pipes)


def staying(site: Site, count: int, *words: str) -> subprocess.Popen[str]:
    """One whose ranks are there, two on each of so many nodes."""
    program = start(site, "-N", str(count), "-n", "2", *words, "stays.py")
    assert program.stdout is not None
    for _ in range(2 * count):
        line = program.stdout.readline()
        assert "] here " in line, program.communicate()
    return program


def ended(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its status, and the rest of what it printed."""
    out, err = program.communicate(timeout=30)
    return program.returncode, out, err


def files(folder: Path, *texts: str) -> None:
    """Until log files of ranks below the folder begin with these, one each."""
    until(
        lambda: sorted(file.read_text().partition("\n")[0] for file in folder.glob("*/*[[]?[]].log")) == sorted(texts),
        f"{texts} in log files below {folder}",
    )


class Done(NamedTuple):
    """A command in a job."""

    status: int
    out: str
    err: str


def inside(site: Site, folder: Path, count: int, *lines: Sequence[str]) -> list[Done]:
    """``zlaunch run`` several times in one job of so many nodes, all at once."""
    commands = [f"({shlex.join([*RUN, *line])} >{i}.out 2>{i}.err; echo $? >{i}) &" for i, line in enumerate(lines)]
    site.inside(folder, count, ["sh", "-c", "\n".join([*commands, "wait"])], env=ENV)
    names = [folder / str(i) for i in range(len(lines))]
    return [Done(int(n.read_text()), Path(f"{n}.out").read_text(), Path(f"{n}.err").read_text()) for n in names]


# --- from outside ---------------------------------------------------------------------------------------------------


def test_from_outside_ranks_get_what_was_typed(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "a 'b', $c; %j (d)"
    folder.mkdir()
    (folder / "says, 'x' $y.py").write_text(SAYS)
    python = folder / "my 'python', $z"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    own = ["-J", ODD, "--env", f"MINE={LINES}", "--python", str(python), "--setup", "export SET='a  b'; cd /"]
    words = [*own, "--log-dir", "my logs, %j", "--out", "o u't", "--save-hostlist"]
    argv = [*RUN, "--scheduler", site.scheduler, "-N", "2", "-n", "2", *words]
    done = site.cluster.run([*argv, "./says, 'x' $y.py", "fail", LINES, "", "-N", "$HOME"], env=ENV, cwd=folder)
    expected = says(site, 2, 2, LINES, "fail", LINES, "", "-N", "$HOME")
    assert said(done.stdout) == expected, done.stderr
    assert done.returncode == 7
    assert f"rank 3 ({site.hosts[1]}, local rank 1" in done.stderr
    assert sorted((folder / "o u't").read_text().splitlines()) == expected
    files(folder / "my logs, %j", *expected)
    assert (folder / "hpc_launcher_hostlist.txt").read_text().split() == list(site.hosts[:2])
    site.nothing_is_left()


def test_a_home_folder_with_an_odd_name(lsf_cluster: Lsf, tmp_path: Path) -> None:
    """There lie the files that LSF's jobs need; the others' need none."""
    site = of_lsf(lsf_cluster)
    done = run(site, "-n", "1", "says.py", env={"XDG_CACHE_HOME": str(tmp_path / "it's a $home")})
    assert said(done.stdout) == says(site, 1, 1, None) or "XDG_CACHE_HOME" in done.stderr, done.stderr


REFUSED: list[tuple[list[str], str]] = [
    (["-q", "nowhere", "--bg", "-l", "d"], "nowhere"),
    (["-x", "--no-such-thing=1"], "-no-such-thing"),
]
RESERVATIONS = {"slurm": "Requested reservation is invalid", "flux": "--reservation r1: Flux has no reservations"}
"""The simulated LSF takes any."""


def test_what_cannot_be_had(site: Site, tmp_path: Path) -> None:
    """More nodes than there are: where the scheduler does not refuse, the wait is told, and Ctrl-C gives it up."""
    program = start(site, "-N", str(len(site.hosts) + 1), "-n", "1", "says.py")
    if site.scheduler == "flux":
        status, out, err = ended(program)
        assert (status, out) == (125, "")
        assert "unsatisfiable request" in err
        site.submit(tmp_path, 3, ["sleep", "600"], tmp_path / "sleep.txt")
        program = start(site, "-N", "1", "-n", "1", "says.py")
    reservation = RESERVATIONS.get(site.scheduler)
    for words, why in [*REFUSED, *([(["--reservation", "r1"], reservation)] if reservation else [])]:
        done = run(site, *words, "says.py")
        assert done.returncode in (2, 125), words
        assert done.stdout == ""
        assert why in done.stderr
        assert "Traceback" not in done.stderr
    assert program.stderr is not None
    told = program.stderr.readline()
    states = {"slurm": " is PENDING (Partition", "flux": " is SCHED", "lsf": " is PEND"}
    assert states[site.scheduler] in told, told
    assert len(site.jobs()) == (2 if site.scheduler == "flux" else 1)
    program.send_signal(signal.SIGINT)
    status, out, err = ended(program)
    assert (status, out) == (130, "")
    assert "no rank had started" in err
    site.end_all()
    site.nothing_is_left()


# --- how a run ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["Ctrl-C", "cancelled"])
def test_how_a_run_ends(site: Site, how: str) -> None:
    program = staying(site, 2)
    if how == "Ctrl-C":
        program.send_signal(signal.SIGINT)
    else:
        site.end_all()
    status, out, err = ended(program)
    assert status == (130 if how == "Ctrl-C" else 125), err
    if how == "Ctrl-C":
        assert said(out) == [f"bye {rank}" for rank in range(4)]
        assert "zlaunch: Ctrl-C: ending the ranks" in err
    else:
        what = {"slurm": "squeue", "flux": "flux jobs", "lsf": "bjobs"}[site.scheduler]
        assert f"; what became of it says: {what}" in err
    site.nothing_is_left()


@pytest.mark.parametrize("site", ["flux", "lsf", "coral"], indirect=True)  # Slurm takes its time, in another file
def test_a_node_that_is_lost(breakable: Site) -> None:
    lost = breakable.hosts[1]
    program = staying(breakable, 2, "--host-timeout", "1.5")
    breakable.cluster.bed.poweroff(lost)
    status, _, err = ended(program)
    assert status == 125
    assert lost in err
    breakable.nothing_is_left(lost)


def test_a_passed_time_limit(site: Site, tmp_path: Path) -> None:
    """Of a run from outside, and beside it of a batch job."""
    words = ["-N", "1", "-n", "1", "-t", "0.05"]
    program = start(site, *words, "stays.py")
    job = submit(site, *words, "-l", "d", "stays.py")
    status, out, err = ended(program)
    assert status == 124, err
    assert said(out) == ["bye 0", "here 0 "]
    assert "the time limit has passed" in err
    until(lambda: site.jobs() == [], "the end of the batch job")
    assert site.status(job) == 124
    assert "the time limit has passed" in (tmp_path / "d/err.log").read_text()
    site.nothing_is_left()


# --- inside of a job ------------------------------------------------------------------------------------------------

SERVED = {
    "slurm": ["-x", "--comment=a b, c", "-x", "--label"],
    "flux": ["-x", "--label-io"],
    "lsf": ["-x~-n"],
    "coral": ["-x", "--bind=rs", "MINE=too"],
}
"""Arguments of srun, flux exec, blaunch and jsrun, and what they say of others."""
WORDS = {
    "slurm": "srun: unrecognized option '--no-such-thing=1'",
    "flux": "flux-exec: error: unrecognized arguments: --no-such-thing",
    "lsf": "blaunch: illegal option -- --no-such-thing=1",
    "coral": "jsrun: error: unrecognized arguments: --no-such-thing",
}


def test_inside_of_a_job(site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    which = request.node.callspec.params["site"]
    one = ["-N", "1", "-n", "1"]
    aside = ["-q", "nowhere", "--account", "nobody", "--exclusive"]
    everything, few, refused, limited = inside(
        site,
        tmp_path,
        2,
        ["-n", "1", "--save-hostlist", "--env", f"MINE={LINES}", "says.py", LINES, ""],
        [*one, *aside, *SERVED[which], "-x", "MINE=yes", "says.py"],
        ["-x", "--no-such-thing=1", "-n", "1", "says.py"],
        [*one, "-t", "0.05", "stays.py"],
    )
    assert said(everything.out) == says(site, 2, 1, LINES, LINES, ""), everything.err
    assert (tmp_path / "hpc_launcher_hostlist.txt").read_text().split() == list(site.hosts[:2])
    # jsrun takes whichever host it likes for fewer than all of a job's.
    others = [says(replace(site, hosts=site.hosts[1:]), 1, 1, "yes")] if which == "coral" else []
    assert said(few.out) in [says(site, 1, 1, "yes"), *others], few.err
    assert "whose nodes are taken as they are; left aside: -q, --account, --exclusive\n" in few.err
    assert (refused.status, refused.out) == (125, "")
    assert WORDS[which] in refused.err
    assert limited.status == 124, limited.err
    assert said(limited.out) == ["bye 0", "here 0 "]
    site.nothing_is_left()


def test_names_that_slurm_has_shortened(slurm: Slurm) -> None:
    code = (
        "import os; from zlaunch.allocation import current; from zlaunch.backends import schedulers\n"
        "print(*current(schedulers.of('slurm'), os.environ).names)"
    )
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "r[1-2]n[01-03,7],login9,x1y[08-10]"}
    names = slurm.ask(sys.executable, "-c", code, env=ENV | job)
    racks = " ".join(f"r{rack}n{node}" for rack in (1, 2) for node in ("01", "02", "03", "7"))
    assert names == f"{racks} login9 x1y08 x1y09 x1y10"


# --- batch jobs -----------------------------------------------------------------------------------------------------


def test_a_batch_job(site: Site, tmp_path: Path) -> None:
    name = 'it\'s "odd" $x; #y\\ %j [1]'
    folder = tmp_path / "a 100% 'folder', $x"
    size = ["-N", "2", "-n", "1", "-t", "5"]
    own = ["-J", name, "-l", folder.name, "--setup", "export MINE='a  b'"]
    job = submit(site, *size, *own, "--env", f"ODD={LINES}", "stays.py", LINES, "$HOME", "")
    files(folder / "logs", *(f"here {rank} {ODD}" for rank in range(2)))
    assert site.shown(job) == (name if site.scheduler != "lsf" else name.replace("[1]", "_1_"), 5)
    (listed,) = json.loads(asks(site, "ps", "--json"))
    assert [listed[key] for key in ("job", "name", "nodes", "ranks_per_node", "over")] == [job, name, 2, 1, False]
    assert asks(site, "logs", job, "--rank", "1") == f"here 1 {LINES} $HOME  a  b"
    stopped = site.cluster.run([*ZLAUNCH, "stop", job], env=ENV)
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert f"job {job} has ended: " in stopped.stderr
    assert site.status(job) == 143
    assert asks(site, "ps", "--json") == "[]"
    site.nothing_is_left()
    if site.hosts[0] == "node1" and site.scheduler == "lsf":
        return  # bkill's SIGTERM ends blaunch, too, whose shell before each agent dies of it; ranks have no time then
    assert {"bye 0", "bye 1"} < set(said(asks(site, "logs", job)))
    assert "killing" not in (folder / "err.log").read_text()


def test_a_script_of_the_users(site: Site, tmp_path: Path) -> None:
    (tmp_path / "own.sh").write_text('#!/bin/sh\necho "$# $1" >own.txt\n')
    words = ["--batch-script", "own.sh", "-N", "2"]
    refused = run(site, *words, "an 'argument', $x\n2", "")
    if site.scheduler == "lsf":
        assert refused.returncode == 2
        assert "LSF reads its #BSUB lines on stdin, and then it takes no arguments" in refused.stderr
        assert site.jobs() == []
    else:
        until(lambda: site.jobs() == [], "the end of the job")
        assert (tmp_path / "own.txt").read_text() == "2 an 'argument', $x\n2\n"
    assert len(run(site, *words).stdout.split()) == 1
    until(lambda: site.jobs() == [], "the end of the job")
    assert (tmp_path / "own.txt").read_text() == "0 \n"


# --- the command lines of the reference -----------------------------------------------------------------------------

WANTS = ("-g", "-p", "--gpumem-at-least", "--gpus-per-proc", "--fraction-max-gpu-mem", "NCCL", "RCCL")
"""Of GPUs, which there are none here."""
OWN = ("--reservation", "--dependency", "--bg", "--scheduler", "mpi")
"""What other tests have."""
SCALED = [
    ["2" if name in ("-N", "-n") and int(word) > 2 else word for name, word in pairwise(["", *line.split()])]
    for line in LINES_OF_USERS
    if not set(line.split()) & {*WANTS, *OWN}
]
TURNS = ("slurm", "flux", "lsf", "coral")


def test_the_references_command_lines(site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """With two nodes at most and two ranks on each, every fourth on this scheduler; all at once, so they queue up."""
    runs = []
    for line in SCALED[TURNS.index(request.node.callspec.params["site"]) :: len(TURNS)]:
        words = ["normal" if word == "gpu_queue" else word for word in line]
        if site.scheduler != "lsf":
            words = ["batch" if word == "normal" else word for word in words]
        program = next(word for word in words if word.endswith(".py"))
        (tmp_path / program).write_text(SAYS)
        runs.append((words, words[words.index(program) + 1 :], start(site, *words)))
    for words, arguments, program in runs:
        status, out, err = ended(program)
        assert status == 0, (words, err)
        ranks = [ast.literal_eval(line) for line in said(out)]
        world = 2 * int(words[words.index("-N") + 1])
        if not {"--setup-only", "--dry-run"} & set(words):
            assert [(rank, size, rest) for rank, size, _, _, *rest in ranks] == [
                (rank, world, arguments) for rank in range(world)
            ], (words, out, err)
    site.nothing_is_left()
