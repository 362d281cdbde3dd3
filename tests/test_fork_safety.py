"""What was tried to break ranks that are forks: modules that are imported before the fork, and do what they should not.

Where it can be told, a rank is held against an interpreter of its own that imports the same module. The table of all of
it is in docs/explanation/fork.md; what else a template and its ranks do is in the tests of the worker.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker_rig import ROOT, Rig

from zlaunch.protocol.local import Ready
from zlaunch.systems.processes import descendants
from zlaunch.torchenv.environment import OWN

LEFT = r"""
import atexit, logging, os, random, signal, ssl, sys, tempfile, threading, uuid, warnings, weakref
from pathlib import Path
os.environ["OMP_NUM_THREADS"] = "2"
import numpy, torch

HERE = Path(__file__).parent

# the environment and the path
os.environ["SET_AT_IMPORT"] = "by left"
os.environ.pop("TO_BE_REMOVED", None)
sys.path.insert(0, str(HERE / "first"))
sys.path.append(str(HERE / "last"))

# random numbers: seeded for all, and generators of its own
random.seed(7); random.random()
numpy.random.seed(7)
torch.manual_seed(7)
SEEDED = [random.Random(3), numpy.random.default_rng(3), numpy.random.RandomState(3)]
UNSEEDED = [random.Random(), numpy.random.default_rng(), numpy.random.RandomState()]
ssl.RAND_bytes(8); uuid.uuid1(); uuid.uuid4()
tempfile.mktemp()

# files, locks, handlers
FILE = open(HERE / "buffered.txt", "a"); FILE.write("once\n")
LOCK = threading.Lock(); LOCK.acquire()
RLOCK = threading.RLock(); RLOCK.acquire()
logging.lastResort.acquire()
def on_term(number, frame): os.write(1, b"left: term\n"); os._exit(9)
signal.signal(signal.SIGTERM, on_term)
PREVIOUS = signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"left: usr1\n"))
def note(text): (HERE / "notes").open("a").write(text + "\n")
atexit.register(note, "exit handler")
class Thing: pass
THING = Thing(); weakref.finalize(THING, note, "finalizer")
os.register_at_fork(after_in_child=lambda: FORKS.append(os.getpid()))
FORKS = []
warnings.simplefilter("error", UserWarning)

# OpenMP's and BLAS's threads, in their first use
PRODUCTS = [float((ones @ ones)[0, 0]) for ones in (numpy.ones((300, 300)), torch.ones(300, 300))]
"""

PROBE = r"""
import json, os, random, signal, sys, tempfile, warnings
import left, numpy, torch
def name(handler): return getattr(handler, "__name__", str(handler))
signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
print(json.dumps({
    "env": {k: v for k, v in sorted(os.environ.items()) if k not in ("KMP_DUPLICATE_LIB_OK", "LC_CTYPE")},
    "left": [p for p in sys.path if str(left.HERE / "first") == p or str(left.HERE / "last") == p],
    "ends": [sys.path.index(str(left.HERE / "first")) < 2, sys.path[-1] == str(left.HERE / "last")],
    "handlers": [name(signal.getsignal(n)) for n in signals], "previous": name(left.PREVIOUS),
    "seeded": [random.random(), numpy.random.random(), torch.rand(1).item(), torch.initial_seed(),
               *(own.random() for own in left.SEEDED)],
    "threads": torch.get_num_threads(), "tempdir": tempfile.gettempdir(), "filter": warnings.filters[0][0],
    "lock": left.LOCK.locked(), "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "zone": __import__("time").strftime("%Z"),
}))
left.FILE.close()
"""


def module(folder: Path, name: str, text: str) -> dict[str, str]:
    """Write a module, and give the environment in which it can be imported."""
    (folder / f"{name}.py").write_text(text)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("left")


@pytest.fixture(scope="module")
def rig(folder):
    env = module(folder, "left", LEFT) | {"TO_BE_REMOVED": "1", "OMP_NUM_THREADS": "1"}
    with Rig(preload=("torch", "left"), env=env) as rig:
        assert isinstance(rig.ready, Ready), rig.ready
        assert (rig.ready.start_method, rig.ready.note) == ("fork", "")
        yield rig


@pytest.fixture(autouse=True)
def _nothing_left(request):
    """In the place of conftest's: the module's template stays, and nothing may be left below it."""
    yield
    if "rig" in request.fixturenames:
        shared = request.getfixturevalue("rig")
        deadline = time.monotonic() + 5
        while descendants(shared.process.pid) and time.monotonic() < deadline:
            os.sched_yield()
        assert not descendants(shared.process.pid)


# --- as an interpreter of its own -----------------------------------------------------------------------------------


def test_a_rank_finds_what_an_import_did_as_its_own_interpreter_would(rig, folder, tmp_path):
    """The environment, the path, handlers, seeds, threads, filters; also with another TMPDIR and time zone."""
    path = tmp_path / "probe.py"
    path.write_text(PROBE)
    env = rig.env | {"TMPDIR": str(tmp_path), "TZ": "Asia/Tokyo"}
    search = (str(folder), str(ROOT), *sys.path)  # a launcher gives its own, which knows nothing of the module's
    ranks = rig.run(rig.step("script", argv=(str(path),), env=env, sys_path=search), n=2)
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].err.decode()
    for rank in ranks:
        ours = json.loads(rank.out)
        given = {name: ours["env"][name] for name in (*OWN, "GLOO_SOCKET_IFNAME")}
        alone = subprocess.run([sys.executable, path], env=env | given, capture_output=True, cwd=rig.cwd, check=True)
        assert ours == json.loads(alone.stdout)
    assert ours["handlers"] == ["on_term", "1", "0", "0"]
    assert ours["previous"] == "default_int_handler"
    assert ours["env"]["SET_AT_IMPORT"] == "by left"
    assert "TO_BE_REMOVED" not in ours["env"]
    assert (ours["tempdir"], ours["zone"], ours["threads"]) == (str(tmp_path), "JST", 2)
    assert (folder / "buffered.txt").read_text() == "once\n" * 3  # by the template, and by the two alone


def test_random_numbers_without_a_seed_are_no_two_ranks_own(rig):
    def work():
        import ssl
        import tempfile
        import uuid

        import left

        numbers = [generator.random() for generator in left.UNSEEDED]
        return *numbers, ssl.RAND_bytes(8), str(uuid.uuid1()), str(uuid.uuid4()), tempfile.mktemp(), os.urandom(8)

    of_rank = [rank.payload for rank in rig.call(work, n=3)]
    for alike in zip(*of_rank, strict=True):
        assert len(set(alike)) == 3, alike


def test_open_files_are_written_once_and_each_rank_s_words_are_its_own(rig, folder):
    def work():
        import left

        left.FILE.write(f"rank {os.environ['RANK']}\n")  # never closed: Python writes it out at the end

    before = (folder / "buffered.txt").read_text()
    assert [rank.code for rank in rig.call(work, n=3)] == [0, 0, 0]
    added = (folder / "buffered.txt").read_text().removeprefix(before)
    assert sorted(added.splitlines()) == ["rank 0", "rank 1", "rank 2"]


def test_locks_that_are_held_at_the_fork(rig):
    def work():
        import logging

        import left

        left.RLOCK.acquire()  # its owner is the main thread, here as there
        logging.warning("not stuck")
        return left.LOCK.locked(), left.LOCK.acquire(timeout=0.01)

    rank = rig.call(work)[0]
    assert rank.payload == (True, False)
    assert b"not stuck" in rank.err


def test_a_rank_s_handlers_of_signals_are_the_module_s(rig):
    def work():
        os.write(1, b"up\n")
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    rank = rig.call(work)[0]
    assert (rank.code, rank.out) == (9, b"up\nleft: usr1\nleft: term\n")


def test_the_template_s_are_not(rig):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        rig.process.send_signal(number)
    assert rig.call(int)[0].payload == 0


def test_exit_handlers_are_nobody_s_and_fork_handlers_run(rig, folder):
    def work():
        import atexit
        import weakref

        import left

        atexit.register(left.note, f"of rank {os.environ['RANK']}")
        weakref.finalize(left.Thing(), lambda: None)
        left.KEPT = left.Thing()
        weakref.finalize(left.KEPT, left.note, f"finalizer of rank {os.environ['RANK']}")
        return [os.getpid()] == left.FORKS

    (folder / "notes").write_text("")
    assert [rank.payload for rank in rig.call(work, n=2)] == [True, True]
    told = sorted((folder / "notes").read_text().splitlines())
    assert told == ["finalizer of rank 0", "finalizer of rank 1", "of rank 0", "of rank 1"]


def test_products_after_those_of_the_template(rig):
    def work():
        import left
        import numpy
        import torch

        one, two = numpy.ones((900, 900)), torch.ones(900, 900)
        return left.PRODUCTS, float((one @ one)[0, 0]), (two @ two)[0, 0].item(), torch.get_num_threads()

    assert [rank.payload for rank in rig.call(work, n=2)] == [([300.0, 300.0], 900.0, 900.0, 2)] * 2


# --- multiprocessing within a rank ----------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_data_loader_workers_of_every_kind(rig, tmp_path, context):
    path = tmp_path / "s.py"
    path.write_text(
        "import os, torch\nfrom torch.utils.data import DataLoader, Dataset\n"
        "class Data(Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, i): return torch.tensor([float(i), os.getpid()])\n"
        "if __name__ == '__main__':\n"
        f"    rows = torch.cat(list(DataLoader(Data(), num_workers=1, multiprocessing_context={context!r})))\n"
        "    print(rows[:, 0].sum().item(), os.getpid() in rows[:, 1])\n"
    )
    rank = rig.run(rig.step("script", argv=(str(path),)))[0]
    assert rank.out == b"28.0 False\n", rank.err.decode()
    assert rank.answer.kind == "value"


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_a_function_may_start_processes_of_every_kind(rig, context):
    def work():
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(context)) as pool:
            return sum(pool.map(abs, range(-3, 4))), multiprocessing.current_process().name

    rank = rig.call(work)[0]
    assert rank.payload == (12, "MainProcess"), rank.err.decode()


# --- what is not forked ---------------------------------------------------------------------------------------------

UNFORKABLE = {
    "OpenMP's threads": (
        "import torch\ntorch.set_num_threads(2)\nfor _ in range(3): torch.ones(3000, 300) @ torch.ones(300, 300)\n"
        "torch.ones(1 << 20).exp()\n",
        "thread",
    ),
    "an event loop": ("import asyncio\nLOOP = asyncio.new_event_loop()\n", "opened a socket and an event loop"),
    "a connection": ("import socket\nDOOR = socket.create_server(('127.0.0.1', 0))\n", "opened a socket"),
    "a process": (
        "import subprocess, sys\nfrom multiprocessing import shared_memory\n"
        "CHILD = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], stdin=subprocess.PIPE)\n",
        "started 1 process",
    ),
    "shared memory, whose tracker is one": (
        "from multiprocessing import shared_memory\nSharedMemory = shared_memory.SharedMemory\n"
        "MEMORY = SharedMemory(create=True, size=8); MEMORY.close(); MEMORY.unlink()\n",
        "started 1 process",
    ),
    "a timer": ("import signal\nsignal.setitimer(signal.ITIMER_REAL, 1000)\n", "set a timer"),
    "its rank": (
        "import os\nRANK = int(os.environ.get('RANK', 0))\nLOCAL = os.getenv('LOCAL_RANK')\n",
        "asked for RANK, LOCAL_RANK, which a process has only when it is a rank",
    ),
}


@pytest.mark.parametrize("what", UNFORKABLE)
def test_what_cannot_be_shared_makes_ranks_new_interpreters(tmp_path, what):
    text, words = UNFORKABLE[what]
    with Rig(preload=("busy",), env=module(tmp_path, "busy", text)) as rig:
        assert isinstance(rig.ready, Ready), rig.ready
        assert rig.ready.start_method == "spawn"
        assert "importing busy" in rig.ready.note
        assert words in rig.ready.note

        def work():
            import busy

            return getattr(busy, "RANK", None)

        ranks = rig.call(work, n=2 if what == "its rank" else 1)
        assert {rank.code for rank in ranks} == {0}, ranks[0].err.decode()
        assert [rank.payload for rank in ranks] == ([0, 1] if what == "its rank" else [None])


def test_a_loop_of_the_function_s_own(rig):
    def work():
        import asyncio

        async def both():
            return await asyncio.gather(asyncio.sleep(0, 1), asyncio.to_thread(int, "2"))

        return asyncio.run(both())

    assert [rank.payload for rank in rig.call(work, n=2)] == [[1, 2]] * 2


# --- who watches the interpreter ------------------------------------------------------------------------------------

WATCHER = r"""
import atexit, os, sys
lines = set()
def trace(frame, event, arg):
    lines.add(frame.f_code.co_name)
    return trace
sys.settrace(trace)
def save():
    with open(os.path.join(os.path.dirname(__file__), f"cover.{os.getpid()}"), "w") as file:
        file.write(" ".join(sorted(lines)))
atexit.register(save)
"""


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_what_measures_coverage_from_an_interpreter_s_start(tmp_path, start_method):
    """As coverage does it: from sitecustomize, with a trace function, and a file per process at its end."""
    env = module(tmp_path, "sitecustomize", WATCHER)
    with Rig(preload=("json",), env=env, start_method=start_method) as rig:

        def to_be_covered():
            return os.getpid(), sys.gettrace() is not None

        for rank in rig.call(to_be_covered, n=2):
            pid, traced = rank.payload
            assert traced
            assert "to_be_covered" in (tmp_path / f"cover.{pid}").read_text().split()


def test_a_signal_while_the_template_imports(tmp_path):
    """It is for ranks, of which there are none yet; nor do handlers of a module that is being imported get it."""
    text = (
        "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(77))\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): os.kill(os.getpid(), number)\n"
    )
    with Rig(preload=("busy",), env=module(tmp_path, "busy", text)) as rig:
        assert isinstance(rig.ready, Ready)
        assert rig.call(int)[0].payload == 0
        assert rig.process.poll() is None


# --- the last words ---------------------------------------------------------------------------------------------------


def test_a_rank_that_is_asked_to_end_while_it_prints_its_traceback(rig, tmp_path):
    """As all are, as soon as it has told of its failure: it prints first."""
    hook = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "def hook(*error):\n    os.kill(os.getpid(), signal.SIGTERM)\n    sys.__excepthook__(*error)\n"
        "sys.excepthook = hook\n"
    )
    path = tmp_path / "s.py"
    path.write_text(f"{hook}raise LookupError('in a script')\n")

    def work():
        exec(hook, {})
        raise LookupError("in a function")

    for rank in (rig.run(rig.step("script", argv=(str(path),)))[0], rig.call(work)[0]):
        assert b"LookupError: in a " in rank.err
        assert rank.code == -signal.SIGTERM
        assert rank.answer.kind == "exception"
