"""The simulated LSF answers as the manuals say, starts what it is told to, and refuses what they do not list."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bed import Bed, BedError
from bed.programs import until
from sim import lsf_answers, lsf_jsrun, lsf_words
from sim.grammar import Refusal
from sim.lsf import Lsf
from sim.lsf_depend import DependencyError, parse
from sim.lsf_ways import Ways
from sim.pool import Pool, Share

TWO = ("-n", 2, "-R", "span[ptile=1]", "-o", "/dev/null")
"""A slot on each of two hosts."""


@pytest.fixture(scope="module")
def running(bed: Bed) -> Iterator[Lsf]:
    with Lsf(bed, gpus=4, minute=0.5, grace=0.5) as lsf:
        yield lsf


@pytest.fixture
def lsf(running: Lsf) -> Iterator[Lsf]:
    """As a test wants it: its ways are the default ones again afterwards, and no job is left."""
    yield running
    running.use(**dataclasses.asdict(Ways()))
    running.restore()


@pytest.fixture(scope="module")
def coral_running(bed: Bed) -> Iterator[Lsf]:
    with Lsf(bed, gpus=4, coral=True, name="coral") as lsf:
        yield lsf


@pytest.fixture
def coral(coral_running: Lsf) -> Iterator[Lsf]:
    yield coral_running
    coral_running.use(**dataclasses.asdict(Ways()))
    coral_running.restore()


def script(tmp_path: Path, text: str, name: str = "job.sh") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def refused(lsf: Lsf, *argv: str | Path | int, **options: Any) -> str:
    done = lsf.run(argv, **options)
    assert (done.returncode, done.stdout) == (255, ""), done
    return done.stderr.strip()


def inside(lsf: Lsf, words: str, *options: str | int, **more: Any) -> subprocess.CompletedProcess[str]:
    """What these words of a shell print within a job, and their status, without what bsub itself says."""
    done = lsf.run(["bsub", "-I", *options, words], **more)
    done.stdout = "".join(line for line in done.stdout.splitlines(True) if " is submitted to " not in line)
    done.stderr = "".join(line for line in done.stderr.splitlines(True) if not line.startswith("<<"))
    return done


# -- words


NO_BSUB = [
    "-n 0 true",
    "-n 2,4 true",
    "-n4 true",
    "-N 2 true",
    "--n 2 true",
    "-nnodes 2 true",
    "-R span[hosts=1] true",
    "-R rusage[mem=1] true",
    "-W 0 true",
    "-W 1:2:3 true",
    "-W 1h true",
    "-q nowhere true",
    "-x -q shared true",
    "-q short -W 2 true",
    "-I -K true",
    "-Is -I true",
    "-Ip true",
    "-o a -oo b true",
    "-e a -eo b true",
    "-o out.%I true",
    "-I -o out true",
    "-J name[1-3] true",
    "-n 1 -n 2 true",
    "-ti true",
    "-w done(99) true",
    "-w afterok:1 true",
    "-gpu 4 true",
    "-gpu num=1:num=2 true",
    "-gpu num=4:mode=exclusive true",
    "-env none,A=1 true",
    "-env NOT_SET_ANYWHERE true",
    "-env all,A-B='1 true",
    "-n 2",
    "--shared-launch true",
    "-h",
    "-- true",
    "-J",
]


def test_bsub_refuses_what_its_manual_does_not_list(lsf: Lsf) -> None:
    before = lsf.submit("-o", "/dev/null", "true")
    for words in NO_BSUB:
        assert refused(lsf, "bsub", *words.split()), words
    assert lsf.submit("-o", "/dev/null", "true") == before + 1


NO_DIRECTIVES = {
    "#BSUB -N 2": "illegal option -- -N",
    "#BSUB -n": "option requires an argument -- -n",
    "#BSUB -J 'a": "No closing quotation",
    "#BSUB true": "options only",
    "# BSUB -n 2": "looks like one",
    "#BSUBS -n 2": "looks like one",
    "#bsub -n 2": "looks like one",
    "true\n#BSUB -n 2": "after a command",
}


def test_directives_are_as_strict(lsf: Lsf) -> None:
    for line, said in NO_DIRECTIVES.items():
        assert said in refused(lsf, "bsub", input=f"#!/bin/sh\n{line}\ntrue\n")


NO_QUESTIONS = [
    ["bjobs"],
    ["bjobs", "1"],
    ["bjobs", "-o", "stat"],
    ["bjobs", "-a", "-o", "stat", "1"],
    ["bjobs", "-json", "1"],
    ["bjobs", "-o", "stat nonsense", "1"],
    ["bjobs", "-o", "stat:8", "1"],
    ["bjobs", "-o", "stat delimiter=^", "1"],
    ["bjobs", "-o", "stat", "1[2]"],
    ["bjobs", "-o", "stat", "myname"],
    ["bjobs", "-noheader", "-json", "-o", "stat", "1"],
    ["bkill"],
    ["bkill", "0"],
    ["bkill", "-r", "1"],
    ["bkill", "-s", "NOTHING", "1"],
    ["bkill", "-J", "name"],
]


def test_bjobs_and_bkill_refuse_too(lsf: Lsf) -> None:
    for argv in NO_QUESTIONS:
        assert refused(lsf, *argv), argv


def test_a_site_may_refuse_all_and_may_talk(lsf: Lsf) -> None:
    lsf.use(esub_aborts=True)
    assert refused(lsf, "bsub", "true") == "Request aborted by esub. Job not submitted."
    lsf.use(esub_aborts=False, notices=("Welcome to <bed>.", "Job <7> was yesterday's."))
    *notices, answer = lsf.ask("bsub", "-o", "/dev/null", "true").splitlines()
    assert notices == ["Welcome to <bed>.", "Job <7> was yesterday's."]
    assert answer.endswith(" is submitted to default queue <normal>.")
    assert lsf.ask("bsub", "-q", "short", "-o", "/dev/null", "true").endswith(" is submitted to queue <short>.")


@pytest.mark.parametrize(("text", "minutes"), [("90", 90), ("1:30", 90), ("0:90", 90), ("2:00", 120)])
def test_a_run_limit_is_in_minutes(text: str, minutes: int) -> None:
    assert lsf_words.run_limit(text) == minutes


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("none", {}),
        ("all", {"A": "1", "B": "2"}),
        ("all,A=x=y", {"A": "x=y", "B": "2"}),
        ("all, ~A, C=", {"B": "2", "C": ""}),
        ("A,C='p, q',D=r", {"A": "1", "C": "p, q", "D": "r"}),
    ],
)
def test_env_chooses_variables(text: str, chosen: dict[str, str]) -> None:
    assert lsf_words.environment(text, {"A": "1", "B": "2"}) == chosen


@pytest.mark.parametrize(
    "text", ["A=p,q", "none,A=1", "~A", "all,~A=1", "all=1", "A='p", "all,A B=1", "all,", "x" * 4095]
)
def test_env_is_strict(text: str) -> None:
    with pytest.raises(Refusal):
        lsf_words.environment(text, {"A": "1"})


def test_conditions() -> None:
    stages = {1: "PEND", 2: "RUN", 3: "DONE", 4: "EXIT"}

    def verdicts(text: str) -> bool | None:
        return parse(text).verdict(stages.__getitem__)

    words = {"done": [None, None, True, False], "exit": [None, None, False, True]}
    words |= {"ended": [None, None, True, True], "started": [None, True, True, True]}
    for word, expected in words.items():
        assert [verdicts(f"{word}({job})") for job in stages] == expected
    assert verdicts("done(3)&&ended(4)") is True
    assert verdicts("done(3) && done(4)") is False
    assert verdicts("done(1)&&done(4)") is False
    assert verdicts("done(4)||done(1)") is None
    assert verdicts("done(4)&&done(3)||ended(4)") is True
    assert parse("done(3)||ended(4)&&done(3)").jobs == [3, 4]
    for wrong in ("", "done", "done()", "done(x)", "done(1", "done(1)&done(2)", "!done(1)", "(done(1))", "done(1)&&"):
        with pytest.raises(DependencyError):
            parse(wrong)
    for wrong in ("1", 'done("name")', "post_done(1)", "exit(1,!=0)", "done(1),done(2)"):
        with pytest.raises(DependencyError):
            parse(wrong)


# -- jobs


def test_a_script_on_stdin_with_directives(lsf: Lsf, tmp_path: Path) -> None:
    text = """#!/bin/bash
#BSUB -J "a name" -n 3
#BSUB -R "span[ptile=2]"
#BSUB -o %J.out
#BSUB -gpu "num=2:mode=shared:j_exclusive=yes"

echo $LSB_JOBNAME, $LSB_JOBID $LSB_JOBINDEX $LSB_QUEUE $LSB_HOSTS, $LSB_MCPU_HOSTS, $LSB_DJOB_NUMPROC
echo $CUDA_VISIBLE_DEVICES $(cat $LSB_DJOB_HOSTFILE) $(cat $LSB_DJOB_RANKFILE) $MINE $(hostname) ${BASH:+bash}
test $PWD = $LS_SUBCWD && pwd; echo wrong >&2; wc -c; exit 3
"""
    with script(tmp_path, text).open() as file:
        job = lsf.submit("-J", "b name", stdin=file, env={"MINE": "a word", "LSB_JOBNAME": "theirs"})
    assert lsf.wait(job, "DONE", "EXIT") == "EXIT"
    said = (tmp_path / f"{job}.out").read_text()
    report, output = said.split("The output (if any) follows:\n\n")
    *lines, one, other, last = output.splitlines()
    assert lines == [
        f"b name, {job} 0 normal node1 node1 node2, node1 2 node2 1 , 3",
        "0,1 node1 node1 node2 node1 node1 node2 a word node1 bash",
        str(tmp_path),
    ]
    assert ({one, other}, last) == ({"wrong", "0"}, ""), "two streams, whose order nobody knows"
    assert f"Subject: Job {job}: <b name> in cluster <bed> Exited" in report
    assert "was executed on host(s) <2*node1>\n                            <node2>, in queue <normal>" in report
    assert "Exited with exit code 3.\n" in report
    assert '#BSUB -R "span[ptile=2]"\n' in report


def test_output_files(lsf: Lsf, tmp_path: Path) -> None:
    command = "echo out; echo err >&2"
    for path in ("out", "err", "new", "both"):
        (tmp_path / path).write_text("old\n")
    separate = lsf.submit("-o", "out", "-e", "err", command)
    fresh = lsf.submit("-oo", "new", "-eo", "err.%J", command)
    direct = lsf.submit("-oo", "both", "-cwd", str(tmp_path), command, env={"LSB_STDOUT_DIRECT": "Y"}, cwd="/")
    lsf.use(stdout_direct=True)
    live = lsf.submit("-o", "live", "echo out; while ! test -e seen; do sleep 0.01; done")
    until(lambda: (tmp_path / "live").exists() and (tmp_path / "live").read_text() == "out\n", "it is there at once")
    (tmp_path / "seen").touch()
    for job in (separate, fresh, direct, live):
        lsf.wait(job, "DONE")
    out, new, both = ((tmp_path / name).read_text() for name in ("out", "new", "both"))
    assert out.startswith("old\nSender: LSF System <")
    assert out.endswith(f"\n\nout\n\n\nPS:\n\nRead file <{tmp_path}/err> for stderr output of this job.\n")
    assert (tmp_path / "err").read_text() == "old\nerr\n"
    assert new.startswith("Sender: LSF System <")
    assert (tmp_path / f"err.{fresh}").read_text() == "err\n"
    assert sorted(both.splitlines()[:2]) == ["err", "out"]
    assert "The output (if any) is above this job summary." in both
    assert "Successfully completed." in both


def test_env_of_a_job(lsf: Lsf) -> None:
    show = "echo $MINE-$OTHER-$HOME; command -v bjobs"
    done = inside(lsf, show, "-env", "all,MINE='a,b'", env={"OTHER": "c", "HOME": "/mine"})
    assert done.stdout.splitlines() == ["a,b-c-/root", f"{lsf.bin}/bjobs"]
    assert inside(lsf, show, "-env", "none", env={"OTHER": "c"}).stdout.splitlines() == ["--/root", f"{lsf.bin}/bjobs"]


def test_words_of_a_command_are_joined_or_quoted(lsf: Lsf) -> None:
    words = ["bsub", "-I", "printf", "<%s>", "a  b", "c;echo d"]
    joined = lsf.run(words)
    assert "d\n" in joined.stdout or joined.returncode
    lsf.use(quoted_words=True)
    assert lsf.run(words).stdout.endswith("<a  b><c;echo d>")


def test_bsub_waits_with_k(lsf: Lsf) -> None:
    done = lsf.run(["bsub", "-K", "-o", "/dev/null", "exit 7"])
    assert (done.returncode, done.stdout.count("\n")) == (7, 1)
    assert done.stderr.splitlines() == ["<<Waiting for dispatch ...>>", "<<Starting on node1>>", "<<Job is finished>>"]
    assert lsf.run(["bsub", "-K", "-o", "/dev/null", "kill -9 $$"]).returncode == 137


def popen_job(lsf: Lsf, *argv: str | int, **options: Any) -> tuple[subprocess.Popen[str], int]:
    process = lsf.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options)
    assert process.stdout is not None
    return process, int(process.stdout.readline().split("<")[1].split(">")[0])


def ended(process: subprocess.Popen[str]) -> int:
    with process:
        return process.wait(10)


@pytest.mark.parametrize("mode", ["-K", "-I", "-Is"])
def test_a_job_that_ends_while_it_waits(lsf: Lsf, mode: str) -> None:
    process, job = popen_job(lsf, "bsub", mode, "-n", 99, "true")
    assert lsf.ask("bjobs", "-noheader", "-o", "stat exec_host exit_code pend_reason delimiter='^'", job) == (
        "PEND^-^-^Job's resource requirements not satisfied;"
    )
    assert lsf.ask("bkill", job) == f"Job <{job}> is being terminated"
    assert ended(process) == 126
    assert lsf.state(job) == "EXIT"


def test_ctrl_c_gives_up_a_waiting_job(lsf: Lsf) -> None:
    with lsf.popen(["bsub", "-I", "-n", 99, "true"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "<<Waiting for dispatch ...>>\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "<<Terminated while pending>>\n"
        assert process.wait(10) == 126


def test_signals_reach_an_interactive_job(lsf: Lsf) -> None:
    process, _job = popen_job(lsf, "bsub", "-I", "trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert ended(process) == 3


@pytest.mark.parametrize("held", [False, True])
def test_a_bsub_k_that_dies(lsf: Lsf, held: bool, tmp_path: Path) -> None:
    lsf.use(wait_holds_job=held)
    process, job = popen_job(lsf, "bsub", "-K", "-o", "/dev/null", "while ! test -e go; do sleep 0.01; done")
    lsf.wait(job, "RUN")
    process.kill()
    assert ended(process) == -signal.SIGKILL
    if not held:
        assert lsf.state(job) == "RUN"
        (tmp_path / "go").touch()
    assert lsf.wait(job, "DONE", "EXIT") == ("EXIT" if held else "DONE")


def test_an_interactive_job(lsf: Lsf) -> None:
    done = inside(lsf, "read line; echo $line; echo err >&2; test -t 0 || echo none; exit 4", input="a line\n")
    assert (done.stdout, done.stderr, done.returncode) == ("a line\nnone\n", "err\n", 4)
    done = lsf.run(["bsub", "-Is", "test -t 0 && test -t 1 && stty size >/dev/null && echo yes"])
    assert done.stdout.endswith("\nyes\n"), done


def test_an_interactive_job_ends_with_its_bsub(lsf: Lsf) -> None:
    process, job = popen_job(lsf, "bsub", "-I", "sleep 300")
    lsf.wait(job, "RUN")
    process.kill()
    ended(process)
    assert lsf.wait(job, "EXIT") == "EXIT"


def test_jobs_wait_for_others(lsf: Lsf) -> None:
    first = lsf.submit("-o", "/dev/null", "-n", 99, "true")
    second = lsf.submit("-o", "/dev/null", "-w", f"ended({first})", "true")
    orphan = lsf.submit("-o", "/dev/null", "-w", f"done({first})&&done({second})", "-ti", "true")
    never = lsf.submit("-o", "/dev/null", "-w", f"done({first})", "true")
    lsf.wait(first, "PEND")
    assert lsf.ask("bjobs", "-noheader", "-o", "pend_reason delimiter='|'", second).startswith("Job dependency cond")
    lsf.ask("bkill", first)
    assert lsf.wait(second, "DONE", "EXIT") == "DONE"
    assert lsf.wait(orphan, "EXIT") == "EXIT"
    assert lsf.ask("bjobs", "-noheader", "-o", "pend_reason delimiter='|'", never).startswith(
        "Dependency condition inv"
    )


def test_hosts_slots_and_gpus_are_shared(lsf: Lsf) -> None:
    big = lsf.submit("-n", 3, "-R", "span[ptile=1]", "-x", "-o", "/dev/null", "sleep 300")
    lsf.wait(big, "RUN")
    lsf.submit("-o", "/dev/null", "-n", 99, "true")  # it keeps nobody from running
    small = lsf.submit("-o", "/dev/null", "-gpu", "num=4", "sleep 300")
    assert lsf.state(small) == "PEND"
    lsf.ask("bkill", big)
    lsf.wait(small, "RUN")
    where = inside(lsf, "echo $LSB_HOSTS $CUDA_VISIBLE_DEVICES", "-gpu", "num=1").stdout
    assert where == "node2 0\n"  # the GPUs of the first are taken, its slots are not


def test_the_time_that_is_left(lsf: Lsf) -> None:
    limited, endless = (
        lsf.submit("-W", "1:30", "-o", "/dev/null", "sleep 300"),
        lsf.submit("-o", "/dev/null", "sleep 300"),
    )
    for job in (limited, endless):
        lsf.wait(job, "RUN")
    assert lsf.ask("bjobs", "-noheader", "-o", "time_left", limited) in ("1:30 L", "1:29 L")
    assert lsf.ask("bjobs", "-noheader", "-o", "time_left", endless) == "-"


def test_a_time_limit(lsf: Lsf, tmp_path: Path) -> None:
    plain = lsf.submit("-W", 1, "-o", "plain", "sleep 300")
    trap = "trap 'echo warned; exit 124' USR2; while :; do sleep 0.02; done"
    warned = lsf.submit("-W", "0:1", "-o", "warned", "-n", 2, trap)
    deaf = lsf.submit("-q", "short", "-o", "deaf", "-n", 2, "trap '' USR2; while :; do sleep 0.02; done")
    for job, code in ((plain, "140"), (warned, "124"), (deaf, "137")):
        lsf.wait(job, "EXIT")
        answer = lsf.ask("bjobs", "-noheader", "-o", "exit_code exit_reason delimiter='^'", job)
        assert answer == f"{code}^TERM_RUNLIMIT: job killed after reaching LSF run time limit"
    report = (tmp_path / "warned").read_text()
    assert "\nTERM_RUNLIMIT: job killed after reaching LSF run time limit.\nExited with exit code 124.\n" in report
    assert "\nwarned\n" in report


def test_bkill(lsf: Lsf, tmp_path: Path) -> None:
    trap = "trap 'echo $0 got TERM; exit 5' TERM; trap '' INT; echo up >up.$LSB_JOBID; while :; do sleep 0.02; done"
    jobs = [lsf.submit("-n", slots, "-o", "%J.out", trap) for slots in (2, 2, 1)]
    for job in jobs:
        until((tmp_path / f"up.{job}").exists, "it runs")
    asked, parallel, single = jobs
    assert lsf.ask("bkill", "-s", "TERM", asked) == f"Job <{asked}> is being signaled"
    lsf.use(terminate_interval=0.1)
    assert lsf.ask("bkill", parallel, single).count("is being terminated") == 2
    codes = []
    for job in jobs:
        lsf.wait(job, "EXIT")
        codes.append(lsf.ask("bjobs", "-noheader", "-o", "exit_code exit_reason delimiter='^'", job))
    assert codes == ["5^-", "137^TERM_OWNER: job killed by owner", "5^TERM_OWNER: job killed by owner"]
    assert refused(lsf, "bkill", asked) == f"Job <{asked}>: Job has already finished"
    assert refused(lsf, "bkill", 98765) == "Job <98765>: No matching job found"
    waiting = lsf.submit("-n", 99, "true")
    assert refused(lsf, "bkill", "-s", "USR1", waiting) == f"Job <{waiting}>: Job has not started yet"


def test_bkill_by_steps_for_parallel_jobs_too(lsf: Lsf, tmp_path: Path) -> None:
    lsf.use(sequential_signals=True, terminate_interval=0.1)
    job = lsf.submit(
        "-n", 2, "-o", "/dev/null", "trap 'exit 6' TERM; trap '' INT; echo >up; while :; do sleep 0.02; done"
    )
    until((tmp_path / "up").exists, "it runs")
    lsf.ask("bkill", job)
    lsf.wait(job, "EXIT")
    assert lsf.ask("bjobs", "-noheader", "-o", "exit_code delimiter='^'", job) == "6"


def test_bjobs_answers(lsf: Lsf) -> None:
    job = lsf.submit("-n", 3, "-R", "span[ptile=2]", "-o", "/dev/null", "exit 3")
    lsf.wait(job, "EXIT")
    fields = "jobid stat exit_code exec_host delimiter='^'"
    header = "JOBID^STAT^EXIT_CODE^EXEC_HOST"
    assert lsf.ask("bjobs", "-o", fields, job).splitlines() == [header, f"{job}^EXIT^3^node1:node1:node2"]
    assert lsf.ask("bjobs", "-noheader", "-o", "jobid stat exec_host", job) == f"{job:<7} EXIT  *ode1:node2"
    lsf.use(counted_hosts=True)
    assert lsf.ask("bjobs", "-noheader", "-o", fields, job) == f"{job}^EXIT^3^2*node1:node2"
    record = {"JOBID": str(job), "STAT": "EXIT", "EXIT_CODE": "3", "EXEC_HOST": "2*node1:node2"}
    found = json.loads(lsf.ask("bjobs", "-json", "-o", fields, job))
    assert found == {"COMMAND": "bjobs", "JOBS": 1, "RECORDS": [record]}


@pytest.mark.parametrize("status", [255, 0])
def test_bjobs_of_an_unknown_job(lsf: Lsf, status: int) -> None:
    job = lsf.submit("-o", "/dev/null", "true")
    lsf.wait(job, "DONE")
    lsf.use(unknown_status=status)
    ask = ["bjobs", "-noheader", "-o", "stat delimiter='^'"]
    both = lsf.run([*ask, job, 98765])
    assert (both.returncode, both.stdout, both.stderr) == (255, "DONE\n", "Job <98765> is not found\n")
    lsf.forget(job)
    gone = lsf.run([*ask, job])
    assert (gone.returncode, gone.stdout, gone.stderr) == (status, "", f"Job <{job}> is not found\n")
    assert lsf.state(job) == ""


@pytest.mark.parametrize("tracking", [False, True])
def test_what_a_job_leaves_running(lsf: Lsf, tracking: bool) -> None:
    lsf.use(process_tracking=tracking)
    job = lsf.submit("-o", "/dev/null", "setsid sleep 321 & until pgrep -f '^sleep 321'; do :; done")
    lsf.wait(job, "DONE")
    left = [pid for pid, command in lsf.bed.processes("node1") if command == "sleep 321"]
    if tracking:
        until(lambda: not lsf.bed.processes("node1"), "it is killed")
    else:
        assert len(left) == 1
        os.kill(lsf.bed.pid_in_root("node1", left[0]), signal.SIGKILL)


# -- blaunch


def test_blaunch_starts_tasks_on_the_jobs_hosts(lsf: Lsf, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node2\nnode1\n")
    ways = ("", '-z "node2 node1"', f"-u {tmp_path}/hosts", "node2", "-n node2")
    command = "; ".join(f"blaunch {way} 'echo $(hostname) $LSB_JOBID $PWD $MINE $(cat)'; echo --" for way in ways)
    done = inside(lsf, f"export MINE=yes; {command}", "-n", 3, "-R", "span[ptile=2]")
    assert done.stderr == ""
    found = [sorted(part.split()[::4]) for part in done.stdout.split("--\n")]
    assert found[:5] == [["node1", "node1", "node2"], *[["node1", "node2"]] * 2, ["node2"], ["node2"]]
    assert f" {tmp_path} yes\n" in done.stdout


NO_BLAUNCH = [
    "",
    "node1",
    "-z 'node1 node3' hostname",
    "-z '' hostname",
    "node3 hostname",
    "-u nothing hostname",
    "-z node1 -u hosts hostname",
    "-N node1 hostname",
    "-nz node1 hostname",
    "-no-shell hostname",
    "-use-login-shell hostname",
]


def test_blaunch_refuses_the_rest(lsf: Lsf) -> None:
    commands = "; ".join(f"blaunch {words}; echo $?" for words in NO_BLAUNCH)
    done = inside(lsf, commands, *TWO[:4])
    assert done.stdout.split() == ["255"] * len(NO_BLAUNCH)


def test_blaunch_works_in_jobs_only(lsf: Lsf) -> None:
    assert refused(lsf, "blaunch", "hostname")
    job = lsf.submit("-o", "/dev/null", "sleep 300")
    lsf.wait(job, "RUN")
    assert refused(lsf, "blaunch", "hostname", env={"LSB_JOBID": str(job)})
    done = lsf.bed.run("node3", [lsf.bin / "blaunch", "hostname"], env={"LSB_JOBID": str(job)})
    assert done.returncode == 255


@pytest.mark.parametrize(("way", "expected"), [("first", "a0"), ("all", "a0 a1"), ("none", "")])
def test_blaunch_and_stdin(lsf: Lsf, way: str, expected: str) -> None:
    lsf.use(blaunch_stdin=way)
    words = "blaunch -z 'node1 node2' 'sed s/$/$(hostname | tr -d node | tr 12 01)/'"
    assert " ".join(sorted(inside(lsf, words, *TWO[:4], input="a\n").stdout.split())) == expected


@pytest.mark.parametrize(("way", "status"), [("highest", 2), ("zero", 0)])
def test_blaunch_and_failures(lsf: Lsf, way: str, status: int) -> None:
    lsf.use(blaunch_status=way)
    assert inside(lsf, "blaunch 'exit $(hostname | tr -d node)'", *TWO[:4]).returncode == status


@pytest.mark.parametrize("shell", [True, False])
def test_blaunch_and_the_words_of_its_command(lsf: Lsf, shell: bool) -> None:
    lsf.use(shell_words=shell)
    done = inside(lsf, "blaunch node1 echo 'a;   echo b'")
    assert done.stdout == ("a\nb\n" if shell else "a;   echo b\n")


def test_tasks_hear_signals_and_die_with_blaunch(lsf: Lsf, tmp_path: Path) -> None:
    task = "trap 'echo $(hostname) got it >>heard' TERM; echo >up.$(hostname); while :; do sleep 0.02; done"
    job = lsf.submit(*TWO, f'trap "" TERM; blaunch "{task.replace("$", chr(92) + "$")}"')
    until(lambda: all((tmp_path / f"up.node{index}").exists() for index in (1, 2)), "both run")
    lsf.ask("bkill", "-s", "TERM", job)
    until(lambda: (tmp_path / "heard").exists() and "node2 got it" in (tmp_path / "heard").read_text(), "it is heard")
    lsf.ask("bkill", job)
    lsf.wait(job, "EXIT")
    until(lambda: not lsf.bed.processes("node2"), "the end of all")


# -- hosts that are lost


def test_a_job_whose_first_host_is_lost(lsf: Lsf) -> None:
    job = lsf.submit(*TWO, "sleep 300")
    lsf.wait(job, "RUN")
    lsf.bed.poweroff("node1")
    assert lsf.wait(job, "UNKWN", "EXIT") == "UNKWN"
    assert lsf.ask("bkill", job) == f"Job <{job}> is being terminated"
    assert lsf.state(job) == "ZOMBI"
    assert inside(lsf, "hostname").stdout == "node2\n"
    lsf.bed.boot("node1")
    assert lsf.wait(job, "EXIT") == "EXIT"
    assert inside(lsf, "hostname").stdout == "node1\n"


def test_a_task_whose_host_is_lost(lsf: Lsf, tmp_path: Path) -> None:
    process, job = popen_job(lsf, "bsub", "-I", *TWO[:4], "blaunch node2 'echo >up; sleep 300' 2>said; echo $?")
    until((tmp_path / "up").exists, "it runs")
    lsf.bed.kill("node2")
    assert process.stdout is not None
    assert process.stdout.readline() == "255\n"
    assert ended(process) == 0
    assert "node2" in (tmp_path / "said").read_text()
    assert lsf.wait(job, "DONE") == "DONE"


# -- CORAL


def on_coral(lsf: Lsf, words: str, nodes: int = 2, **more: Any) -> subprocess.CompletedProcess[str]:
    return inside(lsf, words, "-nnodes", nodes, env={"TMPDIR": ""} | more.pop("env", {}), **more)


def test_nodes_of_coral(coral: Lsf) -> None:
    show = "unset TMPDIR; echo $(hostname) $LSB_MCPU_HOSTS, $LSB_DJOB_NUMPROC ${CSM_ALLOCATION_ID:+set}"
    assert on_coral(coral, show).stdout == "node1 node1 1 node2 4 node3 4 , 9 set\n"
    for words in ("-n 2", "-nnodes 2 -R span[ptile=1]", ""):
        assert refused(coral, "bsub", *words.split(), "true")


def test_there_is_no_jsrun_elsewhere(lsf: Lsf) -> None:
    assert inside(lsf, "jsrun -r1 -a1 hostname; echo $CSM_ALLOCATION_ID").stdout == "\n"


JSRUN = "unset TMPDIR; jsrun"


def test_jsrun_finds_the_compute_nodes_and_tells_tasks(coral: Lsf) -> None:
    show = "echo $(hostname) $JSM_NAMESPACE_RANK/$JSM_NAMESPACE_SIZE $JSM_NAMESPACE_LOCAL_RANK $PMIX_RANK $MINE"
    agents = "-n 2 -r 1 -a 1 -c ALL_CPUS -g ALL_GPUS -b none --smpiargs=off -X 1"
    done = on_coral(coral, f"{JSRUN} -r1 -a1 hostname; {JSRUN} {agents} -E MINE=yes sh -c '{show}'")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert sorted(lines[:2]) == ["node2", "node3"]
    assert sorted(lines[2:]) == ["node2 0/2 0 0 yes", "node3 1/2 0 1 yes"]
    done = on_coral(
        coral, f"{JSRUN} -n2 -r1 -a2 -g1 -e prepended sh -c 'echo $CUDA_VISIBLE_DEVICES $OMPI_COMM_WORLD_LOCAL_RANK'"
    )
    assert sorted(done.stdout.splitlines()) == ["0: 0 0", "1: 0 1", "2: 0 0", "3: 0 1"]


def test_jsrun_and_files(coral: Lsf, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("input\n")
    done = on_coral(coral, f"{JSRUN} -n1 -t in -o out -k err -h {tmp_path} sh -c 'cat; pwd; echo wrong >&2'")
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "out").read_text() == f"input\n{tmp_path}\n"
    assert (tmp_path / "err").read_text() == "wrong\n"


@pytest.mark.parametrize(("way", "expected"), [("first", "0"), ("all", "0 1"), ("none", "")])
def test_jsrun_and_stdin(coral: Lsf, way: str, expected: str) -> None:
    coral.use(jsrun_stdin=way)
    task = 'read line && echo "$PMIX_RANK"'
    words = f"printf 'a\\n' >in; {JSRUN} -n2 -r1 sh -c '{task}' <in; echo -; {JSRUN} -n2 -r1 -I1 sh -c '{task}' <in"
    by_way, chosen = on_coral(coral, words).stdout.split("-")
    assert (" ".join(sorted(by_way.split())), chosen.split()) == (expected, ["1"])


@pytest.mark.parametrize(("way", "status"), [("first", 3), ("highest", 137)])
def test_jsrun_and_failures(coral: Lsf, way: str, status: int) -> None:
    coral.use(jsrun_status=way)
    task = "test $PMIX_RANK = 1 && exit 3; sleep 300"
    assert on_coral(coral, f"{JSRUN} -n2 -r1 -X 1 sh -c '{task}'").returncode == status


@pytest.mark.parametrize(
    "words",
    [
        "hostname",  # -n missing is no mistake, TMPDIR is
        "-n 2",
        "-n 0 hostname",
        "-N 2 hostname",
        "--nr 2 hostname",
        "-n 2 -a 1 -p 2 hostname",
        "-n 1 -c 5 hostname",
        "-n 1 -g 5 hostname",
        "-n 1 -c ALL hostname",
        "-n 3 -r 1 hostname",
        "-r 2 -c ALL_CPUS hostname",
        "-n 1 -b packed hostname",
        "-n 1 -d random hostname",
        "-n 1 -X 2 hostname",
        "-n 1 -e individual hostname",
        "-n 1 -E NOT_SET_ANYWHERE hostname",
        "-n 1 -E TMPDIR=/tmp hostname",
        "--help",
    ],
)
def test_jsrun_refuses_the_rest(words: str) -> None:
    with pytest.raises(Refusal):
        lsf_jsrun.layout(words.split(), {"TMPDIR": "/t"} if words == "hostname" else {}, 4, 4, 2, True)


def test_tmpdir_may_be_harmless() -> None:
    assert lsf_jsrun.layout(["hostname"], {"TMPDIR": "/t"}, 4, 4, 2, False).sets == 1


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        ("-n 3 -a 2 -c 2", [("a", [0]), ("a", [1]), ("a", [2]), ("a", [3]), ("b", [0]), ("b", [1])]),
        ("-n 2 -r 1 -p 4 -c 4 -d cyclic -b none", [("a", [0, 1, 2, 3]), ("b", [0, 1, 2, 3])] * 2),
        (
            "-n 2 -r 1 -a 3 -c 4 -d plane:2 -b rs",
            [*[("a", [0, 1, 2, 3])] * 2, *[("b", [0, 1, 2, 3])] * 2, ("a", [0, 1, 2, 3]), ("b", [0, 1, 2, 3])],
        ),
        ("-r 1 -a 2 -c 4 -b packed:2", [("a", [0, 1]), ("a", [2, 3]), ("b", [0, 1]), ("b", [2, 3])]),
    ],
)
def test_layouts_of_jsrun(words: str, ranks: list[tuple[str, list[int]]]) -> None:
    plan = lsf_jsrun.layout([*words.split(), "x"], {}, 4, 0, 2, True)
    placement = plan.fit(Pool({name: Share([0, 1, 2, 3], []) for name in "ab"}))
    assert placement is not None
    assert [(host, list(cpus)) for host, cpus, _ in plan.tasks(placement)] == ranks


def test_a_second_jsrun_waits_for_cores(coral: Lsf) -> None:
    words = f"{JSRUN} -n1 -c ALL_CPUS sh -c 'echo one; sleep 0.2; echo two' & {JSRUN} -n1 -c ALL_CPUS echo three; wait"
    assert on_coral(coral, f"{JSRUN} true; {words}", nodes=1).stdout.split() in (
        ["one", "two", "three"],
        ["three", "one", "two"],
    )


# -- as a whole


def test_wait_and_ask_say_what_is_wrong(lsf: Lsf) -> None:
    job = lsf.submit("-n", 99, "true")
    with pytest.raises(BedError, match="not RUN but PEND"):
        lsf.wait(job, "RUN", seconds=0.05)
    with pytest.raises(BedError, match="No such queue"):
        lsf.submit("-q", "nowhere", "true")


def test_commands_work_in_the_hosts(lsf: Lsf) -> None:
    done = lsf.bed.run("node3", ["bsub", "-K", "-o", "/dev/null", "exit 9"], env=lsf.environ)
    assert done.returncode == 9


def test_restore_ends_jobs_and_mends_hosts(lsf: Lsf) -> None:
    first, second = (lsf.submit("-n", 3, "-R", "span[ptile=1]", "-x", "-o", "/dev/null", "sleep 300") for _ in range(2))
    lsf.wait(first, "RUN")
    lsf.bed.poweroff("node1")
    lsf.wait(first, "UNKWN")
    lsf.restore()
    assert [lsf.state(job) for job in (first, second)] == ["EXIT", "EXIT"]


def test_nothing_is_left_of_it(bed: Bed) -> None:
    with Lsf(bed, name="another") as lsf:
        job = lsf.submit(*TWO, "blaunch sleep 300")
        until(lambda: "sleep 300" in {command for _, command in bed.processes("node2")}, "it runs")
        assert lsf_answers.slots([("a", 2)]) == ["a", "a"]
        assert lsf.state(job) == "RUN"
    assert not lsf.folder.exists()
    until(lambda: not bed.processes("node1") + bed.processes("node2"), "the end of all")
