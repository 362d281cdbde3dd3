"""The fork template and its ranks: real processes, driven as the agent drives them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from worker_rig import Rig

from zlaunch.protocol import letter
from zlaunch.protocol.local import Ready
from zlaunch.systems.processes import descendants


@pytest.fixture(scope="module")
def rig():
    with Rig(preload=("torch",)) as rig:
        assert isinstance(rig.ready, Ready)
        assert rig.ready.start_method == "fork", rig.ready
        yield rig


@pytest.fixture(autouse=True)
def _nothing_left(rig):
    """In the place of conftest's: the template stays for the module, and nothing may be left below it."""
    yield
    left = descendants(rig.process.pid)
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        os.sched_yield()
        left = descendants(rig.process.pid)
    assert not left


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def script(rig, path, text, *argv, kind="script", n=1, **changes):
    path.write_text(text)
    return rig.run(rig.step(kind, argv=(str(path), *argv), **changes), n=n)[0]


# --- functions ------------------------------------------------------------------------------------------------------


def test_a_function_gives_its_result(rig):
    def work(x):
        print("hello")
        return x + int(os.environ["RANK"])

    ranks = rig.call(work, 40, n=3)
    assert [rank.payload for rank in ranks] == [40, 41, 42]
    assert [rank.code for rank in ranks] == [0, 0, 0]
    assert ranks[2].out == b"hello\n"


def test_a_process_group_is_ready(rig):
    def work():
        import torch
        import torch.distributed as dist

        total = torch.ones(1) * dist.get_rank()
        dist.all_reduce(total)
        return total.item(), dist.get_world_size(), torch.get_num_threads()

    ranks = rig.run(rig.step(backend="gloo"), letter.dump((work, (), {})), n=3, port=free_port())
    assert [rank.payload for rank in ranks] == [(3.0, 3, 1)] * 3


def test_an_exception_with_cause_and_note(rig):
    class MyError(Exception):
        pass

    def work():
        try:
            1 / 0
        except ZeroDivisionError as error:
            mine = MyError("mine")
            mine.add_note("a note")
            raise mine from error

    rank = rig.call(work)[0]
    assert rank.code == 1
    assert rank.answer.kind == "exception"
    assert type(rank.payload) is MyError
    assert rank.payload.__notes__ == ["a note"]
    for words in ("ZeroDivisionError", "direct cause", "MyError: mine", "a note"):
        assert words in rank.answer.text
        assert words.encode() in rank.err
    assert "zlaunch/worker" not in rank.answer.text
    assert b"zlaunch/worker" not in rank.err


def test_an_exception_that_cannot_be_pickled_keeps_its_text(rig):
    def work():
        import threading

        error = RuntimeError("text")
        error.lock = threading.Lock()
        raise error

    rank = rig.call(work)[0]
    assert rank.answer.kind == "exception"
    assert rank.payload is None
    assert "RuntimeError: text" in rank.answer.text


def test_a_result_that_cannot_be_pickled_is_named(rig):
    def work():
        import threading

        return {"model": [1, threading.Lock()]}

    rank = rig.call(work)[0]
    assert rank.answer.kind == "unpicklable"
    assert "the result of rank 0" in rank.answer.text
    assert "['model'][1]" in rank.answer.text
    assert rank.code == 1


def test_a_task_that_cannot_be_read(rig):
    rank = rig.run(rig.step(), [b"cno_such_module\nfunction\n."])[0]
    assert rank.answer.kind == "unpicklable"
    assert "no_such_module" in rank.answer.text
    assert rank.code == 1


@pytest.mark.parametrize(
    ("code", "status", "answers", "words"),
    [(0, 0, 1, b""), (None, 0, 1, b""), (3, 3, 0, b""), ("a text", 1, 0, b"a text\n")],
)
def test_sys_exit_in_a_function(rig, code, status, answers, words):
    def work():
        sys.exit(code)

    rank = rig.call(work)[0]
    assert rank.code == status
    assert len(rank.answers) == answers
    assert rank.payload is None
    assert rank.err == words


def test_deaths_without_an_answer(rig):
    def interrupted():
        raise KeyboardInterrupt

    def gone():
        os._exit(0)

    def segfault():
        import ctypes

        ctypes.string_at(0)

    rank = rig.call(interrupted)[0]
    assert (rank.code, rank.answers) == (-signal.SIGINT, [])
    rank = rig.call(gone)[0]
    assert (rank.code, rank.answers) == (0, [])
    rank = rig.call(segfault)[0]
    assert (rank.code, rank.answers) == (-signal.SIGSEGV, [])
    assert b"segfault" in rank.err  # the Python stack, by faulthandler


def test_a_sigterm_is_never_lost(rig):
    def work():
        time.sleep(60)

    for _ in range(10):  # at once after the fork, when the rank has not yet put its signals in order
        rank = rig.run(
            rig.step(),
            letter.dump((work, (), {})),
            on_forked=lambda rank: signal.pidfd_send_signal(rank.pidfd, signal.SIGTERM),
        )[0]
        assert rank.code == -signal.SIGTERM


def test_the_template_ignores_what_asks_to_end(rig):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        rig.process.send_signal(number)
    assert rig.call(int)[0].payload == 0


def test_a_forked_child_is_mute(rig, tmp_path):
    def work():
        pid = os.fork()
        if pid == 0:
            return "child"
        os.waitpid(pid, 0)
        return "parent"

    rank = rig.call(work)[0]
    assert rank.payload == "parent"

    rank = script(rig, tmp_path / "f.py", "import os\nif os.fork() == 0:\n    1/0\nos.wait()\n")
    assert rank.answer.kind == "value"
    assert b"ZeroDivisionError" in rank.err


def test_ranks_differ_in_their_random_numbers(rig):
    def work():
        import random

        import numpy

        return random.random(), numpy.random.random()

    first, second = (rank.payload for rank in rig.call(work, n=2))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_what_one_step_leaks_the_next_does_not_see(rig):
    def leak():
        os.environ["LEAK"] = "1"
        os.chdir("/")
        sys.path.insert(0, "/leak")
        sys.modules["leak"] = sys

    def look():
        return "LEAK" in os.environ, os.getcwd(), "/leak" in sys.path, "leak" in sys.modules

    rig.call(leak)
    assert rig.call(look)[0].payload == (False, rig.cwd, False, False)


def test_threads_are_what_the_environment_says(rig):
    def work():
        import numpy
        import torch
        from threadpoolctl import threadpool_info

        a = numpy.ones((600, 600))
        b = torch.ones(600, 600)
        return (a @ a)[0, 0], (b @ b)[0, 0].item(), torch.get_num_threads(), threadpool_info()

    step = rig.step(env=rig.env | {"OMP_NUM_THREADS": "2"})
    numpy_value, torch_value, threads, pools = rig.run(step, letter.dump((work, (), {})))[0].payload
    assert (numpy_value, torch_value, threads) == (600.0, 600.0, 2)
    assert {pool["num_threads"] for pool in pools} == {2}


def test_logging_records_travel_in_stdout(rig):
    def work():
        import logging

        print("half", end="")
        logging.getLogger("app").info("a %s", "line\nbreak")
        logging.getLogger("app").debug("not asked for")
        try:
            1 / 0
        except ZeroDivisionError:
            logging.exception("bad")
        logging.basicConfig(format="USER %(message)s")
        logging.warning("both")

    rank = rig.call(work, log_token="T0KEN", log_level=20)[0]
    marks = [line for line in rank.out.split(b"\n") if b"\x1eT0KEN" in line]
    assert marks[0].startswith(b"half\x1eT0KEN")
    records = [json.loads(mark.partition(b"\x1eT0KEN")[2]) for mark in marks]
    assert [(r["name"], r["level"], r["message"], r["handled"]) for r in records] == [
        ("app", 20, "a line\nbreak", False),
        ("root", 40, "bad", False),  # logging.exception() calls basicConfig() by itself: no handler of the user's
        ("root", 30, "both", True),
    ]
    assert "ZeroDivisionError" in records[1]["exc_text"]
    assert rank.err == b"USER both\n"


# --- scripts and modules --------------------------------------------------------------------------------------------

LOOK = """
import json, os, sys, __main__
print(json.dumps({
    "argv": sys.argv, "path0": sys.path[0], "name": __name__, "file": __file__, "main": __main__.__dict__ is globals(),
    "cwd": os.getcwd(), "spec": __spec__ and __spec__.name, "package": __package__, "orig": sys.orig_argv[1:],
    "globals": sorted(globals()), "stdin": sys.stdin.read(), "lines": sys.stdout.line_buffering,
}))
"""


def test_a_script_finds_itself_as_under_python(rig, tmp_path):
    path = tmp_path / "look.py"
    rank = script(rig, path, LOOK, "--lr", "1")
    reference = subprocess.run(
        [sys.executable, str(path), "--lr", "1"],
        cwd=rig.cwd,
        env=rig.env,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    ours, theirs = json.loads(rank.out), json.loads(reference.stdout)
    assert ours.pop("lines") is True
    theirs.pop("lines")
    assert ours == theirs
    assert rank.answer.kind == "value"


def test_a_module_finds_itself_as_under_python(rig, tmp_path):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(LOOK)
    (package / "mod.py").write_text(LOOK)
    for name in ("pkg", "pkg.mod"):
        rank = rig.run(rig.step("module", argv=(name, "x"), cwd=str(tmp_path)))[0]
        reference = subprocess.run(
            [sys.executable, "-m", name, "x"],
            cwd=tmp_path,
            env=rig.env,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
        ours, theirs = json.loads(rank.out), json.loads(reference.stdout)
        for facts in (ours, theirs):
            del facts["lines"], facts["orig"]
        assert ours == theirs


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    1/0\nf()\n",
        "import sys\nsys.exit(3)\n",
        "import sys\nsys.exit('text')\n",
        "import sys\nsys.exit(256 + 7)\n",
        "this is no Python\n",
        "raise KeyboardInterrupt\n",
        "import atexit\natexit.register(print, 'bye')\nprint('hi')\n",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.2), print('late'))).start()\n",
        "import sys, os\nsys.stdout.close()\n",
        "import tempfile, weakref\nclass A: pass\na = A()\nweakref.finalize(a, print, 'final')\n",
        "class A:\n    def __del__(self): print('del')\na = A()\nb = [a]; b.append(b)\n",
        "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\n1/0\n",
        "import os\nif os.fork() == 0:\n    print('child')\n    raise SystemExit(0)\nos.wait()\nprint('parent')\n",
        "from concurrent.futures import ThreadPoolExecutor as P\np = P(1)\np.submit(print, 'pool')\n",
        "import os\nos.write(1, bytes(range(256)))\n",
        "import os\nos.abort()\n",
    ],
)
def test_a_script_ends_as_under_python(rig, tmp_path, text):
    path = tmp_path / "s.py"
    rank = script(rig, path, text)
    reference = subprocess.run([sys.executable, str(path)], cwd=rig.cwd, env=rig.env, check=False, capture_output=True)
    assert rank.code == reference.returncode
    assert rank.out == reference.stdout
    if b"Fatal Python error" not in rank.err:
        assert rank.err == reference.stderr


def test_a_script_s_exception_is_told(rig, tmp_path):
    rank = script(rig, tmp_path / "s.py", "raise ValueError('x')\n")
    assert rank.answer.kind == "exception"
    assert rank.answer.text.startswith("Traceback")
    assert rank.answer.text.endswith("ValueError: x\n")
    assert rank.payload is None


def test_open_files_are_written_out(rig, tmp_path):
    (tmp_path / "sibling.py").write_text(f"log = open({str(tmp_path / 'b')!r}, 'w')\nlog.write('b')\n")
    text = f"import sibling\nf = open({str(tmp_path / 'a')!r}, 'w')\nf.write('a')\n"
    assert script(rig, tmp_path / "s.py", text).code == 0
    assert (tmp_path / "a").read_text() == "a"
    assert (tmp_path / "b").read_text() == "b"


def test_multiprocessing_finds_main(rig, tmp_path):
    text = (
        "import multiprocessing as mp\ndef f(x):\n    return x * x\n"
        "if __name__ == '__main__':\n    for how in ('spawn', 'fork', 'forkserver'):\n"
        "        with mp.get_context(how).Pool(2) as pool:\n            print(pool.map(f, [1, 2, 3]))\n"
    )
    rank = script(rig, tmp_path / "s.py", text)
    assert rank.out.decode() == "[1, 4, 9]\n" * 3, rank.err.decode()
    assert len(rank.answers) == 1


def test_data_loader_workers(rig, tmp_path):
    text = (
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "data = TensorDataset(torch.arange(8.))\n"
        "print(sum(b[0].sum().item() for b in DataLoader(data, num_workers=2)))\n"
    )
    rank = script(rig, tmp_path / "s.py", text)
    assert rank.out == b"28.0\n", rank.err.decode()


def test_a_command(rig, tmp_path):
    rank = rig.run(rig.step("command", argv=("sh", "-c", "echo $RANK of $WORLD_SIZE; exit 7")), n=2)[1]
    assert (rank.out, rank.code, rank.answers) == (b"1 of 2\n", 7, [])
    rank = rig.run(rig.step("command", argv=("no-such-program",)))[0]
    assert rank.code == 127
    assert b"no-such-program" in rank.err
    plain = tmp_path / "plain"
    plain.touch()
    assert rig.run(rig.step("command", argv=(str(plain),)))[0].code == 126


def test_a_rank_has_no_descriptor_too_many(rig):
    def work():
        import contextlib

        found = []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                if int(fd) > 2:
                    found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return found

    (listing,) = [rank.payload for rank in rig.call(work)]
    assert len([link for link in listing if link.startswith("socket:")]) == 1
    assert [link for link in listing if link.startswith(("/memfd", "pipe:"))] == ["/memfd:zlaunch-meeting (deleted)"]


def test_a_directory_that_is_not_there(rig):
    rank = rig.run(rig.step(cwd="/no/such/directory"), letter.dump((int, (), {})))[0]
    assert rank.code == 1
    assert b"/no/such/directory" in rank.err
