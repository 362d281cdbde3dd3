"""``zlaunch ps``, ``logs`` and ``stop``: what becomes of batch jobs of a real Slurm, seen from the login node."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bed.programs import until
from bed.slurm import Slurm
from sites import Site

from zlaunch.cli.logs import PIECE, Tail
from zlaunch.cli.main import main
from zlaunch.cli.run import ECHO
from zlaunch.registry import submitted

ROOT = Path(__file__).parent.parent
ZLAUNCH = [sys.executable, "-m", "zlaunch"]
PROGRAM = """
import os, pathlib, signal, sys, time
def end(*_):
    print("asked to end", flush=True)
    if "deaf" not in sys.argv: sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("rank", os.environ["RANK"], flush=True)
print("error", file=sys.stderr)
while not pathlib.Path("go").exists(): time.sleep(0.05)
sys.stdout.write("no end of line")
"""


class User:
    """Somebody on the login node."""

    def __init__(self, slurm: Slurm, home: Path) -> None:
        self.slurm, self.home = slurm, home
        self.env = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(home / "state"), "ZLAUNCH_LOG_DIR": "logs"}
        (home / "prog.py").write_text(PROGRAM)

    def types(self, *words: str | Path | int, **env: str) -> subprocess.CompletedProcess[str]:
        return self.slurm.run([*ZLAUNCH, *words], env={**self.env, **env})

    @contextmanager
    def starts(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.slurm.popen([*ZLAUNCH, *words], env=self.env, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    def submits(self, *words: str, command: Sequence[str] = ("prog.py",)) -> str:
        done = self.types("run", "--preload", "", "--bg", *words, *command)
        assert done.stdout.strip().isdecimal(), done.stderr
        return done.stdout.strip()

    def jobs(self, *words: str) -> dict[str, dict[str, Any]]:
        done = self.types("ps", "--json", *words)
        assert done.returncode == 0, done.stderr
        return {job["job"]: job for job in json.loads(done.stdout)}

    def waits(self, folder: str, *texts: str) -> None:
        """Until the job's output has these texts."""
        path = self.home / folder / "out.log"
        until(lambda: path.exists() and all(text in path.read_text() for text in texts), f"{texts} in {path}")


@pytest.fixture
def user(slurm: Slurm, tmp_path: Path) -> Iterator[User]:
    yield User(slurm, tmp_path)
    slurm.ask("scancel", f"--user={os.getuid()}")  # what a test that failed has left shall not fail the next


def nothing_is_left(slurm: Slurm) -> None:
    until(lambda: slurm.ask("squeue", "--noheader") == "", "the queue to be empty")
    until(lambda: not any(slurm.bed.processes(host) for host in slurm.bed.hosts), "the hosts to be empty")


def exit_code(slurm: Slurm, job: str) -> str:
    found = re.search(r"\bExitCode=(\S+)", slurm.ask("scontrol", "show", "job", job, "-o"))
    return found[1] if found else ""


def test_a_job_from_its_submission_to_its_end(user: User) -> None:
    job = user.submits("-N", "2", "-n", "2", "-J", "a trial", "-l", "a folder")
    with user.starts("logs", "-f", job) as following:
        user.waits("a folder", "rank 0", "rank 3")
        table = user.types("ps").stdout.splitlines()
        assert table[0].split() == ["RUN", "WHERE", "STATE", "HOSTS", "x", "RANKS", "ELAPSED", "NAME"]
        (row,) = [re.split(" {2,}", line) for line in table[1:]]  # the job and its run are one
        assert [*row[:4], row[5]] == [job, "slurm", "RUNNING", "2 x 2", "a trial"]
        said = user.jobs()[job]
        assert said["folder"] == str(user.home / "a folder")
        assert (said["state"], said["over"], said["nodes"], said["ranks_per_node"]) == ("RUNNING", False, 2, 2)
        assert said["argv"][:2] == ["zlaunch", "run"]
        assert (said["cluster"], said["submitted_on"]) == ("bed", os.uname().nodename)
        for words in (["--rank", "3"], ["--rank=node2:1"]):
            until(lambda words=words: "rank 3\n" in user.types("logs", job, *words).stdout, "its file")  # type: ignore[misc]
        assert user.types("logs", job, "--rank", "3").stdout.splitlines() == ["rank 3", "error"]
        wrong = user.types("logs", job, "--rank", "4")
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert "no rank 4: there are 4" in wrong.stderr
        (user.home / "go").touch()
        out, err = following.communicate(timeout=30)
    assert following.returncode == 0
    assert out == (user.home / "a folder/out.log").read_text()
    assert "no end of line" in out
    assert "error" in err
    assert f"zlaunch: job {job} has ended: COMPLETED" in err
    assert job not in user.jobs()
    asked_no_more = user.types("ps", "-a", PATH="/nowhere")
    assert " COMPLETED " in asked_no_more.stdout
    assert asked_no_more.stderr == ""
    with (user.home / "a folder/out.log").open("a") as file:
        file.write("no end")
    for words in ([], ["-f"]):
        later = user.types("logs", job, *words)
        assert (later.stdout, later.returncode) == (f"{out}no end", 0)
    assert "-a lists those that have ended" in user.types("ps").stderr
    nothing_is_left(user.slurm)


def test_a_running_job_is_stopped_by_its_ranks_first(user: User) -> None:
    job = user.submits("-N", "2", "-n", "1", "-l", "d")
    user.waits("d", "rank 0", "rank 1")
    stopped = user.types("stop", job)
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert f"job {job} has ended: FAILED (NonZeroExitCode)" in stopped.stderr
    assert "asked to end" in user.types("logs", job).stdout
    assert exit_code(user.slurm, job) == "143:0"
    again = user.types("stop", job)
    assert again.returncode == 0
    assert "has ended already: FAILED" in again.stderr
    nothing_is_left(user.slurm)


def test_a_jobs_run_is_watched_from_the_login_node(user: User) -> None:
    job = user.submits("-N", "2", "-n", "1", "-l", "d")
    user.waits("d", "rank 0", "rank 1")
    until(lambda: user.jobs()[job]["pid"] is not None, "the run to be written down")
    said = user.jobs()[job]
    assert (said["hostname"], said["hosts"]) == ("node1", [["node1", 1], ["node2", 1]])
    with user.starts("attach", job) as one, user.starts("attach", said["run"], "--ranks", "1") as other:
        assert one.stdout is not None
        assert other.stdout is not None
        assert {one.stdout.readline() for _ in range(2)} == {"[rank 0] rank 0\n", "[rank 1] rank 1\n"}
        assert other.stdout.readline() == "[rank 1] rank 1\n"
        stopped = user.types("stop", job)
        assert (stopped.returncode, stopped.stdout) == (0, "")
        assert "asked to end" in one.communicate(timeout=30)[0]
        other.communicate(timeout=30)
        assert (one.returncode, other.returncode) == (130, 130)
    over = user.jobs("-a")[job]
    assert (over["over"], over["pid"]) == (True, None)
    assert user.types("attach", job).returncode == 2
    nothing_is_left(user.slurm)


@pytest.mark.parametrize("known", [True, False], ids=["known", "forgotten"])
def test_of_a_jobs_run_the_schedulers_word_counts(user: User, known: bool) -> None:
    job = user.submits("-N", "1", "-n", "1", "-l", "d")
    user.waits("d", "rank 0")
    until(lambda: user.jobs()[job]["pid"] is not None, "the run to be written down")
    folder = user.home / "state/zlaunch/runs"
    if not known:
        next(folder.glob("job-*")).unlink()
    row = user.jobs()[job]
    assert (row["state"], row["scheduler"]) == ("RUNNING" if known else "running", "slurm")
    user.slurm.ask("scancel", "--full", "--signal=KILL", job)  # nobody is left who could tidy up
    until(lambda: user.slurm.state(int(job)) not in ("RUNNING", "COMPLETING"), "the end of the job")
    assert user.jobs() == {}
    assert not list(folder.glob("run-*"))
    nothing_is_left(user.slurm)


def test_what_does_not_end_in_time_is_ended_by_slurm(user: User) -> None:
    job = user.submits("-N", "1", "-n", "1", "-l", "d", "--grace", "50", command=["prog.py", "deaf"])
    user.waits("d", "rank 0")
    began = time.monotonic()
    stopped = user.types("stop", job, "--grace", "0.5")
    assert stopped.returncode == 0, stopped.stderr
    assert "SIGKILL after 50 s" in stopped.stderr
    assert f"job {job} is RUNNING: Slurm ends it" in stopped.stderr
    assert f"job {job} has ended: " in stopped.stderr
    assert time.monotonic() - began < 20
    nothing_is_left(user.slurm)


def test_who_stops_waiting_has_stopped_the_job_and_may_say_so_again(user: User) -> None:
    job = user.submits("-N", "1", "-n", "1", "-l", "d", command=["prog.py", "deaf"])
    user.waits("d", "rank 0")
    with user.starts("stop", job) as stopping:
        user.waits("d", "asked to end")
        soon = time.monotonic() + ECHO
        stopping.send_signal(signal.SIGINT)
        assert stopping.wait(10) == 130
        assert stopping.stderr is not None
        assert "nobody waits for it now" in stopping.stderr.read()
    until(lambda: time.monotonic() > soon, "the end of what would pass for an echo")
    again = user.types("stop", job)  # before the 30 s are over: as a second Ctrl-C, it kills
    assert f"job {job} has ended: FAILED" in again.stderr
    assert exit_code(user.slurm, job) == "143:0"
    nothing_is_left(user.slurm)


def test_a_job_in_the_queue(user: User) -> None:
    job = user.submits("-N", "1", "-x", "--hold", "-l", "d")
    assert "PENDING (JobHeldUser)" in user.types("ps").stdout
    for words in ([], ["--rank", "0"]):
        nothing = user.types("logs", job, *words)
        assert (nothing.returncode, nothing.stdout) == (0, "")
        assert f"yet; job {job} is PENDING (JobHeldUser)" in nothing.stderr
    with user.starts("logs", "-f", job) as following:
        assert following.stderr is not None
        assert "is PENDING" in following.stderr.readline()
        assert following.stdout is not None
        following.stdout.close()  # nobody reads any more, and nothing comes that would show it
        assert following.wait(10) == 141
    stopped = user.types("stop", job)
    assert stopped.returncode == 0
    assert f"job {job} has ended: CANCELLED" in stopped.stderr
    ended = user.types("logs", job)
    assert ended.returncode == 1
    assert f"still below {user.home / 'd'}; job {job} has ended: CANCELLED" in ended.stderr
    nothing_is_left(user.slurm)


def test_a_requeued_job_has_not_ended(user: User) -> None:
    job = user.submits("-N", "1", "-n", "1", "-x", "--requeue", "-l", "d", command=["true"])
    assert user.slurm.wait(int(job), "COMPLETED") == "COMPLETED"
    assert user.jobs("-a")[job]["state"] == "COMPLETED"
    user.slurm.ask("scontrol", "requeuehold", job)
    assert user.jobs()[job]["over"] is False
    (file,) = (user.home / "state/zlaunch/runs").glob("job-*")
    file.write_text(json.dumps({**json.loads(file.read_text()), "ended": 5.0, "word": "COMPLETED"}))
    assert job not in user.jobs()  # that was long ago, and nobody asks any more
    stopped = user.types("stop", job)
    assert f"job {job} is " in stopped.stderr
    assert f"job {job} has ended: CANCELLED" in stopped.stderr, stopped.stderr
    assert user.slurm.state(int(job)) == "CANCELLED"
    assert user.jobs("-a")[job]["state"] == "CANCELLED"
    nothing_is_left(user.slurm)


def test_a_job_that_its_script_has_sent_elsewhere(user: User) -> None:
    """A second cluster is a long story: this sbatch says of one job that it has taken it there."""
    fake = user.home / "bin/sbatch"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho '12;other'\n")
    fake.chmod(0o755)
    (user.home / "own.sh").write_text("#!/bin/sh\n#SBATCH -M other\n")
    path = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    assert user.types("run", "--scheduler", "slurm", "--batch-script", "own.sh", **path).stdout == "12\n"
    stopped = user.types("stop", "12")
    assert stopped.returncode == 125
    assert "job 12 is of Slurm's cluster other, and this one is bed" in stopped.stderr


def test_variables_for_a_script_of_the_users(site: Site, tmp_path: Path) -> None:
    (tmp_path / "own.sh").write_text('#!/bin/sh\nprintf "%s" "$A|$B" >own.txt\n')
    value = "it's, 'a'\n$HOME"
    words = ["--scheduler", site.scheduler, "--batch-script", "own.sh", "-N", "1", "--env", f"A={value}", "-x", "B=2"]
    site.cluster.ask(*ZLAUNCH, "run", *words, env={"PYTHONPATH": str(ROOT)})
    until(lambda: site.jobs() == [], "the end of the job")
    assert (tmp_path / "own.txt").read_text() == f"{value}|2"


def test_jobs_that_zlaunch_has_not_written(user: User) -> None:
    theirs = str(user.slurm.submit("--hold", "--wrap", "true"))
    refused = user.types("stop", theirs)
    assert refused.returncode == 2
    assert "with --scheduler any job of yours is stopped" in refused.stderr
    assert user.slurm.state(int(theirs)) == "PENDING"
    assert user.types("stop", theirs, "--scheduler", "SlurmScheduler").returncode == 0
    assert user.slurm.state(int(theirs)) == "CANCELLED"
    assert user.types("stop", "987654", "--scheduler", "slurm").returncode == 2
    elsewhere = user.submits("-x", "--hold", "-x", "--output=o.txt")
    assert user.types("logs", elsewhere).returncode == 2
    assert user.types("stop", elsewhere).returncode == 0
    (user.home / "own.sh").write_text("#!/bin/sh\nexec sleep 100\n")
    own = user.types("run", "--batch-script", "own.sh", "-J", "mine").stdout.strip()
    assert user.slurm.wait(int(own), "RUNNING") == "RUNNING"
    assert user.jobs()[own]["name"] == "mine"
    output = user.types("logs", own)
    assert output.returncode == 2
    assert f"where Slurm puts it by itself: as a rule in a file in {user.home}" in output.stderr
    assert user.types("stop", own).returncode == 0
    nothing_is_left(user.slurm)


def test_a_scheduler_that_does_not_answer(user: User) -> None:
    job = user.submits("-N", "1", "-x", "--hold", "-l", "d")
    fake = user.home / "bin/squeue"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'Unable to contact slurm controller (connect failure)' >&2; exit 1\n")
    fake.chmod(0o755)
    for env, why in (
        ({"PATH": f"{fake.parent}:{os.environ['PATH']}"}, "Unable to contact slurm controller"),
        ({"PATH": "/nowhere"}, "squeue could not be started"),
        ({"SLURM_CLUSTER_NAME": "another"}, "of Slurm's cluster bed, and this one is another"),
    ):
        done = user.types("ps", **env)
        assert done.returncode == 0
        assert " unreachable " in done.stdout
        assert why in done.stderr
        assert "Traceback" not in done.stderr
        assert user.types("stop", job, **env).returncode == 125
    assert user.jobs()[job]["state"] == "PENDING"
    assert user.types("stop", job).returncode == 0


def test_a_registry_that_cannot_be_written_costs_no_submission(user: User) -> None:
    user.env["XDG_STATE_HOME"] = "/proc/1/nowhere"
    done = user.types("run", "--bg", "-N", "1", "-x", "--hold", "-l", "d", "prog.py")
    assert done.returncode == 0
    job = done.stdout.strip()
    assert done.stderr.count(f"zlaunch ps will not know of job {job}: /proc/1/nowhere") == 1
    assert "Traceback" not in done.stderr
    assert user.types("ps").returncode == 0
    user.env["XDG_STATE_HOME"] = "/dev/null"
    for words in (["ps"], ["logs", job], ["stop", job]):
        done = user.types(*words)
        assert done.returncode == 125
        assert "Not a directory" in done.stderr
        assert "Traceback" not in done.stderr
    user.slurm.ask("scancel", job)


def remembered(**changes: object) -> None:
    """A job that has ended long ago."""
    there: dict[str, Any] = {"cluster": "", "name": "n", "folder": "/f", "argv": ("zlaunch",), "hostname": "h"}
    there |= {"out": None, "err": None, "log_dir": None, "nodes": 1, "ranks": 1, "grace": 1.0, "own": False}
    there |= {"scheduler": "slurm", "job": "1", "submitted": 1.0, "ended": 5.0, "word": "COMPLETED"}
    Path(submitted.folder()).mkdir(0o700, parents=True, exist_ok=True)
    submitted._write(submitted.folder(), submitted.BatchJob(**{**there, **changes}))


def test_a_job_of_an_unknown_scheduler_is_its_own_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    remembered()
    remembered(scheduler="pbs", job="2", submitted=0.5, ended=0.0)
    assert main(["ps", "-a"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[:3] for line in printed.out.splitlines()[1:]] == [
        ["2", "pbs", "unreachable"],
        ["1", "slurm", "COMPLETED"],
    ]
    assert "no jobs of 'pbs' are known to zlaunch" in printed.err
    remembered(submitted=1e300)
    assert main(["ps", "-a", "--json"]) == 0
    printed = capsys.readouterr()
    assert [job["job"] for job in json.loads(printed.out)] == ["2"]
    assert "left aside" in printed.err


def test_a_job_that_another_scheduler_of_this_name_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bjobs = tmp_path / "bjobs"
    bjobs.write_text("#!/bin/sh\nfor job; do :; done; [ $job = 2 ] && echo RUN^- || echo Job is not found >&2\n")
    bjobs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for number in (1, 2):
        remembered(scheduler="lsf", job=str(number), submitted=number, ended=0.0)
    assert main(["ps"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[2] for line in printed.out.splitlines()[1:]] == ["unreachable", "RUN"]
    assert "job 1 is not known to LSF here; it was submitted on h" in printed.err


def test_nothing_that_is_remembered_does_anything_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "ours")
    remembered(word="COM\x1b[31mX", why="\x9b2J", folder="/\x1b")
    remembered(job="2", cluster="th\x1beirs", ended=0.0, folder="/\x1b")
    for words in (["stop", "1"], ["ps", "-a"], ["logs", "1"], ["stop", "2"]):
        main(words)
    printed = capsys.readouterr()
    assert "has ended already: COM?[31mX (?2J)" in printed.err
    assert "cluster th?eirs" in printed.err
    assert not re.search(r"[\x1b\x9b]", printed.out + printed.err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ps", "--al"], "did you mean --all?"),
        (["ps", "12"], "'12' is too much"),
        (["ps", "--json=x"], "there is no --json=x"),
        (["logs"], "which run?"),
        (["stop", ""], "which run?"),
        (["logs", "12"], "zlaunch ps -a lists"),
        (["logs", "12", "--rank"], "--rank needs a value"),
        (["logs", "12", "13"], "'13' is too much"),
        (["stop", "12", "--grace", "-1"], "expected seconds, not '-1'"),
        (["stop", "12", "--grace=nan"], "expected seconds, not 'nan'"),
        (["stop", "-1", "--scheduler", "slurm"], "there is no -1"),
        (["stop", "1 2", "--scheduler", "slurm"], "no run or job 1 2 is known"),
        (["stop", "12", "--scheduler", "at"], "no jobs of 'at'"),
    ],
)
def test_a_wrong_command_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err


def test_a_file_that_is_followed_may_come_late_be_cut_off_and_be_another_one(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    path: list[Path | None] = [None]
    to = io.BytesIO()
    tail = Tail(lambda: str(path[0]) if path[0] else None, to, whole_lines=True)

    def new(*, last: bool = False) -> bytes:
        to.seek(0)
        to.truncate()
        tail.copy(last=last)
        return to.getvalue()

    assert new() == b""
    path[0] = files[0]
    assert new() == b""
    assert not tail.found
    files[0].write_bytes(b"one\ntw")
    assert new() == b"one\n"
    files[0].write_bytes(b"one\ntwo\n" + b"x" * (3 * PIECE))
    assert new() == b"two\n"
    assert new() == b""
    files[0].write_bytes(b"anew\n")
    assert new() == b"anew\n"
    files[1].write_bytes(b"the second run\nends")
    path[0] = files[1]
    assert new() == b"the second run\n"
    assert new(last=True) == b"ends"
    assert tail.found


@pytest.mark.parametrize("name", ["ps", "logs", "stop"])
def test_the_help_is_light(name: str) -> None:
    code = (
        f"import sys; from zlaunch.cli.main import main; main([{name!r}, '--help']);"
        "print({'torch', 'zmq', 'rich', 'msgspec', 'argparse', 'dataclasses', 'subprocess'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.stdout.startswith(f"usage: zlaunch {name}"), done.stderr
    assert done.stdout.endswith("set()\n")
    assert max(map(len, done.stdout.splitlines())) <= 80
