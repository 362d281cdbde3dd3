"""``zlaunch run`` from end to end: what a shell, a terminal and a pipe see of it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
PATIENCE = 60.0

READY = "import os, sys, signal, time\nprint('ready', os.getpid(), flush=True)\n"
SLEEP = READY + "time.sleep(600)\n"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP


_ENVIRON = {**os.environ, "PYTHONPATH": str(HERE)}
_ENVIRON.pop("ZLAUNCH_LOG_DIR", None)


class Started:
    """A running ``zlaunch``: its lines as they come, and never longer than our patience."""

    def __init__(self, words: tuple[str, ...], folder: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zlaunch", *words],
            cwd=folder,
            env={**_ENVIRON, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.guard = threading.Timer(PATIENCE, self.process.kill)
        self.guard.start()
        assert self.process.stdout
        assert self.process.stderr
        self.out, self.err = self.process.stdout, self.process.stderr

    def ready(self, ranks: int) -> list[int]:
        """The pids of the ranks, as they have printed them."""
        return [int(self.out.readline().split()[-1]) for _ in range(ranks)]

    def until(self, words: str) -> str:
        """The line of stderr that has these words."""
        for line in self.err:
            if words in line:
                return line
        raise AssertionError(f"stderr ended without {words!r}")

    def press(self, number: signal.Signals) -> None:
        """As a terminal does: every process of the foreground group gets it."""
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate()
        self.guard.cancel()
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    begun: list[Started] = []

    def starter(*words: str, **env: str) -> Started:
        begun.append(Started(words, tmp_path, env))
        return begun[-1]

    yield starter
    for one in begun:
        one.guard.cancel()
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def script(folder: Path, text: str, name: str = "prog.py") -> str:
    (folder / name).write_text(text)
    return name


def alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def unfolded(out: str) -> list[str]:
    """The console's lines, rank by rank, however it has folded those that are alike."""
    lines = []
    for line in out.splitlines():
        label, _, text = line.partition("] ")
        for span in label.split(" ")[1].split(","):
            first, _, last = span.partition("-")
            lines += [f"{rank} {text}" for rank in range(int(first), int(last or first) + 1)]
    return sorted(lines)


RUN = ("run", "--preload", "")  # without torch a run starts in no time


def test_two_ranks_say_who_they_are(start: Callable[..., Started], tmp_path: Path) -> None:
    prog = script(tmp_path, "import os, sys; print('I am', os.environ['RANK'], sys.argv[1:])\n")
    status, out, err = start(*RUN, "-n", "2", prog, "-n", "--view", "x y").end()
    assert status == 0, err
    assert sorted(out.splitlines()) == [f"[rank {rank}] I am {rank} ['-n', '--view', 'x y']" for rank in (0, 1)]
    assert err == ""
    assert len(list((tmp_path / "zlaunch_logs").glob("*/localhost*.log"))) >= 2


def test_torchruns_own_command_line(start: Callable[..., Started], tmp_path: Path) -> None:
    prog = script(tmp_path, "import os, sys; print(os.environ['WORLD_SIZE'], sys.argv[1:])\n", "train.py")
    words = ("--nnodes", "1", "--nproc-per-node", "4", "--rdzv_backend=c10d", prog, "--lr", "1")
    status, out, err = start(*RUN, "--log-dir", "none", *words).end()
    assert status == 0, err
    assert unfolded(out) == [f"{rank} 4 ['--lr', '1']" for rank in range(4)]
    assert err == "zlaunch: not needed here, and left aside: --rdzv_backend\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.py"]


def test_a_module_and_a_program(start: Callable[..., Started], tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    script(tmp_path, "import sys; print(__name__, __package__, sys.argv[1:])\n", "pack/__main__.py")
    assert start(*RUN, "-n", "1", "-m", "pack", "a").end()[:2] == (0, "[rank 0] __main__ pack ['a']\n")
    assert start(*RUN, "-n", "1", "sh", "-c", "echo $RANK of $WORLD_SIZE").end()[:2] == (0, "[rank 0] 0 of 1\n")


def test_a_script_finds_the_path_that_python_gives_it(start: Callable[..., Started], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    script(tmp_path, "loaded = True\n", "sub/beside.py")
    prog = script(tmp_path, "import sys, json\nprint(json.dumps(sys.path), 'beside' in sys.modules)\n", "sub/p.py")
    plain = subprocess.run(
        [sys.executable, prog], cwd=tmp_path, env=_ENVIRON, capture_output=True, text=True, check=True
    ).stdout
    status, out, err = start("run", "--preload", "beside", "-n", "1", prog).end()
    assert status == 0, err
    path, loaded = out.removeprefix("[rank 0] ").rsplit(" ", 1)
    assert loaded.strip() == "True"
    assert list(dict.fromkeys(json.loads(path))) == json.loads(plain.rsplit(" ", 1)[0])


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("import os; rank = os.environ['RANK']; raise SystemExit(3 if rank == '1' else 0)\n", 3, "status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n", 137, "SIGKILL"),
        ("raise ValueError('no such luck')\n", 1, "ValueError: no such luck"),
    ],
)
def test_the_status_is_that_of_the_rank_that_failed(
    start: Callable[..., Started], tmp_path: Path, text: str, status: int, words: str
) -> None:
    got, _, err = start(*RUN, "-n", "2", script(tmp_path, text)).end()
    assert got == status, err
    last = "\n".join(err.splitlines()[-2:])
    assert "rank 1" in last or "rank 0" in last
    assert "localhost" in last
    assert words in last
    log = Path(last.rsplit(": ", 1)[-1].strip())
    assert (tmp_path / log).is_file()


def test_the_time_limit(start: Callable[..., Started], tmp_path: Path) -> None:
    run = start(*RUN, "-n", "1", "-t", "0.01", script(tmp_path, SLEEP))
    pids = run.ready(1)
    status, _, err = run.end()
    assert status == 124, err
    assert "time limit" in err
    assert not any(map(alive, pids))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_once_is_sigterm_for_all_ranks(
    start: Callable[..., Started], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    text = "import signal, sys\ndef bye(*_):\n    print('bye', flush=True)\n    sys.exit(0)\n"
    prog = script(tmp_path, text + "signal.signal(signal.SIGTERM, bye)\n" + SLEEP)
    run = start(*RUN, "-n", "2", prog)
    pids = run.ready(2)
    run.press(number)
    got, out, err = run.end()
    assert got == status, err
    assert "bye" in out
    assert "ending the ranks" in err
    assert not any(map(alive, pids))


def test_twice_is_sigkill_now(start: Callable[..., Started], tmp_path: Path) -> None:
    run = start(*RUN, "-n", "2", "--grace", "500", script(tmp_path, STUBBORN))
    pids = run.ready(2)
    run.press(signal.SIGINT)
    run.until("ending the ranks")
    assert all(map(alive, pids))
    run.press(signal.SIGINT)
    status, _, err = run.end()
    assert status == 130, err
    assert not any(map(alive, pids))


def test_ctrl_c_while_the_modules_are_imported(start: Callable[..., Started], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    script(tmp_path, "import os\nopen('pid', 'w').write(str(os.getpid()))\nopen('gate').read()\n", "slow.py")
    run = start("run", "--preload", "slow", "-n", "1", "--log-dir", "none", script(tmp_path, "pass\n"))
    with open(tmp_path / "gate", "w"):  # opens when the other side does
        run.press(signal.SIGINT)
        status, _, err = run.end()
    assert status == 130, err
    assert not alive(int((tmp_path / "pid").read_text()))


def test_the_grace_period_ends(start: Callable[..., Started], tmp_path: Path) -> None:
    run = start(*RUN, "-n", "1", "--grace", "0.2", script(tmp_path, STUBBORN))
    pids = run.ready(1)
    run.press(signal.SIGINT)
    assert run.end()[0] == 130
    assert not any(map(alive, pids))


def test_ctrl_z_is_announced_and_ignored(start: Callable[..., Started], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    run = start(*RUN, "-n", "1", script(tmp_path, READY + "open('gate').read(); print('on', flush=True)\n"))
    run.ready(1)
    run.press(signal.SIGTSTP)
    run.until("Ctrl-Z is ignored")
    (tmp_path / "gate").write_text("go")
    status, out, err = run.end()
    assert status == 0, err
    assert out == "[rank 0] on\n"


def test_a_reader_that_leaves_ends_it_quietly(start: Callable[..., Started], tmp_path: Path) -> None:
    text = "import itertools, os\nfor i in itertools.count(): print('ready', i, os.getpid(), flush=True)\n"
    run = start(*RUN, "-n", "1", script(tmp_path, text))
    pids = run.ready(1)
    os.close(os.dup(run.out.fileno()))
    run.out.close()
    err = run.err.read()
    assert run.process.wait() == 141
    assert "Traceback" not in err
    assert "Broken pipe" not in err
    assert not any(map(alive, pids))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_nobodys_descriptor(tmp_path: Path, closed: str) -> None:
    prog = script(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)\n")
    line = f"exec {sys.executable} -m zlaunch run --preload '' -n 1 --out o --err e {prog} {closed}"
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, env=_ENVIRON, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if " >&-" in f" {closed}" else "[rank 0] out\n")
    assert done.stderr == ("" if "2>&-" in closed else "[rank 0] err\n")
    assert (tmp_path / "o").read_text() + (tmp_path / "e").read_text() == "out\nerr\n"


def test_what_was_ignored_stays_ignored(start: Callable[..., Started], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    prog = script(tmp_path, READY + "open('gate').read()\n")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = start(*RUN, "-n", "1", prog)
    finally:
        signal.signal(signal.SIGHUP, before)
    run.ready(1)
    run.press(signal.SIGHUP)
    (tmp_path / "gate").write_text("go")
    assert run.end()[0] == 0


def test_output_goes_where_it_is_wanted(start: Callable[..., Started], tmp_path: Path) -> None:
    prog = script(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)\n")
    words = ("--out", "a/out.txt", "--err", "a/err.txt", "--ranks", "none", "--env", "A=1")
    status, out, err = start(*RUN, "-n", "2", *words, prog).end()
    assert (status, out, err) == (0, "", "")
    assert (tmp_path / "a/out.txt").read_text() == "out\n" * 2
    assert (tmp_path / "a/err.txt").read_text() == "err\n" * 2


def test_every_event_as_json(start: Callable[..., Started], tmp_path: Path) -> None:
    prog = script(tmp_path, "print('hello')\n")
    status, out, err = start(*RUN, "-n", "1", "--view", "json", "-J", "trial", prog).end()
    assert status == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["text"] for event in events if event["event"] == "output"] == ["hello"]
    assert [event["name"] for event in events if event["event"] == "run-started"] == ["trial"]
    assert events[-1]["event"] == "run-ended"


def test_a_failed_run_is_started_again(start: Callable[..., Started], tmp_path: Path) -> None:
    text = (
        "import os, sys\ncount = os.environ['TORCHELASTIC_RESTART_COUNT']\nprint('try', count, flush=True)\n"
        "sys.exit(0 if count == '2' else 5)\n"
    )
    prog = script(tmp_path, text)
    status, out, _ = start(*RUN, "-n", "1", "--max-restarts", "2", prog).end()
    assert status == 0
    assert out == "[rank 0] try 0\n[rank 0] try 1\n[rank 0] try 2\n"
    assert start(*RUN, "-n", "1", "--max-restarts", "1", prog).end()[0] == 5


def test_verbose_saves_the_hosts(start: Callable[..., Started], tmp_path: Path) -> None:
    prog = script(tmp_path, "pass\n")
    assert start(*RUN, "-n", "1", "-v", prog).end()[0] == 0
    assert (tmp_path / "hpc_launcher_hostlist.txt").read_text() == f"{os.uname().nodename}\n"


def test_dry_run_touches_nothing(start: Callable[..., Started], tmp_path: Path) -> None:
    prog = script(tmp_path, "open('ran', 'w')\n")
    words = ("-v", "-n", "2", "--env", "A=b c", "--dry-run", "--log-dir", "logs", prog, "--lr", "1")
    first, second = (start(*RUN, *words).end() for _ in range(2))
    assert first == second
    status, out, err = first
    assert (status, err) == (0, "")
    assert f"python {prog} --lr 1" in out
    assert "A='b c'" in out
    assert "rank 1: LOCAL_RANK=1 RANK=1 ROLE_RANK=1" in out
    assert "localhost: 2 ranks" in out
    assert [entry.name for entry in tmp_path.iterdir()] == [prog]


def test_dry_run_shows_how_other_hosts_are_reached(start: Callable[..., Started], tmp_path: Path) -> None:
    prog = script(tmp_path, "open('ran', 'w')\n")
    hosts = ("--hosts", "no-such-host.invalid:1,localhost:2", "--setup", "module load x", "--python", "~/py")
    status, out, err = start(*RUN, *hosts, "--dry-run", prog, TORCH_ME="1").end()
    assert (status, err) == (0, "")
    assert "3 ranks on 2 hosts" in out
    assert "no-such-host.invalid: 1 rank, over ssh\n  agent: ssh -o" in out
    assert "-- no-such-host.invalid 'module load x && exec ~/py -c " in out
    assert "keys go to ssh's stdin" in out
    assert "TORCH_ME" in out.partition("other hosts: ")[2].partition("\n")[0]
    assert "MASTER_ADDR=<an address of no-such-host.invalid that the others reach>" in out
    assert "rank 2: GROUP_RANK=1 LOCAL_RANK=1" in out
    status, out, err = start(*RUN, *hosts, "-n", "auto", "--env", "A=1", "--dry-run", prog).end()
    assert (status, err) == (0, "")
    assert "ranks on 2 hosts, counted when the agents have told what is there" in out
    assert "no-such-host.invalid: ranks as its agent counts them, over ssh" in out
    assert "  A=1\n" in out
    assert not (tmp_path / "ran").exists()


def test_a_host_that_is_not_there(start: Callable[..., Started], tmp_path: Path) -> None:
    prog = script(tmp_path, "open('ran', 'w')\n")
    status, out, err = start(*RUN, "--hosts", "localhost,no-such-host.invalid", "-n", "1", prog).end()
    assert (status, out) == (125, "")
    assert "no-such-host.invalid: ssh does not know this host" in err
    assert not (tmp_path / "ran").exists()


def test_a_preload_that_fails_is_zlaunchs_own_failure(start: Callable[..., Started], tmp_path: Path) -> None:
    script(tmp_path, "raise RuntimeError('not today')\n", "broken.py")
    status, out, err = start("run", "--preload", "broken", "-n", "1", script(tmp_path, "pass\n")).end()
    assert status == 125
    assert out == ""
    assert "not today" in err
