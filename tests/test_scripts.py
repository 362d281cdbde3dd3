"""Scripts, modules and programs from end to end: each finds itself as it would without zlaunch, and ends so."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from out_rig import PATIENCE, PROGRAMS, QUICK, Ran, environment, lines_of, program, rank_file, zrun

import zlaunch


def python(*words: str) -> Ran:
    """The same without zlaunch."""
    done = subprocess.run(
        [sys.executable, *words],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def alike(*words: str) -> Ran:
    """Runs it with and without; what both printed, and how they ended, must be the same."""
    plain = python(*words)
    ran = zrun(*QUICK, "-n", "1", *words)
    assert "\n".join(lines_of(ran.out, 0)) == plain.out.rstrip("\n")
    mine = [line for line in ran.err.splitlines() if not line.startswith("zlaunch: ")]
    assert "\n".join(lines_of("\n".join(mine), 0)) == plain.err.rstrip("\n")
    assert ran.status == (plain.status if plain.status >= 0 else 128 - plain.status)
    return ran


# --- as under ``python script.py`` ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["./sub/../facts.py", "absolute", "link"])
def test_a_script_finds_itself(tmp_path: Path, where: str) -> None:
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        shutil.copy(PROGRAMS / "out_facts.py", folder / "facts.py")
    (tmp_path / "link.py").symlink_to(tmp_path / "sub" / "facts.py")
    name = {"absolute": str(tmp_path / "facts.py"), "link": "link.py"}.get(where, where)
    _same_facts(name, "--lr", "1", "a b", "")


def test_a_module_finds_itself(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    shutil.copy(PROGRAMS / "out_facts.py", tmp_path / "pack" / "facts.py")
    _same_facts("-m", "pack.facts", "-x", "y")


def test_a_script_finds_itself_in_a_new_interpreter(tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "out_facts.py", tmp_path / "facts.py")
    _same_facts("facts.py", "-x", options=("--start-method", "spawn"))


def test_a_script_under_a_safe_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "out_facts.py", tmp_path / "facts.py")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    _same_facts("facts.py")


def _same_facts(*words: str, options: tuple[str, ...] = ()) -> None:
    plain = json.loads(python(*words).out)
    ran = zrun(*QUICK, *options, "-n", "1", *words)
    assert ran.status == 0, ran.err
    found = json.loads(lines_of(ran.out, 0)[0])
    assert {key: value for key, value in found.items() if plain[key] != value} == {}


def test_a_package_with_relative_imports() -> None:
    program(
        Path("pack"),
        "from .beside import word\nfrom . import beside\nimport sys\nprint(word, __package__, sys.argv)\n",
        "__main__.py",
    )
    program(Path("pack"), "word = 'found'\n", "beside.py")
    assert alike("-m", "pack", "x").out.startswith("[rank 0] found pack ")


def test_multiprocessing_by_spawn_finds_the_script() -> None:
    text = """
import multiprocessing as mp

class Mine:
    def __init__(self, n): self.n = n

def twice(mine):
    return Mine(mine.n * 2)

if __name__ == "__main__":
    with mp.get_context("spawn").Pool(2) as pool:
        print([mine.n for mine in pool.map(twice, [Mine(1), Mine(2)])])
    print("mark of the main module")
"""
    assert "[2, 4]" in alike(program(Path(), text)).out


def test_the_end_is_pythons_own() -> None:
    """Threads are waited for, exit handlers run, objects of the main module go, files are written out."""
    text = """
import atexit, sys, threading, time
class Gone:
    def __del__(self): print("gone")
held = Gone()
atexit.register(print, "first registered, last called")
atexit.register(print, "at exit")
def work():
    time.sleep(0.2)
    print("from a thread")
threading.Thread(target=work).start()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
file = open("written", "w")
file.write("without a close")
print("last line of the script")
"""
    alike(program(Path(), text))
    assert Path("written").read_text() == "without a close"


def test_forks_and_sub_processes_of_a_script() -> None:
    text = """
import os, subprocess, sys
print("before")
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    print("child")
    sys.exit(7)
print("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(subprocess.run([sys.executable, "-c", "import sys; print('sub'); sys.exit(4)"], capture_output=True))
print(subprocess.run("exit 9", shell=True).returncode)
"""
    alike(program(Path(), text))


# --- exit statuses --------------------------------------------------------------------------------------------------


def alike_when_warm(cluster: zlaunch.Launcher, prog: str) -> int:
    """As ``alike``, in a fork that has torch in it, by an agent that is there already: many ends in little time."""
    plain = python(prog)
    run = cluster.on(workers_per_host=1).submit_script(prog)
    run.exception()
    (folder,) = Path(str(cluster.log_dir)).glob(f"*-{run.id}")
    text = (folder / "localhost[0].log").read_text()
    if plain.out and plain.err:
        assert sorted(text.splitlines()) == sorted((plain.out + plain.err).splitlines())
    else:
        assert text == plain.out + plain.err
    assert run.exit_status() == (plain.status if plain.status >= 0 else 128 - plain.status)
    return run.exit_status()


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit()", 0),
        ("sys.exit(0)", 0),
        ("sys.exit(None)", 0),
        ("sys.exit(3)", 3),
        ("sys.exit(True)", 1),
        ("sys.exit(-1)", 255),
        ("sys.exit(256)", 0),
        ("sys.exit('text')", 1),
        ("sys.exit((1, 2))", 1),
        ("raise SystemExit", 0),
        ("exit(6)", 6),
        ("os._exit(5)", 5),
        ("os._exit(0)", 0),
        ("os.kill(os.getpid(), 9)", 137),
        ("os.kill(os.getpid(), 15)", 143),
        ("signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)", 130),
        ("raise KeyboardInterrupt", 130),
        ("1 / 0", 1),
        ("atexit.register(os._exit, 8)", 8),
    ],
)
def test_an_end_is_the_same_with_and_without(cluster: zlaunch.Launcher, end: str, status: int, tmp_path: Path) -> None:
    program(tmp_path, f"import atexit, os, signal, sys\nprint('here', flush=True)\n{end}\n")
    assert alike_when_warm(cluster, "prog.py") == status


def test_an_end_on_the_command_line() -> None:
    assert alike(program(Path(), "import sys\nprint('here')\nsys.exit('the last word')\n")).status == 1
    assert alike(program(Path(), "raise KeyboardInterrupt\n")).status == 130


def test_a_crash() -> None:
    ran = zrun(*QUICK, "-n", "1", program(Path(), "import ctypes\nctypes.string_at(0)\n"))
    assert ran.status == 128 + signal.SIGSEGV
    assert "SIGSEGV" in ran.err
    assert "prog.py" in ran.err, "Python's stack is among the last lines"


def test_the_status_is_the_first_failed_ranks() -> None:
    text = """
import os, sys, time
if os.environ["RANK"] == "2":
    sys.exit(42)
time.sleep(600)
"""
    ran = zrun(*QUICK, "-n", "3", program(Path(), text))
    assert ran.status == 42
    assert "rank 2" in ran.err.splitlines()[-2]
    assert ran.err.splitlines()[-1] == f"zlaunch: its whole output: {rank_file(Path('logs').absolute(), 2)}"


@pytest.mark.parametrize(
    "text",
    [
        "def f(n):\n    return g(n)\ndef g(n):\n    return 1 / n\nf(0)\n",
        "try:\n    int('x')\nexcept ValueError as error:\n    raise KeyError('mine') from error\n",
        "try:\n    int('x')\nexcept ValueError:\n    raise KeyError('mine')\n",
        "error = ValueError('a')\nerror.add_note('a note')\nraise error\n",
        "raise ExceptionGroup('two', [ValueError(1), TypeError(2)])\n",
        "def f(:\n    pass\n",
        "if True:\nprint(1)\n",
        "import sys\ndef hook(kind, error, tb):\n    print('hooked', kind.__name__, file=sys.stderr)\n"
        "sys.excepthook = hook\nraise ValueError\n",
        "import json\njson.loads('{')\n",
        "import no_such_module\n",
        "assert 1 == 2, 'no'\n",
        "print('caf\\u00e9 \\U0001f600')\nraise ValueError('caf\\u00e9')\n",
    ],
)
def test_a_traceback_looks_like_pythons_own(cluster: zlaunch.Launcher, text: str, tmp_path: Path) -> None:
    program(tmp_path, text)
    assert alike_when_warm(cluster, "prog.py") == 1


def test_a_traceback_of_a_module() -> None:
    program(Path("pack"), "", "__init__.py")
    program(Path("pack"), "def f():\n    raise ValueError('x')\nf()\n", "mod.py")
    plain, ran = python("-m", "pack.mod"), zrun(*QUICK, "-n", "1", "-m", "pack.mod")
    mine = [line for line in ran.err.splitlines() if line.startswith("[rank 0] ")]
    theirs = [line for line in plain.err.splitlines() if "runpy" not in line and "_run_" not in line]
    got = [line for line in lines_of("\n".join(mine), 0) if "runpy" not in line and "_run_" not in line]
    assert [line for line in got if "File" in line] == [line for line in theirs if "File" in line]
    assert got[-1] == "ValueError: x"
    assert "zlaunch/worker" not in "".join(mine)


# --- programs -------------------------------------------------------------------------------------------------------


def test_python_as_a_program() -> None:
    prog = program(Path(), "import sys, os\nprint(sys.argv, os.environ['RANK'])\nsys.exit(3)\n")
    ran = zrun(*QUICK, "-n", "1", sys.executable, prog, "--lr", "1")
    assert (ran.status, ran.out) == (3, "[rank 0] ['prog.py', '--lr', '1'] 0\n")


def test_a_shell_script() -> None:
    program(Path(), '#!/bin/sh\necho $0 $RANK/$WORLD_SIZE "$1"\nread line || echo no stdin\nexit $1\n', "a.sh")
    os.chmod("a.sh", 0o755)
    ran = zrun(*QUICK, "-n", "1", "./a.sh", "12")
    assert (ran.status, ran.out) == (12, "[rank 0] ./a.sh 0/1 12\n[rank 0] no stdin\n")


def test_a_program_killed_by_a_signal() -> None:
    ran = zrun(*QUICK, "-n", "1", "sh", "-c", "kill -SEGV $$")
    assert ran.status == 139
    assert "SIGSEGV" in ran.err


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        (b"\x7fELF and no more", 126, "made for this machine"),
        (b"echo no first line\n", 126, "(#!/bin/sh)"),
        (b"#!/no/such/interpreter\n", 127, "its first line names (#!)"),
    ],
    ids=["no", "shell", "script"],
)
def test_a_program_that_cannot_be_executed(cluster: zlaunch.Launcher, content: bytes, status: int, why: str) -> None:
    """With the statuses of a shell."""
    Path("odd").write_bytes(content)
    os.chmod("odd", 0o755)
    with pytest.raises(zlaunch.WorkerFailedError, match=f"status {status}") as caught:
        cluster.run_command("./odd")
    assert caught.value.exit_code == status
    assert "./odd" in caught.value.last_output[-1]
    assert why in caught.value.last_output[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian.py"], "did you mean train.py?"),
        (["sub/trian.py"], "sub/train.py"),
        (["nowhere/train.py"], "nowhere"),
        (["train"], "train.py"),
        (["sub"], "folder"),
        (["-m", "trian"], "train"),
        (["-m", "sub"], "__main__"),
        (["-m", "no_such_thing_at_all"], "no_such_thing_at_all"),
        (["-m", "train.py"], "leave out -m"),
        (["no-such-program"], "no-such-program"),
        (["./notes.txt"], "not executable"),
        ([], "COMMAND"),
    ],
)
def test_what_is_not_there(words: list[str], said: str) -> None:
    for folder in (".", "sub"):
        program(Path(folder), "open('started', 'w')\n", "train.py")
    program(Path(), "", "notes.txt")
    ran = zrun(*QUICK, "-n", "1", *words)
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not Path("started").exists()
    assert not Path("logs").exists()


# --- restarts, dry runs, torchrun -----------------------------------------------------------------------------------


def test_restarts_have_a_fresh_port_and_a_count() -> None:
    text = """
import os, sys
names = "TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS MASTER_PORT TORCHELASTIC_RUN_ID".split()
print(*[os.environ[name] for name in names], flush=True)
sys.exit(0 if os.environ["TORCHELASTIC_RESTART_COUNT"] == "2" else 9)
"""
    ran = zrun(*QUICK, "-n", "1", "--max-restarts", "2", program(Path(), text))
    assert ran.status == 0, ran.err
    counts, most, ports, runs = zip(*(line.split() for line in lines_of(ran.out, 0)), strict=True)
    assert counts == ("0", "1", "2")
    assert most == ("2", "2", "2")
    assert len(set(ports)) > 1
    assert len(set(runs)) == 1
    assert ran.err.count("restart ") == 2
    assert rank_file(Path("logs"), 0).read_text().splitlines() == lines_of(ran.out, 0), "one file for all of them"


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    prog = program(tmp_path, "open('started', 'w')\n")
    ran = zrun(*QUICK, "-n", "3", "--out", "a/out", "--dry-run", prog, "--lr", "1")
    assert ran.status == 0
    assert f"{prog} --lr 1" in ran.out
    assert "RANK=2" in ran.out
    assert [path.name for path in tmp_path.iterdir()] == [prog]


@pytest.mark.parametrize(
    "words",
    [
        ["--nnodes", "1", "--standalone", "--nproc_per_node", "4"],
        ["--nnodes=1:1", "--nproc-per-node=4", "--rdzv-backend=c10d", "--node_rank=0", "--master_port", "29500"],
    ],
)
def test_torchruns_command_line(words: list[str]) -> None:
    text = "import os, sys\nprint(os.environ['RANK'], os.environ['WORLD_SIZE'], sys.argv)\n"
    ran = zrun(*QUICK, *words, program(Path(), text, "train.py"), "--lr", "1")
    assert ran.status == 0, ran.err
    assert sorted(ran.out.splitlines()) == [f"[rank {r}] {r} 4 ['train.py', '--lr', '1']" for r in range(4)]


# --- the same from Python -------------------------------------------------------------------------------------------


@pytest.fixture
def launcher(tmp_path: Path) -> zlaunch.Launcher:
    return zlaunch.Launcher(
        workers_per_host=2, backend=None, preload=(), grace_period=5, log_dir=str(tmp_path / "kept")
    )


def test_run_script_module_and_command(launcher: zlaunch.Launcher, capfd: pytest.CaptureFixture[str]) -> None:
    program(Path(), "import sys\nprint('script', sys.argv[1:])\n", "one.py")
    program(Path("pack"), "import sys\nprint('module', sys.argv[1:])\n", "two.py")
    with launcher:
        assert list(launcher.run_script(Path("one.py"), "a")) == [None, None]
        sys.path.insert(0, "")  # -m looks in the folder that we are in, whatever our own path is
        try:
            assert list(launcher.run_module("pack.two", "b")) == [None, None]
        finally:
            del sys.path[0]
        assert list(launcher.run_command("sh", "-c", "echo command $0", "c")) == [None, None]
    out = capfd.readouterr().out
    for rank in (0, 1):
        assert lines_of(out, rank) == ["script ['a']", "module ['b']", "command c"]


def test_a_script_that_fails_is_a_worker_that_failed(launcher: zlaunch.Launcher, tmp_path: Path) -> None:
    program(
        Path(),
        "import os, sys\nfor i in range(80): print('line', i)\nsys.exit(3 * int(os.environ['RANK']))\n",
        "bad.py",
    )
    with pytest.raises(zlaunch.WorkerFailedError) as caught:
        launcher.run_script("bad.py")
    error = caught.value
    assert (error.rank, error.local_rank, error.hostname, error.exit_code, error.signal) == (1, 1, "localhost", 3, None)
    assert error.last_output[-50:] == [f"line {i}" for i in range(30, 80)]
    assert error.log_file == str(rank_file(tmp_path / "kept", 1))


def test_a_script_that_raises_is_a_worker_that_failed(launcher: zlaunch.Launcher) -> None:
    program(Path(), "class Mine(Exception): pass\nraise Mine('of a script')\n", "bad.py")
    with pytest.raises(zlaunch.WorkerFailedError, match="Mine: of a script") as caught:
        launcher.run_script("bad.py")
    assert caught.value.exit_code == 1
    assert caught.value.last_output[-1].endswith("Mine: of a script")


def test_a_command_that_fails(launcher: zlaunch.Launcher) -> None:
    with pytest.raises(zlaunch.WorkerFailedError) as caught:
        launcher.run_command("sh", "-c", "echo before; kill -9 $$")
    assert (caught.value.exit_code, caught.value.signal) == (None, signal.SIGKILL)
    assert caught.value.last_output == ["before"]


def test_a_script_that_is_not_there(launcher: zlaunch.Launcher) -> None:
    program(Path(), "", "train.py")
    with pytest.raises((ValueError, OSError, zlaunch.LaunchError), match=re.compile("trian.py")):
        launcher.run_script("trian.py")
