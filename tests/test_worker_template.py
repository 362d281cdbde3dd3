"""A fork template's own life: imports that break it, ranks as new interpreters, and its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import pytest
from worker_rig import PATIENCE, ROOT, Rig

from zlaunch.protocol.local import Broken, Ready


def test_an_import_that_fails_is_told_with_its_traceback():
    with Rig(preload=("json", "no_such_module_at_all")) as rig:
        assert isinstance(rig.ready, Broken)
        assert "No module named 'no_such_module_at_all'" in rig.ready.text
        assert rig.process.wait(PATIENCE) == 0


GPU_FILE = f"/dev/nvidia-of-a-test-{os.getpid()}"


@contextlib.contextmanager
def gpu_file():
    """A file that is called as an NVIDIA device is, which is all that a template looks at."""
    try:
        open(GPU_FILE, "w").close()
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.unlink(GPU_FILE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n", "1 thread"),
        (f"import os\nfd = os.open({GPU_FILE!r}, os.O_RDONLY)\n", GPU_FILE),
    ],
    ids=["a thread", "a GPU"],
)
def test_a_module_that_must_not_be_forked_is_named(tmp_path, text, words):
    (tmp_path / "busy.py").write_text(text)
    with gpu_file() as there, Rig(preload=("busy",), env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as rig:
        if not there and words == GPU_FILE:
            pytest.skip("a file in /dev can be made by root only")
        assert isinstance(rig.ready, Ready)
        assert rig.ready.start_method == "spawn"
        assert "importing busy" in rig.ready.note
        assert words in rig.ready.note
        assert rig.call(os.getpid)[0].payload not in (0, rig.process.pid)


def test_ranks_as_new_interpreters(tmp_path):
    def work():
        import sys

        return "torch" in sys.modules, os.environ["LOCAL_RANK"], os.getppid()

    with Rig(start_method="spawn", preload=("torch",)) as rig:
        ranks = rig.call(work, n=2)
        assert [rank.payload for rank in ranks] == [(False, str(i), rig.process.pid) for i in range(2)]
        path = tmp_path / "s.py"
        path.write_text("import sys\nprint(sys.argv, sys.path[0], __name__)\nsys.exit(5)\n")
        rank = rig.run(rig.step("script", argv=(str(path), "x")))[0]
        assert rank.out.decode() == f"{[str(path), 'x']} {tmp_path} __main__\n"
        assert (rank.code, rank.answers) == (5, [])


def test_a_module_s_open_file_stays_open_in_the_ranks(tmp_path):
    (tmp_path / "holder.py").write_text(f"file = open({__file__!r})\n")
    with Rig(preload=("holder",), env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as rig:

        def work():
            import holder

            return holder.file.readline()

        assert rig.call(work)[0].payload.startswith('"""A fork template')


@pytest.mark.parametrize("death", ["agent", "template"])
def test_nothing_survives(tmp_path, death):
    """Neither the end of the agent nor that of the template leaves a rank; the first leaves no daemon either."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    daemon = "if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n" if death == "agent" else ""
    path = tmp_path / "s.py"
    path.write_text(
        "import os, signal, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"{daemon}"
        f"held = open({str(fifo)!r}, 'w')\nheld.write('up\\n'); held.flush()\nsignal.pause()\n"
    )
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with Rig() as rig:
        expected = (
            6 if death == "agent" else 3
        )  # two processes a rank say that they are up, or one: "up" and a line end

        def after_fork(rank):
            said = b""
            while len(said) < expected:
                assert select.select([reader], [], [], PATIENCE)[0]
                said += os.read(reader, 100)
            if death == "agent":
                rig.wire.close()
            else:
                rig.process.send_signal(signal.SIGKILL)
            while select.select([reader], [], [], PATIENCE)[0]:  # the pipe ends when nobody holds it any more
                if not os.read(reader, 100):
                    break
            else:
                pytest.fail("something lives on")
            raise _Done

        with pytest.raises(_Done):
            rig.run(rig.step("script", argv=(str(path),)), on_forked=after_fork)
    os.close(reader)


class _Done(Exception):
    pass
