"""The registry of jobs: files that many hosts share, and that anything may have happened to."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from zlaunch.registry import submitted
from zlaunch.registry.submitted import BatchJob

JOB = BatchJob(
    scheduler="slurm",
    cluster="ours",
    job="12",
    name="it's \udcff\n",
    folder="/a folder/\udcfe",
    out="/a folder/out.log",
    err=None,
    log_dir=None,
    nodes=2,
    ranks="gpu",
    grace=30,
    own=False,
    argv=("zlaunch", "run", "\udcff"),
    submitted=1.5,
    hostname="login1",
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/zlaunch/runs"


def but(**changes: object) -> BatchJob:
    return msgspec.structs.replace(JOB, **changes)


def numbers() -> list[str]:
    return [job.job for job in submitted.look().jobs]


def test_what_is_remembered_is_only_for_its_owner(place: Path) -> None:
    assert submitted.look() == ((), ())
    before = os.umask(0)
    try:
        submitted.add(JOB)
    finally:
        os.umask(before)
    assert submitted.look() == ((JOB,), ())
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in place.iterdir()] == [0o600]
    place.chmod(0o777)
    submitted.add(but(job="13", cluster="../..", submitted=0.5))
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert numbers() == ["13", "12"]  # as they were submitted
    assert len(list(place.iterdir())) == 2


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "a/relative/one"):  # the latter is to be ignored
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert submitted.folder() == str(tmp_path / ".local/state/zlaunch/runs")


def test_what_is_broken_or_not_ours_is_left_aside(place: Path) -> None:
    submitted.add(JOB)
    (good,) = place.iterdir()
    for name, text in {
        "job-empty.json": b"",
        "job-half.json": good.read_bytes()[:100],
        "job-deep.json": b"[" * 100_000,
        "job-other.json": b'{"job": 12}',
        "job-binary.json": bytes(range(256)),
        "run-of-another-kind.json": b"{}",
    }.items():
        (place / name).write_bytes(text)
    os.mkfifo(place / "job-fifo.json")
    (place / "job-link.json").symlink_to(good)
    (place / "job-folder.json").mkdir()
    odd = {"empty", "half", "deep", "other", "binary", "fifo", "link", "folder"}
    if os.geteuid() == 0:
        (place / "job-foreign.json").write_bytes(good.read_bytes())
        os.chown(place / "job-foreign.json", 12345, -1)
        odd.add("foreign")
    found = submitted.look()
    assert found.jobs == (JOB,)
    assert {Path(path).name for path in found.odd} == {f"job-{name}.json" for name in odd}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_used(place: Path) -> None:
    submitted.add(JOB)
    os.chown(place, 12345, -1)
    for use in (submitted.look, lambda: submitted.add(JOB)):
        with pytest.raises(PermissionError, match="belongs to another user"):
            use()
    submitted.began("slurm", "12", "r", [("a", 1)], None)


def test_a_full_disk_leaves_what_was_there(place: Path) -> None:
    submitted.add(JOB)
    code = (
        "import msgspec, sys; from zlaunch.registry import submitted; (job,) = submitted.look().jobs\n"
        "submitted.end(job, 'FAILED', ''); submitted.began('slurm', '12', 'r', [], None)\n"
        "try: submitted.add(job)\nexcept OSError as error: print(error.strerror)"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], stdout=subprocess.PIPE, text=True, timeout=30, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )  # fmt: skip
    assert done.stdout == "File too large\n"
    assert submitted.look().jobs == (JOB,)
    assert len(list(place.iterdir())) == 1


def test_whoever_reads_while_others_write_finds_whole_entries() -> None:
    submitted.add(JOB)
    code = (
        "import msgspec, sys; from zlaunch.registry import submitted; (job,) = submitted.look().jobs\n"
        "for n in range(300): submitted.add(msgspec.structs.replace(job, argv=('x' * n * 99,)))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        found = submitted.look()
        assert not found.odd
        assert len(found.jobs) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(os.listdir(submitted.folder())) == 1


def test_the_run_itself_says_where_its_ranks_are() -> None:
    others = [but(scheduler="lsf"), but(cluster="theirs", ended=time.time())]
    for job in (JOB, *others):
        submitted.add(job)
    submitted.began("slurm", "12", "abc", [("node1", 2), ("node2", 2)], "/logs")
    changed = but(run="abc", hosts=(("node1", 2), ("node2", 2)), log_dir="/logs")
    assert sorted(submitted.look().jobs, key=repr) == sorted([changed, *others], key=repr)
    submitted.began("slurm", "99", "abc", [], None)  # of a job that nobody knows
    assert len(submitted.look().jobs) == 3
    for number in ("f1", "f2", "f3"):
        submitted.add(but(scheduler="flux", job=number, log_dir="/logs/f1" if number == "f1" else "/logs"))
    submitted.began("flux", "local:///run/flux/local", "xyz", [("node1", 1)], "/logs/f1")
    submitted.began("flux", "local:///run/flux/local", "xyz", [("node1", 1)], None)
    assert [job.job for job in submitted.look().jobs if job.run == "xyz"] == ["f1"]


def test_a_requeued_job_lives_again() -> None:
    submitted.add(JOB)
    before = submitted.end(JOB, "PREEMPTED", "why")
    submitted.began("slurm", "12", "second", [("node3", 1)], "/logs")
    (known,) = submitted.look().jobs
    assert known == but(run="second", hosts=(("node3", 1),), log_dir="/logs")
    over = submitted.end(before, "COMPLETED", "")  # by somebody who has looked before that
    assert over.hosts == known.hosts
    assert submitted.revive(before) == known
    assert submitted.look().jobs == (known,)


@pytest.mark.parametrize("change", [{"submitted": 1e300}, {"submitted": float("nan")}, {"grace": float("inf")}])
def test_times_that_are_none(change: dict[str, float]) -> None:
    submitted.add(but(**change))
    found = submitted.look()
    assert found.jobs == ()
    assert len(found.odd) == 1


def test_an_id_has_one_spelling() -> None:
    assert submitted.same_id("ƒ2ADWLSR5") == submitted.same_id("f2ADWLSR5") == "f2ADWLSR5"


def test_who_is_forgotten(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitted, "ENDED_LIMIT", 2)
    monkeypatch.setattr(submitted, "LIMIT", 4)
    now = time.time()
    for number in range(3):
        submitted.add(but(job=f"ended-{number}", submitted=number, ended=now - 100 + number))
    assert numbers() == ["ended-1", "ended-2"]
    submitted.add(but(job="old", submitted=9, ended=now - 8 * 24 * 3600))
    assert numbers() == ["ended-1", "ended-2"]
    for number in range(3):
        submitted.add(but(job=f"live-{number}", submitted=10 + number))
    assert numbers() == ["ended-2", "live-0", "live-1", "live-2"]
    abandoned = place / ".job-x.json.abc"
    abandoned.touch()
    fresh = place / ".job-y.json.abc"
    fresh.touch()
    os.utime(abandoned, (now - 2 * 24 * 3600,) * 2)
    over = submitted.end(submitted.look().jobs[1], "FAILED", "NonZeroExitCode")
    submitted.add(submitted.look().jobs[-1])
    assert not abandoned.exists()
    assert fresh.exists()
    assert submitted.look().jobs[1] == over
    assert now <= over.ended <= time.time()
    assert (over.word, over.why) == ("FAILED", "NonZeroExitCode")
