"""The simulated Flux answers as the real one was seen to, and takes nothing that nobody has seen it take."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import Bed
from bed.programs import until
from sim.flux import Flux

JOB = "{id.f58plain} {state} {status} {result} {returncode} {nodelist} {name}"
UP = "echo up; exec sleep 987"


@pytest.fixture(scope="module")
def shared(bed: Bed) -> Iterator[Flux]:
    with Flux(bed, gpus=2, kill_timeout=0.5, notice=0.2, exit_timeout=0.3) as running:
        yield running


@pytest.fixture
def flux(shared: Flux) -> Iterator[Flux]:
    yield shared
    shared.restore()


def script(folder: Path, *lines: str) -> Path:
    file = folder / "job.sh"
    file.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    return file


def commands(flux: Flux, name: str) -> set[str]:
    return {command for _, command in flux.bed.processes(name)}


def sleeping(flux: Flux, *names: str, number: str = "987") -> None:
    until(lambda: all(f"sleep {number}" in commands(flux, name) for name in names), f"sleep {number}")


def started(flux: Flux, *words: str) -> subprocess.Popen[str]:
    """A ``flux`` command whose tasks have said that they are up."""
    process = flux.popen(["flux", *words, "sh", "-c", UP], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


# -- what is refused


BAD_USE = """
    flux run --out=x true
    flux run --err=x true
    flux run --ntask=2 true
    flux run --reservation=x true
    flux run --nslots=2 true
    flux run --exclusive=1 true
    flux run -N
    flux run -N --exclusive true
    flux batch -N1 --tasks-per-node=1 --wrap true
    flux alloc -N1 --background true
    flux submit -N1 --bg true
    flux jobs --format
    flux cancel --all
    flux hostlist --expnd avail
"""
BAD_VALUE = """
    flux run -Nx true
    flux run -N0 true
    flux run -t 1:30 true
    flux run -N2 -n1 true
    flux run -N9 true
    flux run -g9 true
    flux run -N2 -n2 --tasks-per-node=1 true
    flux run -N2 -c1 --gpus-per-node=1 true
    flux run --tasks-per-node=1 true
    flux run -q nowhere true
    flux run -q short -t 2 true
    flux run --dependency=after:f1 true
    flux run --dependency=afterok:f11111 true
    flux run --requires=rank:1 true
    flux run --signal=NOPE@1s true
    flux run -N1
    flux batch -N1 nowhere.sh
    flux batch --wrap true
    flux alloc true
    flux alloc -N1
    flux exec --ranks all true
    flux exec -r 7 true
    flux jobs -no {nonsense}
    flux jobs f11111
    flux jobs 4~
    flux cancel
    flux cancel f11111
    flux job attach --readonly f11111
    flux job kill -s NOPE f11111
    flux job id --to=word f11111
    flux job list
    flux resource list -o {up}
    flux resource drain
    flux getattr parent-uri
    flux getattr nonsense
    flux mini run true
    flux queue list
"""


@pytest.mark.parametrize(("lines", "status"), [(BAD_USE, 2), (BAD_VALUE, 1)])
def test_what_nobody_has_seen_is_refused(flux: Flux, lines: str, status: int) -> None:
    for line in lines.strip().splitlines():
        done = flux.run(line.split())
        assert (line, done.returncode, done.stdout) == (line, status, "")
        assert done.stderr


def test_directives_are_as_strict(flux: Flux, tmp_path: Path) -> None:
    assert flux.run(["flux", "batch", script(tmp_path, "# flux: --nodse=2", "true")]).returncode == 2
    plain = tmp_path / "plain.sh"
    plain.write_text("true\n")
    assert "does not appear to be a script" in flux.run(["flux", "batch", "-N1", plain]).stderr


# -- shapes, environment, streams


def test_a_task_finds_its_place_and_no_gpu(flux: Flux) -> None:
    names = "TASK_RANK TASK_LOCAL_ID JOB_SIZE JOB_NNODES"
    echo = f"echo $(hostname) {' '.join(f'$FLUX_{name}' for name in names.split())} $PMI_RANK $PMI_SIZE"
    words = [
        "run",
        "-N2",
        "-n4",
        "-u",
        "sh",
        "-c",
        f"{echo} $CUDA_VISIBLE_DEVICES ${{PMI_FD:+fd}}; cd $FLUX_JOB_TMPDIR",
    ]
    lines = sorted(flux.ask("flux", *words, env={"CUDA_VISIBLE_DEVICES": "0"}).splitlines())
    assert lines == [f"node{rank // 2 + 1} {rank} {rank % 2} 4 2 {rank} 4 -1 fd" for rank in range(4)]


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ("-n2 -g1", ["0,1", "0,1"]),
        ("-n2 -g1 -o gpu-affinity=per-task", ["0", "1"]),
        ("-n2 -g1 -o gpu-affinity=off", ["7", "7"]),
        ("-N1 --tasks-per-node=1 --exclusive", ["-1"]),
        ("-N1 --gpus-per-node=2", ["0,1"]),
    ],
)
def test_gpus_as_they_are_asked_for(flux: Flux, options: str, seen: list[str]) -> None:
    printed = flux.ask(
        "flux", "run", *options.split(), "printenv", "CUDA_VISIBLE_DEVICES", env={"CUDA_VISIBLE_DEVICES": "7"}
    )
    assert sorted(printed.split()) == seen


def test_one_task_is_bound_to_a_core_unless_it_says_no(flux: Flux) -> None:
    count = ["sh", "-c", "nproc"]
    assert flux.ask("flux", "run", "-n1", *count) == "1"
    assert flux.ask("flux", "run", "-n1", "-o", "cpu-affinity=off", *count) == str(len(os.sched_getaffinity(0)))


def test_streams_and_words(flux: Flux, tmp_path: Path) -> None:
    assert flux.ask("flux", "run", "-N3", "cat", input="a line\n").splitlines() == ["a line"] * 3
    done = flux.run(["flux", "run", "-n2", "-l", "sh", "-c", "echo out; echo err >&2; exit $((FLUX_TASK_RANK + 2))"])
    assert (done.returncode, sorted(done.stdout.splitlines())) == (3, ["0: out", "1: out"])
    assert {"0: err", "1: err"} < set(done.stderr.splitlines())
    assert (
        flux.ask("flux", "run", "-n2", "-N2", "echo", "{{size}} {{nnodes}} {{what}}").splitlines()
        == ["2 2 {{what}}"] * 2
    )
    flux.ask("flux", "run", "--output=o.{{id}}", "--error=e", "--env=A=b c", "sh", "-c", 'echo "$A $HOME"; echo e >&2')
    assert [file.read_text() for file in tmp_path.glob("o.*")] == [f"b c {os.environ['HOME']}\n"]
    assert (tmp_path / "e").read_text() == "e\n"
    assert flux.ask("flux", "run", "--env=-*", "--env=PATH=/bin", "sh", "-c", "echo ${HOME-none}") == "none"
    assert flux.run(["flux", "run", "no-such-program"]).returncode == 127
    nowhere = flux.run(["flux", "run", "--cwd=/no/where", "pwd"])
    assert (nowhere.returncode, nowhere.stdout) == (0, "/tmp\n")
    assert "/no/where" in nowhere.stderr
    spec = json.loads(flux.ask("flux", "run", "--dry-run", "-N2", "-t", "1.5h", "true"))
    assert spec["attributes"]["system"]["duration"] == 5400


def test_hosts_by_constraint_and_by_cycle(flux: Flux) -> None:
    assert flux.ask("flux", "run", "--requires=host:node3", "hostname") == "node3"
    assert sorted(flux.ask("flux", "run", "-N2", "--requires=-host:node1", "hostname").split()) == ["node2", "node3"]
    words = ["run", "-l", "-N2", "-n4", "--taskmap=cyclic", "hostname"]
    assert sorted(flux.ask("flux", *words).splitlines()) == ["0: node1", "1: node2", "2: node1", "3: node2"]


# -- instances


def test_a_batch_job_is_an_instance_of_its_own(flux: Flux, tmp_path: Path) -> None:
    lines = [
        "# flux: -N3",
        "# flux: --job-name='a name' --output=x.{{id}}.txt  # and a remark",
        "ask='flux getattr'",
        "echo $(hostname) ${FLUX_JOB_ID-unset} $($ask jobid) $($ask size) $($ask instance-level)",
        "flux hostlist local; flux hostlist -e avail; flux resource info",
        "flux resource list -no '{state} {nnodes} {ncores}'",
        "flux run -N2 --tasks-per-node=1 --exclusive hostname",
        "flux exec -r all hostname",
        "flux run -q batch true || echo no queues",
        "exit 4",
    ]
    job = flux.submit("-N2", script(tmp_path, *lines), env={"FLUX_F58_FORCE_ASCII": "1"})
    assert re.fullmatch(r"f[1-9A-Za-z]+", job)
    assert flux.run(["flux", "job", "status", job]).returncode == 4
    first, hosts, avail, info, *more = (tmp_path / f"x.{job}.txt").read_text().splitlines()
    assert first == f"node1 unset {job} 2 1"
    assert (hosts, avail, info) == ("node[1-2]", "node1 node2", "2 Nodes, 8 Cores, 0 GPUs")
    assert more[:3] == ["free 2 8", "allocated 0 0", "down 0 0"]
    assert sorted(more[3:7]) == ["node1", "node1", "node2", "node2"]
    assert more[-1] == "no queues"
    assert flux.ask("flux", "jobs", "-no", JOB, job) == f"{job} INACTIVE FAILED FAILED 4 node[1-2] a name"


def test_the_default_output_and_the_id_in_both_forms(flux: Flux, tmp_path: Path) -> None:
    job = flux.submit("-n1", "--wrap", "echo hello", env={"LC_ALL": "C.UTF-8"})
    assert job.startswith("ƒ")
    flux.wait(job, "COMPLETED")
    assert (tmp_path / f"flux-{job}.out").read_text() == "hello\n"
    plain = f"f{job[1:]}"
    number = flux.ask("flux", "job", "id", "--to=dec", job)
    assert flux.ask("flux", "job", "id", "--to=f58plain", number) == plain
    found = json.loads(flux.ask("flux", "jobs", "--json", plain))
    assert (found["id"], found["result"], found["returncode"]) == (int(number), "COMPLETED", 0)


def test_alloc_runs_a_command_on_its_first_host(flux: Flux) -> None:
    inside = "flux run -N2 -u cat; echo $(hostname) $(flux getattr instance-level) $(flux job timeleft); exit 3"
    done = flux.run(["flux", "alloc", "-N2", "-t", "2", "sh", "-c", inside], input="hello\n")
    assert done.returncode == 3
    *hellos, last = done.stdout.splitlines()
    assert hellos == ["hello", "hello"]
    host, level, left = last.split()
    assert (host, level) == ("node1", "1")
    assert 100 < int(left) <= 120


def test_alloc_has_a_terminal_where_we_have_one(flux: Flux) -> None:
    ours, theirs = pty.openpty()
    process = flux.popen(
        ["flux", "alloc", "-N1", "sh", "-c", "test -t 0 && read line && echo got $line"], stdin=theirs, stdout=theirs
    )
    os.close(theirs)
    os.write(ours, b"word\r")
    assert process.wait(20) == 0
    assert b"got word" in os.read(ours, 4096)
    os.close(ours)


def test_alloc_in_the_background_and_proxy(flux: Flux) -> None:
    job = flux.ask("flux", "alloc", "-N2", "--bg")
    done = flux.run(["flux", "proxy", job, "flux", "run", "-N2", "sh", "-c", "'hostname; exit 5'"])
    assert (done.returncode, sorted(done.stdout.split())) == (5, ["node1", "node2"])
    assert flux.run(["flux", "proxy", job, "sh", "-c", "exit 5"]).returncode != 5  # "sh -c exit 5", once parsed again
    assert flux.ask("flux", "resource", "list", "-no", "{state} {nodelist}").splitlines()[1] == "allocated node[1-2]"
    flux.ask("flux", "cancel", job)
    assert flux.run(["flux", "job", "status", job]).returncode == 143
    assert flux.run(["flux", "proxy", job, "true"]).returncode == 1


def test_a_second_exclusive_run_waits_and_exec_does_not(flux: Flux) -> None:
    first = started(flux, "run", "-N1", "--exclusive", "--requires=host:node2")
    second = flux.popen(
        ["flux", "run", "-N1", "--exclusive", "--requires=host:node2", "hostname"], stdout=subprocess.PIPE
    )
    assert flux.ask("flux", "exec", "-r", "1", "hostname") == "node2"
    until(lambda: "SCHED" in flux.ask("flux", "jobs", "-no", "{state}"), "a job in the queue")
    second.terminate()  # means nothing to a job that waits
    first.terminate()
    assert ended(first)[0] == 143
    assert second.communicate(timeout=20)[0] == "node2\n"


# -- ends


def test_signals_of_run(flux: Flux) -> None:
    process = started(flux, "run", "-N1")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "one more ctrl-C" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 143
    hung_up = started(flux, "run", "-N1")
    hung_up.send_signal(signal.SIGHUP)
    assert ended(hung_up)[0] == 129
    killed = started(flux, "run", "-N1")
    killed.kill()
    ended(killed)
    (job,) = flux.ask("flux", "jobs", "-no", "{id}").split()
    assert flux.state(job) == "RUN"
    flux.ask("flux", "job", "kill", "-s", "USR1", job)
    assert flux.run(["flux", "job", "attach", "--read-only", job]).returncode == 138


def test_exec_takes_its_processes_with_it(flux: Flux) -> None:
    for number, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9), (signal.SIGHUP, -1)):
        process = flux.popen(["flux", "exec", "-r", "all", "sleep", "987"])
        sleeping(flux, *flux.bed.hosts)
        process.send_signal(number)
        assert process.wait(20) == status
        until(lambda: not any(commands(flux, name) for name in flux.bed.hosts), "the end of all")


def test_cancel_kills_those_who_do_not_listen(flux: Flux) -> None:
    job = flux.ask("flux", "submit", "--input=/dev/null", "-N1", "sh", "-c", "trap '' TERM; sleep 987; sleep 987")
    sleeping(flux, "node1")
    flux.ask("flux", "cancel", job)
    assert flux.run(["flux", "job", "status", job]).returncode == 137
    assert flux.state(job) == "CANCELED"
    assert flux.run(["flux", "cancel", job]).returncode == 1
    assert flux.run(["flux", "job", "kill", job]).returncode == 1


def test_cancel_of_one_that_waits(flux: Flux) -> None:
    first = flux.popen(["flux", "run", "-N3", "sleep", "987"])
    sleeping(flux, *flux.bed.hosts)
    job = flux.ask("flux", "submit", "-N1", "true")
    plain = flux.ask("flux", "job", "id", "--to=f58plain", job)
    assert flux.ask("flux", "jobs", "-no", JOB, job).split() == [plain, "SCHED", "SCHED", "true"]
    assert flux.run(["flux", "job", "kill", job]).returncode == 1
    flux.ask("flux", "cancel", job)
    assert flux.run(["flux", "job", "status", job]).returncode == 1
    assert flux.ask("flux", "jobs", "-no", "{status} {returncode} {nodelist}", job) == "CANCELED -128"
    first.terminate()
    assert first.wait(20) == 143


def test_a_session_of_its_own_survives_without_pmi_and_else_holds_the_job(flux: Flux) -> None:
    free = "setsid sleep 986 >/dev/null 2>&1 </dev/null & sleep 987"
    job = flux.ask("flux", "submit", "--input=/dev/null", "-o", "pmi=off", "sh", "-c", free)
    sleeping(flux, "node1", number="986")
    sleeping(flux, "node1")
    flux.ask("flux", "cancel", job)
    flux.wait(job, "CANCELED")
    assert commands(flux, "node1") == {"sleep 986"}
    flux.bed.run("node1", ["pkill", "-x", "sleep"])
    done = flux.run(
        ["flux", "run", "-o", "exit-timeout=none", "sh", "-c", "setsid sleep 0.4 >/dev/null 2>&1 </dev/null & exit 0"]
    )
    assert done.returncode == 0
    assert not commands(flux, "node1")


@pytest.mark.parametrize(
    ("options", "seconds", "status"),
    [("", "987", 143), ("-o exit-timeout=none", "0.6", 0), ("-o exit-timeout=none -o exit-on-error", "0.6", 0)],
)
def test_the_first_exit_starts_a_clock(flux: Flux, options: str, seconds: str, status: int) -> None:
    task = f"[ $FLUX_TASK_RANK = 0 ] || exec sleep {seconds}"
    assert flux.run(["flux", "run", "-N2", *options.split(), "sh", "-c", task]).returncode == status


def test_exit_on_error_ends_the_others(flux: Flux) -> None:
    task = "[ $FLUX_TASK_RANK = 0 ] && exit 7; exec sleep 987"
    done = flux.run(["flux", "run", "-N2", "-o", "exit-on-error", "-o", "exit-timeout=none", "sh", "-c", task])
    assert done.returncode == 143


def test_time_limits(flux: Flux, tmp_path: Path) -> None:
    assert flux.run(["flux", "run", "-t", "0.2s", "sleep", "987"]).returncode == 142
    trap = "trap 'echo HUP' HUP; trap 'echo ALRM' ALRM; trap 'echo USR1' USR1; while :; do sleep 0.05; done"
    job = flux.submit("-N1", "-t", "1.2s", "--signal=USR1@0.4s", "--output=o", "--wrap", trap)
    assert flux.wait(job, "TIMEOUT") == "TIMEOUT"
    said = [word for word in (tmp_path / "o").read_text().split() if word in ("USR1", "HUP", "ALRM")]
    assert said[0] == "USR1"
    assert set(said[1:]) == {"HUP", "ALRM"}
    assert flux.run(["flux", "job", "status", job]).returncode == 137
    assert flux.ask("flux", "jobs", "-no", "{result} {returncode}", job) == "TIMEOUT 137"


def test_what_cannot_be_met_fails_later_where_an_id_was_given(flux: Flux) -> None:
    job = flux.ask("flux", "submit", "-N9", "true")
    flux.wait(job, "FAILED")
    assert "unsatisfiable" in flux.ask("flux", "jobs", "-no", "{exception.note}", job)
    assert flux.run(["flux", "job", "wait-event", "-t", "20", job, "start"]).returncode == 1
    after = flux.ask("flux", "submit", f"--dependency=afterok:{job}", "true")
    flux.wait(after, "FAILED")
    assert "can never be satisfied" in flux.ask("flux", "jobs", "-no", "{exception.note}", after)
    flux.wait(flux.ask("flux", "submit", f"--dependency=afternotok:{job}", "true"), "COMPLETED")


def test_dependencies_that_come_true(flux: Flux) -> None:
    first = flux.ask("flux", "submit", "cat")  # reads stdin, and nobody is attached
    started_, ended_ = (
        flux.ask("flux", "submit", f"--dependency={kind}:{first}", "true") for kind in ("afterstart", "afterok")
    )
    flux.wait(started_, "COMPLETED")
    assert flux.state(ended_) == "DEPEND"
    flux.ask("flux", "job", "wait-event", "-t", "20", first, "start")
    assert flux.run(["flux", "job", "wait-event", "-t", "0.1", first, "finish"]).returncode == 1
    assert flux.ask("flux", "job", "attach", first, input="now\n") == "now"
    flux.wait(ended_, "COMPLETED")


# -- hosts that are lost


def test_a_lost_host_ends_the_run_and_not_the_allocation(flux: Flux) -> None:
    job = flux.ask("flux", "alloc", "-N3", "--bg")
    inside = {"FLUX_URI": flux.ask("flux", "proxy", job, "flux", "getattr", "local-uri")}
    run = flux.popen(["flux", "run", "-N3", "sleep", "987"], env=inside, stderr=subprocess.PIPE)
    remote = flux.popen(["flux", "exec", "-r", "2", "sleep", "987"], env=inside, stderr=subprocess.PIPE)
    sleeping(flux, *flux.bed.hosts)
    until(lambda: [c for _, c in flux.bed.processes("node3")].count("sleep 987") == 2, "two sleeps")
    flux.bed.kill("node3")
    status, errors = ended(run)
    assert status == 143
    assert "node failure on node3" in errors
    assert ended(remote)[0] == 68
    assert flux.ask("flux", "hostlist", "avail", env=inside) == "node[1-2]"
    assert flux.run(["flux", "exec", "-r", "all", "true"], env=inside).returncode == 68
    assert sorted(flux.ask("flux", "run", "-N2", "hostname", env=inside).split()) == ["node1", "node2"]
    flux.bed.boot("node3")
    assert flux.ask("flux", "hostlist", "avail", env=inside) == "node[1-2]"
    assert flux.ask("flux", "hostlist", "avail") == "node[1-3]"


# -- what is not known for certain


def test_switches(bed: Bed) -> None:
    with Flux(bed, gpus=2, whole_nodes_have_gpus=True) as flux:
        assert flux.ask("flux", "run", "-N1", "printenv", "CUDA_VISIBLE_DEVICES") == "0,1"
        assert flux.ask("flux", "run", "-N1", "-n1", "printenv", "CUDA_VISIBLE_DEVICES") == "-1"
        assert flux.ask("flux", "alloc", "-N2", "flux", "resource", "info") == "2 Nodes, 8 Cores, 4 GPUs"
    with Flux(bed, system=False) as flux:
        assert flux.run(["flux", "getattr", "size"]).returncode == 1


def test_nothing_of_it_is_left(bed: Bed) -> None:
    with Flux(bed) as flux:
        flux.ask("flux", "alloc", "-N3", "--bg")
        sleeping(flux, "node1", number="infinity")
    assert not flux.folder.exists()
    until(lambda: not any(bed.processes(name) for name in bed.hosts), "the end of all")
