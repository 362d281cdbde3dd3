"""Commands of schedulers that are missing, hang, or answer something else, as ``zlaunch run`` takes them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from zlaunch import asking
from zlaunch.cli import batch
from zlaunch.cli.main import main

ROOT = Path(__file__).parent.parent
RUN = ["run", "--preload", "", "-n", "1"]
ASKS = {"slurm": "salloc", "flux": "flux", "lsf": "bsub"}
SUBMITS = {"slurm": "sbatch", "flux": "flux", "lsf": "bsub"}
IMPATIENT = (
    "import sys, zlaunch.asking as a; a.ASK_EVERY = a.BIRTH_PATIENCE = 0.1; from zlaunch.cli.main import main; "
    "sys.exit(main())"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nothing is but a shell."""
    (tmp_path / "bin").mkdir()
    for name in ("sh", "sleep"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "prog.py").write_text("")
    return tmp_path


def program(folder: Path, name: str, text: str) -> None:
    """A command of the scheduler's."""
    file = folder / "bin" / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


@pytest.mark.parametrize("scheduler", ASKS)
def test_missing(scheduler: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--bg", "-l", "d"]):
        assert main([*RUN, "--scheduler", scheduler, *words, "prog.py"]) == 125
        printed = capsys.readouterr()
        assert printed.out == ""
        name = (SUBMITS if words else ASKS)[scheduler]
        assert re.search(rf"{name} could not be started: No such file|{name}: not found", printed.err)


@pytest.mark.parametrize(
    ("scheduler", "text", "why"),
    [
        ("slurm", "echo hello", "Slurm gave no nodes (salloc ended with status 0):\nhello"),
        ("slurm", "echo zlaunch-nodes 12", "Slurm has granted job 12, and named no nodes"),
        ("slurm", "echo zlaunch-nodes 12 n1; echo gone >&2", "before its agent had connected; Slurm said:\ngone"),
        ("flux", "echo hello", "Flux gave no nodes"),
        ("flux", "exec kill -9 $$", "Flux gave no nodes"),
        ("lsf", "echo 'Request aborted by esub.' >&2; exit 255", "status 255):\nRequest aborted by esub."),
        ("lsf", "printf '\\377\\000'", "LSF gave no nodes"),
    ],
)
def test_something_else_from_outside(
    folder: Path, scheduler: str, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program(folder, ASKS[scheduler], text)
    assert main([*RUN, "--scheduler", scheduler, "prog.py"]) == 125
    printed = capsys.readouterr()
    assert printed.out == ""
    assert why in printed.err


@pytest.mark.parametrize(
    ("scheduler", "text", "why"),
    [
        ("slurm", "echo Submitted batch job x", "did not answer with a job's id: 'Submitted batch job x'"),
        ("slurm", "", "did not answer with a job's id: ''"),
        ("slurm", "echo 12; echo no >&2; exit 3", "(sbatch ended with status 3):\nno"),
        ("flux", "echo an error: here", "did not answer with a job's id: 'an error: here'"),
        ("lsf", "echo 'Job is submitted'", "did not answer with a job's id: 'Job is submitted'"),
        ("lsf", "printf '\\377'", "did not answer with a job's id: "),
        *((name, "exec sleep 60", f"{SUBMITS[name]} has not answered for 0.2 s") for name in SUBMITS),
    ],
)
def test_something_else_to_a_batch_job(
    folder: Path,
    scheduler: str,
    text: str,
    why: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "PATIENCE", 0.2)
    program(folder, SUBMITS[scheduler], text)
    assert main([*RUN, "--scheduler", scheduler, "--bg", "-l", "d", "prog.py"]) == 125
    printed = capsys.readouterr()
    assert printed.out == ""
    assert why in printed.err


@pytest.mark.parametrize(
    ("scheduler", "text"),
    [
        ("slurm", "exec sleep 60"),
        ("flux", "exec sleep 60"),
        ("lsf", "exec sleep 60"),
        ("lsf", "echo 'LSF is down. Please wait ...' >&2; exec sleep 60"),
    ],
)
def test_a_command_that_hangs(folder: Path, scheduler: str, text: str) -> None:
    """Nobody knows how long it may: but that we wait is told, and Ctrl-C ends it."""
    program(folder, ASKS[scheduler], text)
    words = [sys.executable, "-c", IMPATIENT, *RUN, "--scheduler", scheduler, "prog.py"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        told = running.stderr.readline()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    assert (running.returncode, out) == (130, "")
    assert "Ctrl-C: no rank had started" in err
    assert " has named no job yet" in told
    assert ("LSF is down" in told) == ("down" in text)


def test_who_is_impatient_leaves_nothing(folder: Path) -> None:
    """A second Ctrl-C, while the scheduler takes its time to cancel the job that we wait for."""
    os.mkfifo(folder / "cancelling")
    program(folder, "salloc", "echo 'salloc: Pending job allocation 12' >&2; echo $$ >waiting; exec sleep 60")
    program(folder, "squeue", "echo 'PENDING|Priority'")
    program(folder, "scancel", "echo $$ >cancelling; exec sleep 1")
    words = [sys.executable, "-c", IMPATIENT, *RUN, "--scheduler", "slurm", "prog.py"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert "Slurm's job 12 is PENDING (Priority)" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        pids = [int((folder / "waiting").read_text()), int((folder / "cancelling").read_text())]
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=20)
    assert running.returncode == 130
    left = [pid for pid in pids if psutil.pid_exists(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.mark.parametrize("scheduler", ASKS)
@pytest.mark.parametrize(
    "words", [["--dependency", "12;13"], ["--dependency", "afterok:"], ["-J", "two\nlines"], ["-q", ""]]
)
def test_refused_before_anybody_is_asked(scheduler: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for submits in ([], ["--bg"]):
        assert main([*RUN, "--scheduler", scheduler, *words, *submits, "prog.py"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"zlaunch: error: {words[0]}")


def test_a_question_about_a_job_that_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """squeue answers nobody, or nonsense: the job comes nevertheless, and is given back."""
    program(folder, "salloc", "echo 'salloc: Pending job allocation 12' >&2; sleep 0.6; echo hello")
    program(folder, "squeue", "exec sleep 60")
    monkeypatch.setattr(asking, "ASK_EVERY", 0.1)
    monkeypatch.setattr(asking.call, "__defaults__", (0.2,))
    assert main([*RUN, "--scheduler", "slurm", "prog.py"]) == 125
    assert "Slurm gave no nodes (salloc ended with status 0):\nhello" in capsys.readouterr().err
    program(folder, "squeue", "echo '???'")
    assert main([*RUN, "--scheduler", "slurm", "prog.py"]) == 125
    assert "Slurm's job 12 is ???" in capsys.readouterr().err
