"""A real Jupyter kernel: functions of a cell run on ranks while the notebook's own event loop goes on."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

TIMEOUT = 40.0
QUICK = "workers_per_host=2, backend=None, preload=(), grace_period=3"


@dataclass
class Cell:
    """What a cell has printed, shown and raised."""

    stdout: str = ""
    stderr: str = ""
    value: str = ""
    error: str = ""
    traceback: list[str] = field(default_factory=list)
    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Every state of every display, by its id."""

    def must_pass(self) -> Cell:
        assert not self.error, f"{self.error}\n" + "\n".join(self.traceback) + self.stderr
        return self


class Notebook:
    """Runs cells one after the other, as a front end does."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client

    def run(
        self,
        code: str,
        on_stdout: Callable[[str], None] | None = None,
        on_table: Callable[[list[dict[str, str]]], None] | None = None,
    ) -> Cell:
        """Run one cell to its end; ``on_stdout`` is told all of its output, each time there is more, and ``on_table``
        all states of a display."""
        cell = Cell()
        end = time.monotonic() + TIMEOUT
        number = self.client.execute(textwrap.dedent(code))
        while True:
            message: dict[str, Any] = self.client.get_iopub_msg(timeout=max(0.1, end - time.monotonic()))
            if message["parent_header"].get("msg_id") != number:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    setattr(cell, content["name"], getattr(cell, content["name"]) + content["text"])
                    if on_stdout is not None:
                        on_stdout(cell.stdout)
                case "display_data" | "update_display_data" as kind:
                    states = cell.tables.setdefault(content["transient"]["display_id"], [])
                    assert (kind == "display_data") == (not states), "displayed once, and then updated in place"
                    states.append(content["data"])
                    if on_table is not None:
                        on_table(states)
                case "execute_result":
                    cell.value = content["data"]["text/plain"]
                case "error":
                    cell.error = f"{content['ename']}: {content['evalue']}"
                    cell.traceback = content["traceback"]
                case "status" if content["execution_state"] == "idle":
                    return cell


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path), env={**os.environ, "JUPYTER_PLATFORM_DIRS": "1"})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT)
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_cell_runs_a_function_on_ranks(notebook: Notebook) -> None:
    """Results come back, an event loop is running all the while, and the ranks' lines appear in the cell."""
    cell = notebook.run(
        f"""
        import asyncio, os
        import zlaunch

        base = 40

        class Answer:
            def __init__(self, value):
                self.value = value

        def work(n):
            print("hello of", os.environ["RANK"])
            print("complaint of", os.environ["RANK"], file=__import__("sys").stderr)
            return Answer(base + n + int(os.environ["RANK"]))

        assert asyncio.get_running_loop().is_running()
        result = zlaunch.Launcher({QUICK}).run(work, 1)
        [(type(a) is Answer, a.value) for a in result]
        """
    ).must_pass()
    assert cell.value == "[(True, 41), (True, 42)]"
    for rank in (0, 1):
        assert f"[rank {rank}] hello of {rank}\n" in cell.stdout
        assert f"[rank {rank}] complaint of {rank}\n" in cell.stderr


def test_an_exception_of_the_notebooks_own_class_is_caught(notebook: Notebook) -> None:
    cell = notebook.run(
        f"""
        import zlaunch

        class Diverged(Exception):
            def __init__(self, loss):
                super().__init__(loss)
                self.loss = loss

        def train(lr):
            if lr > 1:
                raise Diverged(lr * 2)
            return lr

        with zlaunch.Launcher({QUICK}) as cluster:
            for lr in (5, 0.5):
                try:
                    print("result", cluster.run(train, lr)[0])
                except Diverged as error:
                    print("caught", error.loss, type(error) is Diverged, error.__cause__.hostname)
        """
    ).must_pass()
    said = [line for line in cell.stdout.splitlines() if not line.startswith("[rank")]
    assert said == ["caught 10 True localhost", "result 0.5"]


def test_agents_stay_from_cell_to_cell(notebook: Notebook) -> None:
    """``start`` in one cell, steps in others, ``stop`` in the last; a function that was defined again runs as it is
    now, and what ranks print belongs to the cell that runs the step."""
    notebook.run(
        f"""
        import os, psutil, zlaunch
        cluster = zlaunch.Launcher({QUICK}).start()
        def work():
            print("first words")
            return os.getppid()
        """
    ).must_pass()
    first = notebook.run("parents = set(cluster.run(work)); parents").must_pass()
    assert "first words" in first.stdout
    second = notebook.run(
        """
        def work():
            print("second words")
            return os.getppid()
        again = set(cluster.run(work))
        parents == again, len(again)
        """
    ).must_pass()
    assert second.value == "(True, 1)"
    assert "second words" in second.stdout
    assert "first words" not in second.stdout
    last = notebook.run("cluster.stop(); psutil.Process().children(recursive=True)").must_pass()
    assert last.value == "[]"
    notebook.run("cluster.run(work)").must_pass()  # after stop: agents for that step alone
    assert notebook.run("psutil.Process().children(recursive=True)").must_pass().value == "[]"


@pytest.mark.parametrize("stays", [False, True], ids=["one step", "agents that stay"])
def test_interrupting_a_cell_ends_its_ranks_and_no_more(notebook: Notebook, stays: bool) -> None:
    """The front end's "interrupt": KeyboardInterrupt in the cell, no rank alive then, and the next cell works."""
    notebook.run(
        f"""
        import os, time, psutil, zlaunch
        launcher = zlaunch.Launcher({QUICK})
        if {stays}:
            launcher.start()
        def stuck():
            print("pid", os.getpid())
            time.sleep(600)
        """
    ).must_pass()
    interrupted = False

    def interrupt(stdout: str) -> None:
        nonlocal interrupted
        if stdout.count("pid ") == 2 and not interrupted:
            interrupted = True
            notebook.manager.interrupt_kernel()

    cell = notebook.run("launcher.run(stuck)", on_stdout=interrupt)
    assert cell.error.startswith("KeyboardInterrupt"), (cell.error, cell.stderr)
    pids = [int(line.rsplit(" ", 1)[1]) for line in cell.stdout.splitlines() if " pid " in line]
    assert len(pids) == 2
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    after = notebook.run("print(list(launcher.run(lambda: os.environ['RANK'])))").must_pass()
    assert after.stdout.splitlines()[-1] == "['0', '1']"
    assert notebook.run("launcher.stop(); psutil.Process().children(recursive=True)").must_pass().value == "[]"


def test_the_ranks_are_shown_in_a_table_that_is_updated_in_place(notebook: Notebook, tmp_path: Path) -> None:
    """It shows what the terminal's does, at most twice a second, and stays as it was at the end."""
    os.mkfifo(tmp_path / "gate")
    notebook.run(
        f"""
        import os, zlaunch
        def work():
            print("<b>begun</b> by", os.environ["RANK"])
            open("gate").read()
            print("\\x1b[2Jdone by", os.environ["RANK"])
            if os.environ["RANK"] == "1":
                os._exit(7)
        def run(view, function):
            return zlaunch.Launcher(view=view, {QUICK}).run(function)
        """
    ).must_pass()
    began = time.monotonic()
    opened: list[int] = []

    def open_gate(states: list[dict[str, str]]) -> None:
        if len(states) >= 2 and not opened:
            opened.append(os.open(tmp_path / "gate", os.O_WRONLY))
            os.close(opened[0])

    cell = notebook.run("run('auto', work)", on_table=open_gate)
    took = time.monotonic() - began
    assert cell.error.startswith("WorkerFailedError")
    ((states),) = cell.tables.values()
    first, last = states[0], states[-1]
    assert "2 running" in first["text/plain"]
    assert "&lt;b&gt;begun&lt;/b&gt; by 0" in first["text/html"]
    assert "<b>" not in first["text/html"]
    rows = [" ".join(line.split()) for line in last["text/plain"].splitlines()]
    assert any("1 localhost:1 ✗ exited 7" in row and row.endswith("done by 1") for row in rows), rows
    assert "\x1b" not in last["text/html"]
    assert len(states) <= took / 0.5 + 1
    assert "[rank 0] <b>begun</b> by 0\n" in cell.stdout
    for view, function in (("auto", "int"), ("plain", "work")):
        shut = Notebook.run(notebook, f"run({view!r}, {function})", on_stdout=lambda said: open_once(said, tmp_path))
        assert not shut.tables, "a step is over before anybody could read a table, or nobody wants one"


def open_once(said: str, folder: Path) -> None:
    """Let ranks that have said so go on."""
    if said.count("begun") == 2 and "done" not in said:
        os.close(os.open(folder / "gate", os.O_WRONLY))


def test_a_submitted_step_goes_on_while_cells_run(notebook: Notebook) -> None:
    """``submit`` gives the prompt back; the result is there in a later cell, also through asyncio."""
    notebook.run(
        f"""
        import asyncio, os, zlaunch
        cluster = zlaunch.Launcher({QUICK}).start()
        run = cluster.submit(lambda: int(os.environ["RANK"]) + 1)
        """
    ).must_pass()
    cell = notebook.run("list(await asyncio.to_thread(run.result))").must_pass()
    assert cell.value == "[1, 2]"
    assert notebook.run("cluster.stop(); run.status()").must_pass().value == "'succeeded'"


@pytest.mark.parametrize("now", [False, True], ids=["restart", "kill"])
def test_a_kernel_that_goes_takes_agents_and_ranks_with_it(notebook: Notebook, now: bool) -> None:
    """Agents that nobody has stopped, and a step that is running: the front end's "restart" leaves neither."""
    pids = notebook.run(
        f"""
        import psutil, time, zlaunch
        cluster = zlaunch.Launcher({QUICK}).start()
        cluster.run(int)
        run = cluster.submit(time.sleep, 600)
        [p.pid for p in psutil.Process().children(recursive=True)]
        """
    ).must_pass()
    ours = [psutil.Process(int(pid)) for pid in pids.value.strip("[]").split(", ")]
    assert len(ours) >= 2, "an agent and its template at least"
    notebook.manager.shutdown_kernel(now=now)
    _gone, alive = psutil.wait_procs(ours, timeout=5)
    assert not alive
