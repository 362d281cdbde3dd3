"""The same histories on every scheduler: inside of a job, and from outside, where nodes are asked for."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sites
from bed.programs import until
from bed.slurm import Slurm
from sim.flux import Flux
from sim.lsf import Lsf
from sim.lsf_ways import Ways
from sites import Site

PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import far_steps, zlaunch
from zlaunch.model import AllocationRequest

launcher = zlaunch.Launcher(hostnames=sys.argv[2], workers_per_host=2, backend=None, preload=(), log_dir=None,
    grace_period=2, host_timeout=float(sys.argv[4]))
launcher.request = AllocationRequest(**json.loads(sys.argv[3]))
launcher.setup = os.environ.get("SETUP")
try:
    with launcher as cluster:
        print(json.dumps(cluster.run(far_steps.here).results), flush=True)
        assert set(cluster.run(far_steps.umask)) == {0o22}
        if "stay" in sys.argv:
            cluster.run(far_steps.stay)
except zlaunch.ZlaunchError as error:
    print(type(error).__name__, error)
"""
HERE = str(Path(__file__).parent)


def argv(hostnames: str, request: str = "{}", *more: str, silence: float = 4.5) -> list[str]:
    return [sys.executable, "-c", PROGRAM, HERE, hostnames, request, str(silence), *more]


def results(*hosts: str) -> str:
    world = 2 * len(hosts)
    parts = (f'"{h}": [["{h}", {2 * i}, {world}], ["{h}", {2 * i + 1}, {world}]]' for i, h in enumerate(hosts))
    return f"{{{', '.join(parts)}}}\n"


@pytest.fixture(autouse=True)
def _usual_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"lsf_cluster", "coral_cluster"} & set(request.fixturenames):
        request.getfixturevalue(name).use(**dataclasses.asdict(Ways()))


def staying(site: Site, request: str, silence: float = 4.5) -> subprocess.Popen[str]:
    """A program from outside whose ranks are there."""
    program = site.cluster.popen(
        argv(site.scheduler, request, "stay", silence=silence), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    there, nodes = 0, int(request.partition('"nodes": ')[2][0])
    assert program.stdout is not None
    while there < 2 * nodes:
        line = program.stdout.readline()
        assert line, program.communicate()
        there += "] here " in line
    return program


@pytest.mark.parametrize("hostnames", ["its name", "auto"])
def test_inside_of_a_job_its_nodes_are_the_hosts(site: Site, hostnames: str, tmp_path: Path) -> None:
    name = site.scheduler if hostnames == "its name" else hostnames
    done = site.inside(tmp_path, 2, argv(name))
    assert results(*site.hosts[:2]) in done.stdout, done.stderr
    few = site.inside(tmp_path, 2, argv(name, '{"nodes": 1}'))
    assert results(site.hosts[0]) in few.stdout, few.stderr
    many = site.inside(tmp_path, 1, argv(name, '{"nodes": 2}'))
    assert "LaunchError 2 nodes are wanted, and " in many.stdout
    site.nothing_is_left()


def test_in_a_batch_job(site: Site, tmp_path: Path) -> None:
    site.submit(tmp_path, 2, argv(site.scheduler), tmp_path / "out.txt")
    until(lambda: site.jobs() == [], "the end of the job")
    assert results(*site.hosts[:2]) in (tmp_path / "out.txt").read_text()
    site.nothing_is_left()


def test_from_outside_nodes_are_asked_for_and_given_back(site: Site, tmp_path: Path) -> None:
    setup = 'cat; test -n "$BASH"; # whatever people type; it ends in a comment'
    words = argv(site.scheduler, '{"nodes": 2, "name": "a name; with $words"}')
    done = site.cluster.run(words, env={"SETUP": setup})
    assert done.stdout == results(*site.hosts[:2]), done.stderr
    assert done.returncode == 0, done.stderr
    site.nothing_is_left()
    assert list((tmp_path / "cache").rglob("*")) in ([], [tmp_path / "cache" / "zlaunch"])  # nor any file


def test_nobody_need_ask_for_the_result(lsf_cluster: Lsf, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {HERE!r}); import far_steps, zlaunch\n"
        "one = zlaunch.Launcher(hostnames='lsf', workers_per_host=1, backend=None, preload=(), log_dir=None)\n"
        "run = one.submit(far_steps.here); print('submitted', flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code]
    program = lsf_cluster.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "submitted\n"
    sites.of_lsf(lsf_cluster).nothing_is_left()
    until(lambda: list((tmp_path / "cache" / "zlaunch").iterdir()) == [], "the job's files are removed")
    assert program.poll() is None
    assert program.communicate("", timeout=20)[1] == ""


def test_the_wait_is_told_and_can_be_given_up(site: Site) -> None:
    first = staying(site, f'{{"nodes": {len(site.hosts)}, "exclusive": true}}')
    program = site.cluster.popen(argv(site.scheduler, '{"nodes": 2}'), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stderr is not None
    told = program.stderr.readline()
    assert "'s job " in told
    assert any(word in told for word in (" is PENDING (", " is SCHED", " is PEND")), told
    program.send_signal(signal.SIGINT)
    program.wait(20)
    until(lambda: len(site.jobs()) == 1, "the other job is given up")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=20)
    site.nothing_is_left()


def test_what_is_refused_is_told_in_the_schedulers_words(site: Site) -> None:
    done = site.cluster.run(argv(site.scheduler, '{"queue": "nowhere"}'))
    assert done.stdout.startswith("LaunchError "), done.stdout
    assert " gave no nodes" in done.stdout
    assert "nowhere" in done.stdout


def test_what_is_wrong_on_all_nodes_is_told_once(slurm: Slurm) -> None:
    code = "import zlaunch\nzlaunch.Launcher(hostnames='slurm', python='/nowhere/python', log_dir=None).start()"
    done = slurm.run(["salloc", "-N3", sys.executable, "-c", code])
    assert "LaunchError: node1, node2, node3: " in done.stderr
    assert 0 < done.stderr.count("/nowhere/python: not found") <= 3, done.stderr  # each node's shell says it


@pytest.mark.parametrize("how", ["killed", "cancelled", "its command killed"])
def test_nothing_is_left_however_it_ends(breakable: Site, how: str) -> None:
    program = staying(breakable, '{"nodes": 2}')
    if how == "killed":
        os.kill(program.pid, signal.SIGKILL)
    elif how == "cancelled":
        breakable.end_all()
    else:
        for child in psutil.Process(program.pid).children():
            child.kill()
    rest, _ = program.communicate(timeout=30)
    if how != "killed":
        assert "AgentFailedError" in rest
        assert "zlaunch-job" not in rest  # nor anything else that it always says
        assert "Granted" not in rest
        assert re.search(
            r"^that was in \w+'s job \w+; what became of it says: (squeue|flux jobs|bjobs) ", rest, re.MULTILINE
        )
    breakable.nothing_is_left()


def test_a_lost_node_is_missed_by_us(breakable: Site) -> None:
    count = len(breakable.hosts)
    program = staying(breakable, f'{{"nodes": {count}}}', silence=2.0)
    lost = breakable.hosts[-1]
    breakable.cluster.bed.poweroff(lost)
    rest, _ = program.communicate(timeout=20)  # Slurm itself would take 30
    assert "AgentFailedError" in rest
    if breakable.scheduler == "slurm":
        assert f"AgentFailedError {lost}" in rest  # the others kill the rest of a job of which a node is lost
    breakable.nothing_is_left(lost)


LIMITED = """
import os, signal, sys, time
def last_words(*_):
    print("rank", os.environ["RANK"], "saves", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, last_words)
print("there", flush=True)
time.sleep(600)
"""


def test_a_job_that_is_about_to_end_lets_its_ranks_end_first(flux_cluster: Flux, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(LIMITED)
    words = [sys.executable, "-m", "zlaunch", "run", "-n", "1", "--preload", "", "prog.py"]
    env = {"PYTHONPATH": str(Path(HERE).parent)}
    done = flux_cluster.run(["flux", "alloc", "--time-limit=12s", "-N2", *words], env=env)
    said = sorted(line.partition("] ")[2] for line in done.stdout.splitlines()[-2:])
    assert said == ["rank 0 saves", "rank 1 saves"], done.stderr
    assert done.returncode == 124, done.stderr
    assert "prog.py ran longer than Flux's job " in done.stderr
    sites.of_flux(flux_cluster).nothing_is_left()


def test_what_a_job_of_slurms_has_left(slurm: Slurm) -> None:
    """Slurm counts in minutes, and kills up to half a minute late: too long for a test of the end itself."""
    code = (
        "import os, time; from zlaunch.allocation import allocate; from zlaunch.backends.scheduler import Launch\n"
        "from zlaunch.backends.schedulers import of; from zlaunch.model import AllocationRequest\n"
        "it = allocate(of('slurm'), AllocationRequest(), Launch('python'), os.environ, print)\n"
        "print(it.time_for(1.0), it.time_for(600.0), it.nodes.names)"
    )
    done = slurm.run(["salloc", "--time=1", "-N1", sys.executable, "-c", code])
    little, much, name = done.stdout.split()
    assert 30 < float(much) < float(little) <= 54, done.stderr  # a tenth of the minute is kept
    assert float(little) - float(much) < 1.0  # whatever the grace period is
    assert name == "('node1',)"
    without = slurm.run(["salloc", "-N1", sys.executable, "-c", code])
    assert without.stdout.split()[:2] == ["None", "None"], without.stderr


def test_an_agent_has_all_gpus_of_its_node(slurm: Slurm) -> None:
    """Also where each task of the job is to have one of them."""
    names = ("SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")
    code = (
        f"import sys; sys.path.insert(0, {HERE!r}); import far_steps, zlaunch\n"
        "one = zlaunch.Launcher(hostnames='slurm', workers_per_host=1, backend=None, preload=(), log_dir=None)\n"
        f"print(one.run(far_steps.environment, *{names!r}).rank(0))"
    )
    words = ["--ntasks-per-node=2", "--gpus-per-task=1", sys.executable, "-c", code]
    done = slurm.run(["salloc", "-N1", *words])
    assert done.stdout == f"{dict.fromkeys(names, '0,1')}\n", done.stderr
    uneven = slurm.run(["salloc", "-N2", "--gpus=3", sys.executable, "-c", code])
    assert "'CUDA_VISIBLE_DEVICES': '0" in uneven.stdout, uneven.stderr


def test_lsfs_warning_is_the_end_of_the_time(lsf_cluster: Lsf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells no time that is left, but sends SIGUSR2, and waits for ten minutes before it kills."""
    (tmp_path / "prog.py").write_text(LIMITED)
    words = [sys.executable, "-m", "zlaunch", "run", "--scheduler", "lsf", "-n", "1", "--preload", "", "prog.py"]
    script = sites.of_lsf(lsf_cluster).script(tmp_path, words)
    monkeypatch.setattr(lsf_cluster, "minute", 2.0)
    monkeypatch.setattr(lsf_cluster, "grace", 20.0)
    lsf_cluster.use(shell_words=False)  # else the shell that blaunch has put before an agent gets it, too, and dies
    size = ["-n", 2, "-R", "span[ptile=1]", "-W", 1]
    env = {"PYTHONPATH": str(Path(HERE).parent)}
    done = lsf_cluster.run(["bsub", "-I", *size], input=script.read_text(), env=env)  # as --bg does: no shell is left
    said = sorted(line.partition("] ")[2] for line in done.stdout.splitlines()[-2:])
    assert said == ["rank 0 saves", "rank 1 saves"], done.stderr
    assert done.returncode == 124, done.stderr
    assert done.stderr.count("the job's time limit has passed: ending the ranks") == 1


REQUEUED = """
import os, signal, sys, time
def last_words(*_):
    time.sleep(3)  # longer than ranks have whose supervisor is gone
    sys.exit(print("saved", flush=True))
signal.signal(signal.SIGTERM, last_words)
print("there", os.environ.get("SLURM_RESTART_COUNT"), flush=True)
time.sleep(0 if "SLURM_RESTART_COUNT" in os.environ else 600)
"""


def test_a_job_that_is_put_back_into_the_queue_begins_again(fresh_slurm: Slurm, tmp_path: Path) -> None:
    """As where another one takes its nodes: its ranks are told to end first."""
    slurm, out = fresh_slurm, tmp_path / "out" / "out.log"
    (tmp_path / "prog.py").write_text(REQUEUED)
    words = ["--scheduler", "slurm", "--bg", "-l", "out", "-N", "2", "-n", "1", "-x", "--requeue", "--preload", ""]
    env = {"PYTHONPATH": str(Path(HERE).parent)}
    job = int(slurm.ask(sys.executable, "-m", "zlaunch", "run", *words, "prog.py", env=env))
    until(lambda: out.exists() and out.read_text().count("there None") > 0, "the first run")
    slurm.ask("scontrol", "requeue", job)
    slurm.wait(job, "PENDING")
    revoked = int(time.time())
    until(lambda: out.read_text().count("saved") > 0, "the ranks' last words")
    slurm.ready()
    until(lambda: int(time.time()) > revoked + 1, "Slurm takes what it has revoked in the same second for the new one")
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # it would be held for two minutes
    assert slurm.wait(job, "COMPLETED", "FAILED") == "COMPLETED"
    assert out.read_text().count("there 1") > 0
    assert len(list((tmp_path / "logs").iterdir())) == 2
