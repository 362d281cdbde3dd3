"""What holds of every file of the project, and of the wheel that is made of them."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("zlaunch", "tests", "examples", "docs", ".ci")
TOP = ("README.md", "LICENSE", "pyproject.toml", ".gitignore")
LONGEST = 400
"""Lines of a module: what a head holds, with room for its docstrings."""

EVERYBODYS = {"/", "/home", "/root", "/tmp", "/usr", "/usr/local", "/opt", "/var", "/srv", "/mnt"}
"""Folders that every machine has; a checkout may lie directly below one."""


def files(*suffixes: str) -> list[Path]:
    """The project's own files: no caches, nothing binary."""
    found = [ROOT / name for name in TOP if (ROOT / name).exists()]
    for room in ROOMS:
        for folder, folders, names in os.walk(ROOT / room):
            folders[:] = [name for name in folders if name != "__pycache__" and not name.endswith("_cache")]
            found += [Path(folder, name) for name in names]
    return sorted(path for path in found if not suffixes or path.suffix in suffixes)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_walk_finds_the_project() -> None:
    names = {str(path.relative_to(ROOT)) for path in files()}
    assert {"README.md", "LICENSE", "pyproject.toml", ".ci/run", "zlaunch/py.typed", "examples/workflow.py"} <= names
    assert len(files(".py")) > 100


def test_no_file_names_the_machine_it_was_written_on() -> None:
    places = {str(ROOT), str(ROOT.parent), sys.prefix, str(Path.home())} - EVERYBODYS
    patterns = [rf"(?<![\w.]){re.escape(place)}(?![\w.-])" for place in places]
    hostname = socket.gethostname()
    if len(hostname) > 3 and hostname != "localhost":
        patterns.append(rf"\b{re.escape(hostname)}\b")
    pattern = re.compile("|".join(patterns))
    assert not [f"{path}: {found[0]}" for path in files() if (found := pattern.search(text_of(path)))]


def test_nothing_is_left_for_later() -> None:
    """Words that say "not done", put together here so that this file does not hold them."""
    words = ["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK", "NotImplemented" + "Error"]
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    found = []
    for path in files():
        lines = text_of(path).splitlines()
        found += [f"{path}:{number}" for number, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found


def test_modules_fit_a_head() -> None:
    sizes = {path: len(text_of(path).splitlines()) for path in files(".py") if ROOT / "zlaunch" in path.parents}
    assert not {str(path): size for path, size in sizes.items() if size > LONGEST}


def test_each_module_says_which_room_it_is() -> None:
    """A docstring that begins with its level; the front door and the fakes for tests stand beside the levels."""
    rooms = [path for path in files(".py") if ROOT / "zlaunch" in path.parents]
    beside = {"__init__.py", "_version.py", "__main__.py", "testing/__init__.py", "testing/pair.py"}
    unsaid = []
    for path in rooms:
        docstring = ast.get_docstring(ast.parse(text_of(path))) or ""
        name = str(path.relative_to(ROOT / "zlaunch"))
        if not docstring or not (name in beside or docstring.startswith("Level ")):
            unsaid.append(name)
    assert not unsaid


def sleeps(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls of ``time.sleep`` that a test or a fixture makes itself; in a function within it a rank may sleep."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        fixture = any("fixture" in ast.unparse(decorator) for decorator in function.decorator_list)
        if not (function.name.startswith("test_") or fixture):
            continue
        todo: list[ast.AST] = list(function.body)
        while todo:
            node = todo.pop()
            if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
                continue
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
                yield node
            todo += ast.iter_child_nodes(node)


def test_no_test_sleeps() -> None:
    """Tests wait for events: a sleep is too short on one machine and too long on all others."""
    assert list(sleeps(ast.parse("def test_it():\n    time.sleep(1)")))
    assert not list(sleeps(ast.parse("def test_it():\n    def rank():\n        time.sleep(1)")))
    found = {str(path): [call.lineno for call in sleeps(ast.parse(text_of(path)))] for path in files(".py")}
    assert not {path: lines for path, lines in found.items() if lines}


def test_the_front_page() -> None:
    readme = text_of(ROOT / "README.md")
    assert readme.startswith("# zlaunch\n")
    assert "pip install -c tests/constraints.txt '.[examples]' && zlaunch run -n 4 examples/train_digits.py" in readme
    assert "pip install -c tests/constraints.txt -e '.[test]' && pytest" in readme
    assert "Apache License" in text_of(ROOT / "LICENSE")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_pins_are_exact() -> None:
    """A reproducible installation: one version of each, torch's among them."""
    lines = [line.split("#")[0].strip() for line in text_of(ROOT / "tests" / "constraints.txt").splitlines()]
    pins = [line for line in lines if line]
    assert "torch==2.13.0" in pins
    assert not [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!-]+", pin)]


def test_what_pip_installs(tmp_path: Path) -> None:
    """The wheel has every module, says that it is typed, has the licence and the command, and no tests."""
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = tmp_path.glob("zlaunch-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "zlaunch = zlaunch.cli.main:main" in archive.read(entry).decode()
    modules = {str(path.relative_to(ROOT)) for path in files(".py", ".typed") if ROOT / "zlaunch" in path.parents}
    assert {name for name in names if ".dist-info/" not in name} == modules
    assert [name for name in names if name.endswith("licenses/LICENSE")]
