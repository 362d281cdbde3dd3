"""What the options mean, and what is wrong with them before anything starts."""

import os
import shlex
from pathlib import Path

import pytest

from zlaunch.cli.grammar import UsageError, split
from zlaunch.cli.job import Job, job


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit('it ran')\n")
    package = tmp_path / "pack"
    (package / "runs").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    (package / "step.py").write_text("")
    (package / "runs" / "__main__.py").write_text("")
    (package / "runs" / "__init__.py").write_text("")
    (tmp_path / "data").write_text("")
    (tmp_path / "good.env").write_text("A=file\nB='two words' # why\n")
    (tmp_path / "bad.env").write_text("A=1\nnonsense\n")
    (tmp_path / "hosts.txt").write_text("node1 slots=2  # big\n\nme@node2 slots=1\n")
    (tmp_path / "bad.txt").write_text("node1\nnode2 two\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    return tmp_path


def made(line: str, **environ: str) -> Job:
    return job(split(shlex.split(line)), {"PATH": os.environ["PATH"], **environ})


def test_the_defaults() -> None:
    plain = made("train.py")
    assert (plain.kind, plain.argv, plain.name) == ("script", ("train.py",), "train.py")
    assert plain.workers == "auto"
    assert plain.grace == 30
    assert plain.time_limit is None
    assert plain.log_dir == "zlaunch_logs"
    assert plain.preload == ("torch",)
    assert not plain.save_hostlist
    assert (plain.hosts, plain.ssh_config, plain.python, plain.setup) == (None, None, None, None)
    assert plain.host_timeout == 4.5


def test_everything_at_once() -> None:
    full = made(
        "-v -N 1 -n 4 --gpus-per-proc 2 --fraction-max-gpu-mem 0.8 -u --local -t 1.5 --env A=1 --env HOME "
        "--out o/x --err o/x --color-stderr --log-dir none --ranks 0,2-3 --view json --max-restarts 2 "
        "--grace 0.5 "
        "--preload json,os.path --start-method spawn --dry-run -r tcp -J trial train.py --lr 1",
        HOME="/h",
    )
    assert full.argv == ("train.py", "--lr", "1")
    assert full.name == "trial"
    assert (full.workers, full.gpus_per_worker, full.gpu_memory_fraction) == (4, 2, 0.8)
    assert full.time_limit == 90
    assert full.env == (("A", "1"), ("HOME", "/h"))
    assert (full.out, full.err, full.log_dir) == ("o/x", "o/x", None)
    assert (full.ranks, full.view, full.max_restarts, full.grace) == ("0,2-3", "json", 2, 0.5)
    assert full.preload == ("json", "os.path")
    assert full.start_method == "spawn"
    assert full.unswap_rocr_hip
    assert full.dry_run
    assert full.save_hostlist


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("train.py", "script"),
        ("./train.py", "script"),
        ("-m pack.step", "module"),
        ("-m pack.runs", "module"),
        ("-m json.tool", "module"),
        ("python train.py", "command"),
        ("/bin/sh -c true", "command"),
    ],
)
def test_what_a_command_is(line: str, kind: str) -> None:
    assert made(line).kind == kind


@pytest.mark.parametrize("count", ["1", "1:1"])
def test_one_host_needs_no_list(count: str) -> None:
    assert made(f"--nnodes {count} --nproc-per-node 4 train.py --lr 1").workers == 4


@pytest.mark.parametrize(
    ("options", "hosts", "workers"),
    [
        ("--hosts a,me@b", ("a", "me@b"), "auto"),
        ("--hosts a:2,[::1]:1", ("a", "::1"), (2, 1)),
        ("--hosts a:2,b:1 -n 4", ("a", "b"), 4),
        ("--hosts a:2,b -n 4", ("a", "b"), 4),
        ("--hosts a,b -n gpu", ("a", "b"), "gpu"),  # theirs, which this machine does not know
        ("--hosts a,b,c -N 2", ("a", "b"), "auto"),
        ("--hosts a:1,b:2,c -N 2", ("a", "b"), (1, 2)),
        ("--hosts a,b,c --nnodes 2:8", ("a", "b", "c"), "auto"),
        ("--hosts localhost --scheduler None", ("localhost",), "auto"),
        ("--hostfile hosts.txt", ("node1", "me@node2"), (2, 1)),
        ("--hostfile hosts.txt -N 1", ("node1",), (2,)),
    ],
)
def test_hosts_and_their_ranks(options: str, hosts: tuple[str, ...], workers: object) -> None:
    there = made(f"{options} train.py", CUDA_VISIBLE_DEVICES="")
    assert (there.hosts, there.workers) == (hosts, workers)


def test_how_hosts_are_reached(folder: Path) -> None:
    words = ["--hosts=a", "--ssh-config=data", "--setup= module load x ", "--host-timeout=9", "train.py"]
    there = job(split(["--python=venv/bin/python", *words]), {})
    assert (there.ssh_config, there.setup, there.host_timeout) == ("data", "module load x", 9)
    assert there.python == str(folder / "venv" / "bin" / "python")  # a path here is the path there
    assert job(split(["--python=python3.12", *words]), {}).python == "python3.12"
    assert job(split(["--python=~/py", *words]), {}).python == "~/py"  # the home there


def test_env_wins_over_the_file() -> None:
    assert dict(made("--env A=here --env-file good.env train.py").env) == {"A": "here", "B": "two words"}


def test_log_dir_from_the_environment() -> None:
    assert made("train.py", ZLAUNCH_LOG_DIR="").log_dir is None
    assert made("train.py", ZLAUNCH_LOG_DIR="elsewhere").log_dir == "elsewhere"
    assert made("--log-dir here train.py", ZLAUNCH_LOG_DIR="").log_dir == "here"


def test_pythonpath_for_the_ranks_is_searched(folder: Path) -> None:
    (folder / "lib").mkdir()
    (folder / "lib" / "faraway.py").write_text("")
    assert made(f"--env PYTHONPATH={folder}/lib -m faraway").argv == ("faraway",)


def test_a_package_that_finds_its_own_modules_gets_its_way(folder: Path) -> None:
    (folder / "pack" / "__init__.py").write_text("__path__.append('elsewhere')\n")
    assert made("-m pack.from_elsewhere").kind == "module"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("", "there is no COMMAND", "zlaunch run"),
        ("-n 0 train.py", "-n 0: at least 1", ""),
        ("-n -2 train.py", "-n -2: at least 1", ""),
        ("-n four train.py", "-n: expected a number of ranks, gpu, cpu or auto, not 'four'", ""),
        ("-n 0 nothing.py", "-n 0", ""),
        ("-N 2 train.py", "-N 2: which hosts?", "--hosts A,B or --hostfile FILE name them"),
        ("--nnodes 1:4 train.py", "--nnodes 1:4: which hosts?", "-N 1"),
        ("--hosts a,b -N 3 train.py", "-N 3: there are 2 in the list of hosts", ""),
        ("--hosts a -N 2:3 train.py", "-N 2:3: there is one in the list of hosts", ""),
        ("--hosts a,a train.py", "--hosts: a is in the list twice", ""),
        ("--hosts a:x train.py", "--hosts: 'x' is not a number of ranks", ""),
        ("--hosts a:2,b train.py", "b has no number of ranks, and other hosts have", "-n N"),
        ("--hosts a --hostfile hosts.txt train.py", "--hosts and --hostfile: which of them?", ""),
        ("--hosts a --local train.py", "--hosts names hosts, and --local means this machine", ""),
        ("--hostfile hosts.txt --standalone train.py", "--standalone means this machine", ""),
        ("--hosts a --scheduler local train.py", "--scheduler local means this machine", ""),
        ("--hostfile nope train.py", "--hostfile nope: No such file", ""),
        ("--hostfile binary train.py", "--hostfile binary: it is no text", ""),
        ("--hostfile bad.txt train.py", "--hostfile: bad.txt, line 2: 'two' is not known here", ""),
        ("--hosts a --ssh-config nope train.py", "--ssh-config nope: there is no such file", ""),
        ("--python python3 train.py", "--python is for other hosts", "--hosts"),
        ("--setup x train.py", "--setup is for other hosts", "--hosts"),
        ("--hosts a --python= train.py", "expected an interpreter's path", ""),
        ("--hosts a --host-timeout soon train.py", "--host-timeout: expected seconds", ""),
        ("-N 0 train.py", "expected a number of hosts", ""),
        ("trian.py", "there is no script trian.py", "did you mean train.py?"),
        ("./trian.py", "there is no script ./trian.py", "train.py?"),
        ("nowhere/train.py", "there is no script nowhere/train.py", "there is no folder nowhere"),
        ("train", "there is no program train on PATH", "did you mean train.py?"),
        ("data", "there is no program data on PATH", "./data"),
        ("./data", "./data is not executable", "chmod +x"),
        ("pack", "pack is a folder", "-m"),
        ("pyhton train.py", "there is no program pyhton", "python"),
        ("'python train.py'", "there is no script python train.py", "one word"),
        ("'ls -l'", "there is no program ls -l", "sh -c"),
        ("'./data 1'", "there is no program ./data 1", "one word"),
        ("A=1 python train.py", "there is no program A=1", "--env A=1"),
        ("-m train.py", "this is a file, not a module", "leave out -m"),
        ("-m pack.setp", "there is no module setp in pack", "did you mean step?"),
        ("-m packk.step", "there is no module packk", "did you mean pack?"),
        ("-m pack", "has no __main__.py", ""),
        ("-m 3x", "not a module's name", ""),
        ("--preload torhc train.py", "--preload torhc: there is no module torhc", ""),
        ("--ranks 3-1 train.py", "--ranks", ""),
        ("--ranks one train.py", "--ranks", ""),
        ("-t 0 train.py", "more than 0 minutes", ""),
        ("-t soon train.py", "expected minutes", ""),
        ("-t nan train.py", "expected minutes", ""),
        ("--grace -1 train.py", "--grace -1", ""),
        ("--hosts a --host-timeout 1 train.py", "--host-timeout 1: 1.5 at least", ""),
        ("--hosts a --agent-timeout 0 train.py", "--agent-timeout 0: 1 at least", ""),
        ("--max-restarts 1.5 train.py", "--max-restarts: expected a whole number", ""),
        ("--fraction-max-gpu-mem 1.2 train.py", "at most 1", ""),
        ("--gpus-per-proc 0 train.py", "--gpus-per-proc 0: at least 1", ""),
        ("--env 1A=2 train.py", "not a variable's name", ""),
        ("--env NOT_SET_ANYWHERE train.py", "it is not set here", "NOT_SET_ANYWHERE=VALUE"),
        ("--env-file nope train.py", "--env-file nope: No such file", ""),
        ("--env-file bad.env train.py", "bad.env, line 2", ""),
        ("--out pack train.py", "--out pack: expected a file", ""),
        ("--out data/x train.py", "data is not a folder", ""),
        ("--log-dir data train.py", "--log-dir data: expected a folder", ""),
    ],
)
def test_what_is_wrong(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(line)
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_gpu_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="no GPU is visible"):
        made("-n gpu train.py")
