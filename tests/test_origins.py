"""Where functions come from: a program, ``-c``, ``-m``, stdin, the prompt, ``exec``, a sibling, a package here."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TIMEOUT = 60

QUICK = "workers_per_host=2, backend=None, preload=(), grace_period=3"

NEIGHBOUR = '''
"""Lies beside the program; ranks import it from where it is."""
import os


class NeighbourError(Exception):
    pass


def shout(word):
    return word.upper() + os.environ["RANK"]


def refuse():
    raise NeighbourError("not me")
'''

# Blocks hold no empty line and are followed by one, so that the text can be typed at the prompt too.
SOURCE = f"""
import dataclasses, enum, os, sys
import zlaunch
from neighbour import NeighbourError, refuse, shout
class Diverged(Exception):
    def __init__(self, loss):
        super().__init__(loss)
        self.loss = loss

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Report:
    rank: int
    colour: Colour
    words: list

OFFSET = 1
def rank():
    return int(os.environ["RANK"])

def work(word):
    return Report(rank() + OFFSET, Colour.RED, [shout(word)])

def fail():
    raise Diverged(0.5)

OFFSET = 10
with zlaunch.Launcher({QUICK}) as cluster:
    reports = cluster.run(work, "hello")
    try:
        cluster.run(fail)
    except Diverged as error:
        print("caught", error.loss, type(error) is Diverged, error.__cause__.hostname)
    try:
        cluster.run(refuse)
    except NeighbourError as error:
        print("caught", error)
    print("lambda", list(cluster.run(lambda: rank() + OFFSET)))

print("main", [r == Report(10 + i, Colour.RED, ["HELLO" + str(i)]) for i, r in enumerate(reports)])
"""

SAID = ["caught 0.5 True localhost", "caught not me", "lambda [10, 11]", "main [True, True]"]


def python(
    *argv: str, cwd: Path, stdin: str = "", status: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A Python program run to its end."""
    done = subprocess.run(
        [sys.executable, *argv],
        input=stdin,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == status, f"{argv[:2]}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with a package's worth of files, which is not installed."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "neighbour.py").write_text(NEIGHBOUR)
    (folder / "program.py").write_text(SOURCE)
    return folder


def test_a_program(app: Path, tmp_path: Path) -> None:
    """Its neighbour is found beside it, not in the working directory; the program itself is not run again."""
    done = python("app/program.py", cwd=tmp_path)
    assert done.stdout.splitlines() == SAID


def test_dash_c(app: Path) -> None:
    assert python("-c", SOURCE, cwd=app).stdout.splitlines() == SAID


def test_standard_input(app: Path) -> None:
    assert python("-", cwd=app, stdin=SOURCE).stdout.splitlines() == SAID


def test_a_module_with_relative_imports(app: Path, tmp_path: Path) -> None:
    """``python -m app.program``: the package lies in the working directory and is installed nowhere."""
    (app / "__init__.py").write_text("")
    late = "\ndef late():\n    from .neighbour import shout\n    return shout('late')\n\n"
    text = SOURCE.replace("from neighbour", "from .neighbour").replace("\nOFFSET = 10\n", late + "\nOFFSET = 10\n")
    (app / "program.py").write_text(
        text.replace('    print("lambda"', '    print(cluster.run(late)[1])\n    print("lambda"')
    )
    said = python("-m", "app.program", cwd=tmp_path).stdout.splitlines()
    assert said == [*SAID[:2], "LATE1", *SAID[2:]]


def test_the_prompt(app: Path) -> None:
    """Typed at ``python -i``, where no file has the source."""
    done = python("-i", "-q", cwd=app, stdin=SOURCE + "\n", env={"PYTHONSTARTUP": ""})
    assert [line for line in done.stdout.splitlines() if line] == SAID


def test_exec(app: Path) -> None:
    """Code that a program has made: without a module, and in a module that no file has."""
    code = """
    import sys, types
    source = open("program.py").read()
    exec(source, {})
    module = types.ModuleType("generated")
    exec(source, module.__dict__)
    """
    assert python("-c", textwrap.dedent(code), cwd=app).stdout.splitlines() == SAID * 2


def test_a_new_interpreter_per_rank(app: Path, tmp_path: Path) -> None:
    (app / "program.py").write_text(SOURCE.replace("grace_period=3", 'grace_period=3, start_method="spawn"'))
    assert python("app/program.py", cwd=tmp_path).stdout.splitlines() == SAID


def test_a_package_in_the_working_directory(app: Path, tmp_path: Path) -> None:
    """The package is imported by the ranks as by the program, its own state is fresh in each."""
    (app / "__init__.py").write_text("import os\nLOADED = [os.getpid()]\n")
    code = f"""
    import os, zlaunch
    from app import LOADED, neighbour
    def look():
        import app
        return app.LOADED == [os.getpid()], neighbour.shout("a")
    print(zlaunch.Launcher({QUICK}).run(look).results)
    """
    done = python("-c", textwrap.dedent(code), cwd=tmp_path)
    assert done.stdout == "{'localhost': [(True, 'A0'), (True, 'A1')]}\n"


def test_a_module_that_ranks_cannot_import_is_named(app: Path, tmp_path: Path) -> None:
    """A function of a module from a place that only the program knows: the error says which module is missing."""
    code = f"""
    import importlib.util, sys, zlaunch
    spec = importlib.util.spec_from_file_location("hidden_away", "app/neighbour.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["hidden_away"] = module
    spec.loader.exec_module(module)
    try:
        zlaunch.Launcher({QUICK}).run(module.shout, "a")
    except zlaunch.SerializationError as error:
        print(error)
    """
    done = python("-c", textwrap.dedent(code), cwd=tmp_path)
    assert "hidden_away" in done.stdout
    assert "rank" in done.stdout


def test_a_model_of_the_program_comes_back_as_its_own_class(tmp_path: Path) -> None:
    """An ``nn.Module`` that the program defines, trained on ranks: tied weights stay tied, its methods work."""
    code = """
    import torch, zlaunch
    from torch import nn

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(64, 64)
            self.outer = nn.Linear(64, 64)
            self.outer.weight = self.inner.weight
        def forward(self, x):
            return self.outer(self.inner(x))

    def train(model):
        model(torch.ones(1, 64)).sum().backward()
        with torch.no_grad():
            model.inner.weight.sub_(model.inner.weight.grad)
        return model

    given = Tied()
    before = given.inner.weight.detach().clone()
    model = zlaunch.Launcher(workers_per_host=1, backend=None).run(train, given)[0]
    print(type(model) is Tied, model.outer.weight is model.inner.weight, torch.equal(given.inner.weight, before))
    with torch.no_grad():
        model.inner.weight.add_(1)
    print(not torch.equal(model.inner.weight, before), model(torch.ones(1, 64)).shape[1])
    """
    done = python("-c", textwrap.dedent(code), cwd=tmp_path)
    assert done.stdout == "True True True\nTrue 64\n"


def test_two_programs_at_once_do_not_disturb_each_other(app: Path) -> None:
    """Each has its own agents, port and keys; both say what they say alone."""
    programs = [
        subprocess.Popen([sys.executable, "program.py"], cwd=app, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        for program in programs:
            stdout, _ = program.communicate(timeout=TIMEOUT)
            assert program.returncode == 0
            assert stdout.splitlines() == SAID
    finally:
        for program in programs:
            program.kill()
            program.wait()
