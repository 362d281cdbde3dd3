"""What the command line asks Slurm for, and the scripts that it writes: without any Slurm."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import zlaunch
from zlaunch.backends import batch_script
from zlaunch.backends.slurm import Slurm
from zlaunch.cli import papers
from zlaunch.cli.grammar import UsageError, split
from zlaunch.cli.job import Job, job
from zlaunch.cli.main import main
from zlaunch.model import AllocationRequest

GOLDENS = Path(__file__).parent / "goldens"
IN_JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3"}
NODE = "-p gpus_per_node=0 numa_domains=2 cores_per_node=16"
GPU_NODE = "-p gpus_per_node=4 gpu_arch=a100 mem_per_gpu=80 cores_per_node=64"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a script in it, on a machine without a scheduler and without GPUs."""
    for name in [*(name for name in os.environ if name.startswith("SLURM_")), "ZLAUNCH_LOG_DIR"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit('it ran')\n")
    (tmp_path / "own.sh").write_text("#!/bin/sh\n")
    return tmp_path


def made(line: str, **environ: str) -> Job:
    return job(split(shlex.split(line)), {"PATH": os.environ["PATH"], **environ})


def asked(line: str, **environ: str) -> list[str]:
    """The arguments of salloc."""
    return Slurm().words(made(line, **environ).request, {})


def configured(tmp_path: Path) -> dict[str, str]:
    """The environment of a login node: sbatch is there, and has its configuration."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    return {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_CONF": "/nowhere/slurm.conf"}


# --- what is asked for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", "--nodes=1 --ntasks-per-node=1 --job-name=train.py --no-kill"),
        ("-N 4 -n 8", "--nodes=4 --ntasks-per-node=8 --job-name=train.py --no-kill"),
        ("-n 2 -q debug -J trial", "--nodes=1 --ntasks-per-node=2 --job-name=trial --partition=debug --no-kill"),
        ("-n 2 -t 480", "--nodes=1 --ntasks-per-node=2 --job-name=train.py --time=480 --no-kill"),
        ("-n 2 -t 1.5", "--nodes=1 --ntasks-per-node=2 --job-name=train.py --time=2 --no-kill"),
        (
            "-n 1 --account ml --reservation dat --dependency afterok:1:2,afterany:3_4 --exclusive",
            "--nodes=1 --ntasks-per-node=1 --job-name=train.py --account=ml --reservation=dat "
            "--dependency=afterok:1:2,afterany:3_4 --exclusive --no-kill",
        ),
        (
            "-n 1 -x --ntasks-per-node=7 -x~--no-kill -x --mem=4G -x -N=3",
            "--nodes=3 --ntasks-per-node=7 --job-name=train.py --mem=4G",
        ),
        (
            "-n 1 -x -w=n1 -x --contiguous",
            "--nodes=1 --ntasks-per-node=1 --job-name=train.py --no-kill -w n1 --contiguous",
        ),
        ("-n cpu", "--nodes=1 --ntasks-per-node=1 --job-name=train.py --exclusive --no-kill"),
        (f"{NODE} -n cpu", "--nodes=1 --ntasks-per-node=1 --job-name=train.py --no-kill"),
        (f"{NODE}", "--nodes=1 --ntasks-per-node=2 --job-name=train.py --no-kill"),
        (f"{GPU_NODE} -N 2", "--nodes=2 --ntasks-per-node=4 --job-name=train.py --no-kill --gpus-per-node=4"),
        (f"{GPU_NODE} -g 32", "--nodes=8 --ntasks-per-node=4 --job-name=train.py --no-kill --gpus-per-node=4"),
        (
            f"{GPU_NODE} --gpumem-at-least 500 -n 2 --gpus-per-proc 2",
            "--nodes=2 --ntasks-per-node=2 --job-name=train.py --no-kill --gpus-per-node=4",
        ),
        (f"{GPU_NODE} -N 2 -x~--gpus-per-node", "--nodes=2 --ntasks-per-node=4 --job-name=train.py --no-kill"),
    ],
)
def test_what_slurm_is_asked_for(options: str, expected: str) -> None:
    assert asked(f"--scheduler slurm {options} -- train.py") == expected.split()


def test_ranks_that_hosts_had_better_count_are_left_to_them() -> None:
    assert made("--scheduler slurm train.py").workers == "auto"
    assert made("--scheduler slurm -n gpu train.py").workers == "gpu"
    assert made(f"--scheduler slurm {NODE} train.py").workers == 2


@pytest.mark.parametrize("value", ["two words", "it's", '"quoted"', "$HOME", "a;b", "back\\slash", "#x", "a,b", "-x"])
def test_a_value_is_one_word_whatever_is_in_it(value: str) -> None:
    words = asked(f"--scheduler slurm -n 1 --job-name={shlex.quote(value)} --account={shlex.quote(value)} train.py")
    assert f"--job-name={value}" in words
    assert f"--account={value}" in words


# --- whose nodes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-n 2", ""),
        ("-N 1 -n 4", ""),
        ("-N 2", "slurm"),
        ("-q debug", "slurm"),
        ("--exclusive", "slurm"),
        ("-x --mem=0", "slurm"),
        ("-x NCCL_DEBUG=INFO", ""),
        ("-t 5 -J trial", ""),
        (f"{GPU_NODE} -g 4", ""),
        (f"{GPU_NODE} -g 5", "slurm"),
        ("--bg", "slurm"),
        ("--scheduler SlurmScheduler", "slurm"),
        ("-p scheduler=slurm", "slurm"),
        ("--local -q debug", ""),
        ("--scheduler local --exclusive", ""),
        ("--hosts a,b -N 2", ""),
    ],
)
def test_a_scheduler_is_asked_where_it_is_needed_and_there(options: str, expected: str, tmp_path: Path) -> None:
    assert made(f"{options} -- train.py", **configured(tmp_path)).scheduler == expected


@pytest.mark.parametrize(
    ("options", "scheduler", "nodes"),
    [
        ("", "slurm", None),
        ("-N 2", "slurm", 2),
        ("-N 1:2", "slurm", 2),
        ("-N 1:9", "slurm", 3),
        ("--local", "", None),
        ("--standalone", "", None),
        ("--scheduler None", "", None),
        ("--hosts a", "", None),
    ],
)
def test_within_a_job_its_nodes_are_taken(options: str, scheduler: str, nodes: int | None) -> None:
    inside = made(f"{options} -n 2 train.py", **IN_JOB)
    assert (inside.scheduler, inside.request.nodes) == (scheduler, nodes)
    assert inside.inside == ("12" if scheduler else "")


def test_what_has_no_effect_is_told() -> None:
    inside = made("-n 2 -q debug --account me -x --mem=0 train.py", **IN_JOB)
    assert "job 12" in inside.notes[0]
    assert inside.notes[0].endswith("left aside: -q, --account")
    assert inside.request.step == (("--mem", "0"),)  # the agents' srun gets what Slurm is not asked for
    assert "left aside: --exclusive" in made("--local --exclusive train.py").notes[0]
    assert made("--bg -n 2 -q debug train.py", **IN_JOB).notes == ()  # a new job


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("-N 2 train.py", "-N 2: which hosts?", "--scheduler slurm"),
        ("-q debug train.py", "-q is for a scheduler, and none that zlaunch can use is configured here", "slurm.conf"),
        ("--bg train.py", "--bg is for a scheduler", ""),
        ("-x --mem=0 train.py", "-x is for a scheduler", ""),
        ("--hosts a -q debug train.py", "--hosts names hosts, and -q is for a scheduler", ""),
        ("--hosts a --scheduler slurm train.py", "--hosts names hosts, and --scheduler slurm means a scheduler's", ""),
        ("--hosts a -g 4 train.py", "-g finds the number of hosts, and --hosts names them", ""),
        ("--local --scheduler slurm train.py", "--local means this machine", ""),
        ("--local --bg train.py", "--bg needs a scheduler, and --local means this machine", ""),
        (
            "-p scheduler=pbs train.py",
            "-p scheduler=pbs: zlaunch does not know how",
            "there are none, flux, slurm, lsf",
        ),
        ("-p gpus=8 train.py", "there is no gpus parameter", "gpus_per_node"),
        (f"{GPU_NODE} -g 8 train.py", "-g 8: 2 hosts are needed, and this machine is one", "--scheduler slurm"),
        ("-g 8 -n 2 train.py", "-g and -n exclude each other", ""),
        ("-g 8 -N 2 train.py", "-g and -N exclude each other", ""),
        ("--scheduler slurm -N 1:2 train.py", "how many nodes shall there be?", "-N 2"),
        ("--scheduler slurm -N 2:1 train.py", "1 is less than 2", ""),
        ("--scheduler slurm -J 'a\nb' train.py", "no scheduler takes a line break", ""),
        ("--scheduler slurm -J= train.py", "-J needs a value", ""),
        ("--scheduler slurm -x '--mem=1\n#SBATCH -N9' train.py", "no scheduler takes a line break", ""),
        (
            "--scheduler slurm -x ntasks=8 train.py",
            "neither an argument of the scheduler's nor a variable",
            "--ntasks=8",
        ),
        ("--scheduler slurm -x '--a b=8' train.py", "neither an argument", ""),
        ("--scheduler slurm -x~--mem=8 train.py", "what is taken away has no value", "~--mem"),
        ("--scheduler slurm --dependency 123 train.py", "no dependency of Slurm's", "did you mean afterok:123?"),
        ("--scheduler slurm --dependency afterokay:1 train.py", "no dependency of Slurm's", "afterok:1234"),
        ("--scheduler slurm --dependency afterok:1,afterok:2?afterok:3 train.py", "no dependency of Slurm's", ""),
        ("--comm-backend NCCL -p gpus_per_node=0 -- train.py", "a node has no GPU", "MPI"),
        ("--comm-backend XCCL train.py", "there is no 'XCCL'", ""),
        ("--scheduler slurm --bg trian.py", "there is no script trian.py", "train.py"),
        ("--scheduler slurm --bg", "there is no COMMAND", ""),
        ("--scheduler slurm --batch-script nope.sh", "--batch-script nope.sh: No such file", ""),
        ("--scheduler slurm --batch-script train.py", "its first line is not #!", ""),
        ("--scheduler slurm -l train.py -- train.py", "train.py: this is no folder", ""),
        ("--scheduler slurm --bg -x -M=b train.py", "-x -M=b: a batch job is submitted to the cluster", "login node"),
        ("--scheduler slurm --bg -x --clusters=b train.py", "-x --clusters=b: a batch job", ""),
        ("--scheduler slurm --batch-script own.sh -x -Mb", "-x -Mb: a batch job", ""),
        ("--scheduler slurm --batch-script own.sh --setup x", "--setup is about a script that zlaunch writes", "there"),
        ("--scheduler slurm --batch-script own.sh -m x", "-m is about a script that zlaunch writes", ""),
        ("--scheduler slurm --batch-script own.sh --err x", "--err is about a script that zlaunch writes", ""),
    ],
)
def test_what_is_refused(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(line)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("form", ["afterok:1", "after:1+10", "singleton", "afterany:1?afterok:2", "aftercorr:5_*"])
def test_forms_of_dependencies(form: str) -> None:
    assert made(f"--scheduler slurm --dependency '{form}' train.py").request.dependency == form


def test_settings_of_a_known_system_come_below_the_users() -> None:
    matrix = {"SLURM_CLUSTER_NAME": "matrix", **IN_JOB}
    assert dict(made("train.py", **matrix).env) == {"MPICH_OFI_NIC_POLICY": "GPU"}
    assert dict(made("--env MPICH_OFI_NIC_POLICY=NUMA train.py", **matrix).env) == {"MPICH_OFI_NIC_POLICY": "NUMA"}
    assert made("--local train.py", **matrix).env == ()


def test_capitals_are_variables_for_the_ranks() -> None:
    env = dict(made("-x NCCL_DEBUG=INFO -x A=1 --env A=2 train.py").env)
    assert env == {"NCCL_DEBUG": "INFO", "A": "2"}


# --- what is shown and written --------------------------------------------------------------------------------------

SCRIPTS = {
    "plain": "--bg -N 2 -n 8 -J BERT_finetune bert_train.py",
    "production": "--verbose -N 16 -n 8 --gpus-per-proc 1 --fraction-max-gpu-mem 0.9 --comm-backend NCCL "
    "-q production -t 1440 --exclusive --bg -l production_run --account ai_training -J GPT_Training --save-hostlist "
    "-p gpu_arch=a100 mem_per_gpu=80 --out logs/gpt_out.log --err logs/gpt_err.log train_gpt.py --model-size 13B "
    "--learning-rate 1e-4",
    "odd": "--bg -n 2 -l 'a 100% folder' -J \"it's \\\"odd\\\" \\$x; #y\\\\\" -x --comment='two words' NCCL_DEBUG=INFO "
    "--setup 'module load cuda' --env 'A=b c' ./odd=program 'an\nargument' '$HOME' \"it's\"",
    "setup-only": "--setup-only -o torch_job.sh -N 4 -n 8 train.py",
    "current-folder": "--bg -l . --dependency afterok:12345 -N 2 -n 4 -m package.train",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_as_they_were(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for script in ("bert_train.py", "train_gpt.py", "package/train.py", "package/__init__.py"):
        (folder / script).parent.mkdir(exist_ok=True)
        (folder / script).write_text("")
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(papers, "_program", lambda _: ("/opt/zlaunch/bin/zlaunch",))
    monkeypatch.setattr(papers, "_new_folder", lambda name: f"zlaunch-{name}-TIME")
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["run", "--scheduler", "slurm", "--dry-run", *shlex.split(SCRIPTS[name])]) == 0
    text = capsys.readouterr().out.replace(str(folder), "/home/me").replace(zlaunch.__version__, "VERSION")
    assert sorted(folder.rglob("*")) == before
    golden = GOLDENS / f"slurm-{name}.txt"
    if os.environ.get("ZLAUNCH_WRITE_GOLDENS"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_arguments_for_what_starts_agents_are_said_in_the_job() -> None:
    line = "-x --mpi=pmix -x --comment=hi -x~--mpibind -x --gpu-bind=closest -x --exact -x A=1"
    bg = made(f"--scheduler slurm --bg -n 2 {line} train.py", LMOD_SYSTEM_NAME="matrix")
    assert bg.papers is not None
    inner = " ".join(bg.papers.command).partition(" run ")[2].partition(" --log-dir ")[0]
    said = "-x --mpi=pmix -x ~--mpibind -x --gpu-bind=closest -x --exact --env A=1"
    assert inner == f"--scheduler=slurm -n 2 {said}"
    within = made(shlex.join(bg.papers.command).partition(" run ")[2], LMOD_SYSTEM_NAME="matrix", **IN_JOB)
    assert within.request.step == bg.request.step
    assert ("--mpi", "pmix") in within.request.step
    assert ("A", "1") in within.env


@pytest.mark.parametrize("scheduler", ["slurm", "flux", "lsf"])
@pytest.mark.parametrize("odd", ["\n", "\r", "\x0b", "\u2028"])
def test_a_name_that_would_be_more_than_one_line_of_a_script(
    scheduler: str, odd: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run", "--scheduler", scheduler, "--setup-only", "-n", "1"]
    assert main([*words, "-l", f"a{odd}touch pwned", "train.py"]) == 2
    assert "there is a control character in it" in capsys.readouterr().err
    (folder / f"b{odd}c").mkdir()
    monkeypatch.chdir(folder / f"b{odd}c")
    assert main([*words, "-o", "x.sh", "true"]) == 2
    assert main([*words, "-l", "d", "--dry-run", "true"]) == 2
    assert list(Path().iterdir()) == []
    assert {path.name for path in folder.iterdir()} == {"train.py", "own.sh", f"b{odd}c"}


SETUPS = [
    "export A=1",
    "export A=1;",
    "export A=1 # why",
    "export A=0\nexport A=1\n",
    "read x; export A=1$x",
    "set -- b; A=1",
]


@pytest.mark.parametrize("setup", [*SETUPS, "false", "# none", "\n"])
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_what_a_scripts_shell_does_first(setup: str, shell: str, folder: Path) -> None:
    text = batch_script.script(
        [], version="1", typed=["x"], setup=setup, command=["sh", "-c", "cat; echo $A"], shell=shell
    )
    (folder / "go.sh").write_text(text.replace("echo $A", f"echo {'$A' if 'export' in setup else 1}"))
    done = subprocess.run([shell, "go.sh"], input="in\n", capture_output=True, text=True, timeout=30, check=False)
    good = setup in SETUPS or setup in ("# none", "\n")
    assert done.returncode == (0 if good else 125), done.stderr
    assert done.stderr == ""
    assert done.stdout == ("in\n1\n" if good else "")


def test_a_scripts_setup_has_the_functions_that_are_exported(folder: Path) -> None:
    words = ["run", "--scheduler", "slurm", "--setup-only", "-o", "go.sh", "-n", "1"]
    assert main([*words, "--setup", "module load cuda; exit 3", "train.py"]) == 0
    module = {"BASH_FUNC_module%%": '() { echo "$2" >loaded\n}'}
    done = subprocess.run([folder / "go.sh"], env={"PATH": os.environ["PATH"], **module}, timeout=30, check=False)
    assert done.returncode == 3
    assert (folder / "loaded").read_text() == "cuda\n"
    assert main([*words, "train.py"]) == 0
    assert (folder / "go.sh").read_text().startswith("#!/bin/sh\n")


def test_a_script_is_nobody_elses_business(folder: Path) -> None:
    words = ["run", "--scheduler", "slurm", "--setup-only", "-o", "go.sh", "-n", "1", "--env", "KEY=secret"]
    for before in (None, 0o755):
        if before:
            (folder / "go.sh").chmod(before)
        assert main([*words, "train.py"]) == 0
        assert stat.S_IMODE((folder / "go.sh").stat().st_mode) == 0o700


def test_a_dry_run_shows_what_would_be_asked_and_needs_no_slurm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["run", "--scheduler", "slurm", "-N", "2", "-n", "2", "-J", "a b", "--dry-run", "train.py"]) == 0
    out = capsys.readouterr().out
    assert "\nnodes, and agents on them: salloc --nodes=2 --ntasks-per-node=2 '--job-name=a b' --no-kill sh -c " in out
    assert "exec srun --overlap " in out
    assert "ssh" not in out
    assert main(["run", "--scheduler", "slurm", "-N", "2", "-n", "2", "-l", "new", "--dry-run", "train.py"]) == 0
    assert "\nnew/launch.sh:\n\n#!/bin/sh\n" in capsys.readouterr().out
    for name, value in IN_JOB.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "-n", "2", "--dry-run", "train.py"]) == 0
    out = capsys.readouterr().out
    assert "salloc" not in out
    assert "\nagents: srun --jobid=12 " in out
    assert " --nodes=3 --ntasks=3 " in out
    assert " '--nodelist=<node 1 of n[1-3]>,<node 2 of n[1-3]>,<node 3 of n[1-3]>' " in out
    assert "6 ranks on 3 hosts" in out
    assert {path.name for path in folder.iterdir()} == {"train.py", "own.sh"}


def test_a_script_of_this_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--local", "--setup-only", "-o", "made/go.sh", "-n", "2", "--", "./a=b", "x y"]) == 2
    assert "./a=b" in capsys.readouterr().err  # there is no such program
    assert main(["run", "--local", "--setup-only", "-o", "made/go.sh", "-n", "2", "train.py", "x y"]) == 0
    assert capsys.readouterr().out == "made/go.sh\n"
    text = (folder / "made" / "go.sh").read_text()
    assert "#SBATCH" not in text
    assert text.endswith(" run --local -n 2 train.py 'x y'\n")
    assert os.access(folder / "made" / "go.sh", os.X_OK)
    assert main(["run", "--local", "--setup-only", "-o", "made/go.sh", "-n", "3", "train.py"]) == 0  # ours to replace
    assert " -n 3 train.py\n" in (folder / "made" / "go.sh").read_text()


def test_a_launch_directory_of_a_run_that_is_waited_for(folder: Path) -> None:
    (folder / "train.py").write_text("import sys; print('here', sys.argv[1])\n")
    words = ["--local", "-n", "1", "--preload", "", "-l", "trial", "train.py", "x y"]
    done = subprocess.run(
        [sys.executable, "-m", "zlaunch", "run", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[rank 0] here x y\n", "")
    assert (folder / "trial" / "launch.sh").read_text().endswith(" --preload '' train.py 'x y'\n")
    assert [log.read_text() for log in folder.glob("trial/zlaunch_logs/*/localhost?0?.log")] == ["here x y\n"]
    assert {path.name for path in folder.iterdir()} - {"state"} == {"train.py", "own.sh", "trial"}


def test_a_file_of_the_users_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--local", "--setup-only", "-o", "train.py", "-n", "2", "train.py"]) == 2
    assert "left alone" in capsys.readouterr().err
    assert "it ran" in (folder / "train.py").read_text()


@pytest.mark.parametrize(
    ("options", "folder_name", "script", "logs"),
    [
        ("-l trial", "trial", "trial/launch.sh", "trial/zlaunch_logs"),
        ("-l .", ".", "./launch.sh", "./zlaunch_logs"),
        ("-l trial --log-dir mine", "trial", "trial/launch.sh", "trial/mine"),
        ("-l trial --log-dir /mine", "trial", "trial/launch.sh", "/mine"),
        ("-l trial --log-dir none", "trial", "trial/launch.sh", None),
        ("-l trial -o job.sh", "trial", "job.sh", "trial/zlaunch_logs"),
        ("-o job.sh", None, "job.sh", "zlaunch_logs"),
        ("-l", "NEW", "NEW/launch.sh", "NEW/zlaunch_logs"),
        ("--bg", "NEW", "NEW/launch.sh", "NEW/zlaunch_logs"),
        ("--bg -o job.sh", "NEW", "job.sh", "NEW/zlaunch_logs"),
        ("--setup-only", "NEW", "NEW/launch.sh", "NEW/zlaunch_logs"),
    ],
)
def test_where_things_go(
    options: str, folder_name: str | None, script: str, logs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(papers, "_new_folder", lambda _: "NEW")
    there = made(f"--scheduler slurm {options} -n 2 -- train.py")
    assert there.papers is not None
    assert (there.papers.folder, there.papers.script, there.log_dir) == (folder_name, script, logs)
    assert there.papers.is_new == (folder_name == "NEW")


def test_without_a_word_about_papers_there_are_none() -> None:
    assert made("-n 2 train.py").papers is None


def test_a_script_of_the_users_is_submitted_with_what_was_said() -> None:
    own = made("--scheduler slurm --batch-script own.sh -N 2 -t 5 an 'argu ment'")
    assert own.papers is not None
    argv = Slurm().submit_argv("/own.sh", Slurm().words(own.request, {}, own=True), own.argv)
    assert argv == ("sbatch", "--parsable", "--nodes=2", "--time=5", "/own.sh", "an", "argu ment")


def test_what_has_no_effect_on_a_script_of_the_users_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--scheduler", "slurm", "--batch-script", "own.sh", "--dry-run", "--env", "A=b c", "-x", "B=2"]
    assert main(["run", *words, "--preload", "", "--grace=5"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("A='b c' B=2 sbatch ") or printed.out.startswith("B=2 A='b c' sbatch ")
    assert printed.err == "zlaunch: your script is submitted as it is; left aside: --preload, --grace\n"
    assert main(["run", *words, "-N", "2", "-J", "x", "-p", "gpus_per_node=0", "--verbose"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("answer", "number"), [("12\n", "12"), ("12;cluster\n", "12"), ("hello\n12\n", "12"), ("", None), ("no\n", None)]
)
def test_what_sbatch_answers(answer: str, number: str | None) -> None:
    assert Slurm().job_id(answer) == number


def test_a_request_without_words_is_the_least() -> None:
    assert Slurm().words(AllocationRequest(), {}) == ["--nodes=1", "--ntasks-per-node=1", "--no-kill"]
    assert Slurm().words(AllocationRequest(), {}, own=True) == []


def test_hosts_that_are_there_are_asked_whether_they_can(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--hosts", "localhost", "-n", "1", "--preload", "", "--comm-backend"]
    assert main(["run", *words, "NCCL", "train.py"]) == 2
    assert "--comm-backend NCCL: there is no GPU on localhost; use MPI" in capsys.readouterr().err
    assert main(["run", *words, "MPI", "train.py"]) == 1  # "it ran", and so ended
