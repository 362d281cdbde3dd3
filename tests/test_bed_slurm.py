"""The Slurm of the test bed is a real one: without it no test of schedulers means anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from bed import Bed, BedError
from bed.programs import until
from bed.slurm import Slurm


def commands(slurm: Slurm, name: str) -> set[str]:
    return {command for _, command in slurm.bed.processes(name)}


def test_hosts_partitions_and_gpus_are_as_asked_for(slurm: Slurm) -> None:
    assert set(slurm.nodes()) == {"node1", "node2", "node3"}
    asked = slurm.ask("sinfo", "--noheader", "--format=%P %l %D %c %m %G").splitlines()
    assert sorted(asked) == ["batch* infinite 3 4 4000 gpu:4", "short 1:00 3 4 4000 gpu:4"]


def test_srun_runs_on_every_host_where_we_are(slurm: Slurm, tmp_path: Path) -> None:
    script = "echo $(hostname) $PWD $SLURM_PROCID $SLURM_NTASKS $CUDA_VISIBLE_DEVICES"
    step = ["srun", "-N3", "-n3", "--gres=gpu:2", "sh", "-c", script]
    lines = sorted(slurm.ask(*step).splitlines())
    assert lines == [f"node{index + 1} {tmp_path} {index} 3 0,1" for index in range(3)]
    done = slurm.run(["srun", "-N2", "sh", "-c", "exit $((SLURM_PROCID * 7))"])
    assert done.returncode == 7


def test_a_batch_job_finds_its_files_and_fails_as_its_script_does(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n#SBATCH -N2 -o out.txt\nsrun hostname >hosts.txt; echo $WORD\n")
    good = slurm.submit(script, env={"WORD": "a word"})
    bad = slurm.submit("-o", "/dev/null", "--wrap", "exit 3")
    assert slurm.wait(good, "COMPLETED", "FAILED") == "COMPLETED"
    assert len((tmp_path / "hosts.txt").read_text().split()) == 2
    assert (tmp_path / "out.txt").read_text() == "a word\n"
    assert slurm.wait(bad, "COMPLETED", "FAILED") == "FAILED"
    assert slurm.state(987654) == ""


def test_salloc_gives_an_allocation_to_a_command_of_ours(slurm: Slurm) -> None:
    script = "echo $SLURM_JOB_NODELIST $SLURM_JOB_NUM_NODES; srun hostname; exit 5"
    done = slurm.run(["salloc", "-N2", "-w", "node[2-3]", "sh", "-c", script])
    assert done.returncode == 5
    nodes, *hosts = done.stdout.splitlines()
    assert (nodes, sorted(hosts)) == ("node[2-3] 2", ["node2", "node3"])


def test_a_second_step_needs_overlap(slurm: Slurm) -> None:
    two = "srun -N2 -n2"
    inside = f"read up; {two} --overlap hostname; {two} --immediate=1 hostname || echo busy; scancel $SLURM_JOB_ID"
    script = f"srun -n1 sh -c 'echo up; exec sleep 543' | {{ {inside}; }}"
    done = slurm.run(["salloc", "-N2", "-n2", "-w", "node[2-3]", "sh", "-c", script])
    assert sorted(done.stdout.split()) == ["busy", "node2", "node3"], done.stderr


def test_slurms_commands_work_in_the_hosts(slurm: Slurm) -> None:
    bed = slurm.bed
    done = bed.run("node2", ["srun", "-N2", "-w", "node[1,3]", "hostname"])
    assert (sorted(done.stdout.split()), done.returncode) == (["node1", "node3"], 0), done.stderr
    by_ssh = ["ssh", "-F", str(bed.ssh_config), "node3", "sinfo -h -p short -o %D"]
    assert subprocess.run(by_ssh, capture_output=True, check=True).stdout == b"3\n"
    munge = slurm.folder / "munge/socket"
    assert len({path.stat().st_dev for path in (munge, *(bed.path(name, str(munge)) for name in bed.hosts))}) == 4


def test_scancel_ends_daemons_too(slurm: Slurm) -> None:
    if not slurm.cgroups:
        pytest.skip("Slurm loses daemons without a freezer of cgroups, version 1")
    script = "(setsid sleep 321 &); srun sh -c '(setsid sleep 432 &); exec sleep 210'"  # orphans at once
    job = slurm.submit("-N2", "-w", "node[2-3]", "-o", "/dev/null", "--wrap", script)
    until(lambda: {"sleep 321", "sleep 432", "sleep 210"} <= commands(slurm, "node2"), "the job")
    until(lambda: {"sleep 432", "sleep 210"} <= commands(slurm, "node3"), "the step")
    slurm.ask("scancel", job)
    slurm.wait(job, "CANCELLED")
    until(lambda: not commands(slurm, "node2") | commands(slurm, "node3"), "the end of all", 1)


def test_wait_says_what_it_waited_for(slurm: Slurm) -> None:
    job = slurm.submit("-N9", "-o", "/dev/null", "--wrap", "true")  # nobody refuses: it waits for ever
    with pytest.raises(BedError, match="not RUNNING but PENDING"):
        slurm.wait(job, "RUNNING", seconds=0)
    slurm.ask("scancel", job)
    assert slurm.wait(job, "CANCELLED") == "CANCELLED"


def test_a_lost_host_fails_its_job_and_comes_back(slurm: Slurm) -> None:
    bed = slurm.bed
    job = slurm.submit("-N2", "-w", "node[2-3]", "--no-requeue", "-o", "/dev/null", "--wrap", "sleep 765")
    slurm.wait(job, "RUNNING")
    bed.poweroff("node3")
    slurm.give_up("node3")
    assert slurm.wait(job, "NODE_FAIL", "FAILED") == "NODE_FAIL"
    assert slurm.nodes()["node3"].startswith("down")
    bed.boot("node3")
    until(lambda: slurm.nodes()["node3"] == "idle", "node3 is back")
    assert slurm.ask("srun", "-w", "node3", "hostname") == "node3"
    bed.reboot("node2")
    assert slurm.ask("srun", "-w", "node[2-3]", "-N2", "sh", "-c", "echo up") == "up\nup"


def elsewhere() -> set[Path]:
    """What a Slurm would have left in its usual places."""
    places = (
        "/run/slurm*",
        "/run/munge*",
        "/var/spool/slurm*",
        "/var/log/slurm*",
        "/var/log/munge/*",
        "/var/lib/munge/*",
    )
    return {path for place in places for path in Path("/").glob(place[1:])}


def slurm_processes(folder: Path) -> list[psutil.Process]:
    """Those of this bed on this machine, in hosts or not."""
    return [one for one in psutil.process_iter(["cmdline", "name"]) if _belongs(one, folder)]


def _belongs(process: psutil.Process, folder: Path) -> bool:
    if process.info["name"] not in ("slurmctld", "slurmd", "munged"):
        return False
    try:
        return str(process.environ().get("SLURM_CONF")).startswith(f"{folder}/")
    except psutil.NoSuchProcess:
        return False


def test_two_do_not_meet_and_nothing_is_left(slurm: Slurm) -> None:
    shape: dict[str, Any] = {"cpus": 2, "gpus": 0, "memory": 500, "partitions": {"only": "Default=YES"}}
    before = elsewhere()
    with Bed(1) as bed:
        with Slurm(bed, **shape, settings={"EnforcePartLimits": "ALL"}) as other:
            assert other.ask("sinfo", "--noheader", "--format=%P %D %c %m %G") == "only* 1 2 500 (null)"
            refused = other.run(["srun", "-N2", "true"])  # the session's Slurm would grant it
            assert (refused.returncode, "node count" in refused.stderr.lower()) == (1, True), refused.stderr
            assert slurm.ask("srun", "-w", "node1", "cat", "/etc/machine-id") != other.ask(
                "srun", "cat", "/etc/machine-id"
            )
            assert len(slurm_processes(bed.folder)) == 4
            assert bed.processes("node1") == []
            job = other.submit("-o", "/dev/null", "--wrap", "setsid sleep 1357 & sleep 2468")
            other.wait(job, "RUNNING")  # and nobody ends it
        assert slurm_processes(bed.folder) == []
        assert not other.folder.exists()
        assert bed.run("node1", ["sh", "-c", "grep -c slurm /proc/mounts"]).stdout == "0\n"
    assert elsewhere() == before
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{bed.folder.name}*"))


KILLED = """
import signal
from bed import Bed
from bed.slurm import Slurm
bed = Bed(1)
slurm = Slurm(bed)
slurm.submit("-o", "/dev/null", "--wrap", "setsid sleep 1470 & sleep 1480")
slurm.wait(1, "RUNNING")
print(bed.folder, flush=True)
signal.pause()
"""


def test_a_killed_one_leaves_no_process_and_the_next_removes_its_rest() -> None:
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "TMPDIR": tempfile.gettempdir()}
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, env=environ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert len(slurm_processes(folder)) == 4
        owner.send_signal(signal.SIGKILL)
    until(lambda: not slurm_processes(folder), "the end of all", 5)
    with Bed(1) as bed, Slurm(bed):
        assert not folder.exists()
        assert not list(Path("/sys/fs/cgroup").glob(f"*/{folder.name}*"))


def test_restore_ends_jobs_and_mends_hosts(slurm: Slurm) -> None:
    first, second = (slurm.submit("-N3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 876") for _ in range(2))
    slurm.wait(first, "RUNNING")
    slurm.bed.poweroff("node1")
    slurm.bed.freeze("node2")
    slurm.restore()
    assert set(slurm.nodes().values()) == {"idle"}
    assert {slurm.state(first), slurm.state(second)} == {"CANCELLED"}
    with slurm.bed.popen("node1", ["sleep", "1098"]) as stray:
        with pytest.raises(AssertionError, match="sleep 1098"):
            slurm.restore()
        stray.wait()
    slurm.ready()
