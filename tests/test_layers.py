"""The rules of the architecture: who may import whom, and who may load what."""

from __future__ import annotations

import ast
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

import zlaunch
from zlaunch.link.hub import Heard, Hub
from zlaunch.protocol.bootstrap import Bootstrap
from zlaunch.protocol.messages import Hello, Ping

ROOT = Path(zlaunch.__file__).parent

LEVELS = {
    "model": 1,
    "events": 1,
    "errors": 1,
    "failure": 1,
    "printable": 1,
    "tables": 1,
    "_version": 1,
    "protocol": 2,
    "systems": 2,
    "link": 3,
    "plan": 3,
    "torchenv": 3,
    "supervisor": 4,
    "agent": 4,
    "worker": 4,
    "backends": 4,
    "view": 4,
    "cluster": 5,
    "access": 5,
    "allocation": 5,
    "asking": 5,
    "registry": 5,
    "steps": 5,
    "worlds": 5,
    "launcher": 5,
    "result": 5,
    "fields": 5,
    "surroundings": 5,
    "log_handling": 5,
    "cli": 6,
    "integrations": 6,
    "__main__": 6,
    "testing": 5,
    "__init__": 6,
}
STRANGERS = {"supervisor", "agent", "worker", "backends", "view"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Absolute names of all that a module imports, also inside functions."""
    package = ["zlaunch", *path.relative_to(ROOT).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found += [stem] if node.module else [f"{stem}.{alias.name}" for alias in node.names]
    return found


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward_only(path: Path) -> None:
    mine = room(path)
    assert mine in LEVELS, f"which level is {mine}?"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "zlaunch" or len(parts) == 1:
            continue
        other = parts[1]
        if other == mine or other.startswith("__") or mine == "__init__":
            continue
        assert LEVELS[other] <= LEVELS[mine], f"{mine} (level {LEVELS[mine]}) imports {name} (level {LEVELS[other]})"
        if mine in STRANGERS:
            assert other not in STRANGERS, f"{mine} and {other} are strangers to one another"


def test_only_the_link_imports_zmq() -> None:
    importers = {room(p) for p in MODULES if any(n.split(".")[0] == "zmq" for n in imports(p))}
    assert importers == {"link"}


def test_only_launcher_and_worker_open_the_letter() -> None:
    importers = {room(p) for p in MODULES if any(n.startswith("zlaunch.protocol.letter") for n in imports(p))}
    assert importers <= {"launcher", "result", "worker"}
    picklers = {  # envelope takes the name of a buffer's type, and no more
        str(p.relative_to(ROOT))
        for p in MODULES
        if any(n.split(".")[0] in ("pickle", "cloudpickle", "marshal", "shelve", "dill") for n in imports(p))
    }
    assert all(name.startswith(("protocol/letter", "protocol/envelope")) for name in picklers), picklers


def loaded(code: str) -> set[str]:
    """The top-level modules that are there after running ``code`` in a new interpreter."""
    script = f"{code}\nimport sys; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import zlaunch", {"torch", "zmq", "rich", "cloudpickle", "numpy"}),
        ("import zlaunch.cli.main", {"torch", "zmq", "rich", "msgspec", "cloudpickle"}),
        ("import zlaunch.agent.loop", {"torch", "rich", "cloudpickle", "numpy"}),
        ("import zlaunch.worker.template, zlaunch.worker.spawned", {"zmq", "rich"}),
        ("import zlaunch.supervisor.loop", {"torch", "rich", "cloudpickle"}),
        ("import zlaunch.launcher", {"torch"}),
    ],
)
def test_who_loads_what(code: str, absent: set[str]) -> None:
    assert not loaded(code) & absent


COSTLY = {  # milliseconds each, and 16 agents may have to share two cores with everything else
    *("asyncio", "ctypes", "dataclasses", "hashlib", "importlib.util", "inspect", "ipaddress"),
    *("logging", "numpy", "pathlib", "psutil", "secrets", "shutil", "socket", "ssl", "subprocess", "tempfile"),
    *("torch", "typing_extensions", "urllib.parse", "zlaunch.agent.core", "zlaunch.link.hub"),
}
WATCHED_AGENT = """
import os, sys
class Watch:
    def find_spec(name, *_):
        if name == "zlaunch.agent.loop":
            os.write(1, " ".join(sys.modules).encode())
            os.read(0, 1)
            os._exit(0)
sys.meta_path.insert(0, Watch)
from zlaunch.agent.main import main; main()
"""


def test_an_agent_loads_little_before_its_hello() -> None:
    with closing(Hub()) as hub:
        bootstrap = Bootstrap(
            places={"h": msgspec.Raw(msgspec.json.encode(hub.invite(0)))},
            template=None,
            stdin_is_link=False,
            connect_timeout=30,
        )
        command = [sys.executable, "-c", WATCHED_AGENT]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
            assert agent.stdin is not None
            assert agent.stdout is not None
            agent.stdin.write(bootstrap.to_line())
            agent.stdin.flush()
            heard: list[object] = []
            while not any(isinstance(event, Heard) for event in heard):
                assert agent.poll() is None, "it has ended without a word"
                heard = hub.poll(1.0)[0]
            assert isinstance(heard[-1], Heard)
            assert isinstance(heard[-1].message, Hello)
            hub.send(0, Ping(0.0))
            assert hub.poll(0.1) is not None
            agent.stdin.close()
            there = set(agent.stdout.read().decode().split())
    assert "zmq" in there
    site = loaded("import pynvml" if "pynvml" in there else "")  # what .pth files load, and NVML where there are GPUs
    assert {name for name in COSTLY & there if name.split(".")[0] not in site} == set()


def test_no_core_does_io() -> None:
    """The pure hearts import nothing that could touch the world (``os`` only to read wait statuses)."""
    pure = {"__future__", "dataclasses", "typing", "collections", "enum", "msgspec", "signal", "zlaunch", "os"}
    minds = ("supervisor/core.py", "supervisor/schedule.py", "supervisor/state.py", "supervisor/fates.py")
    for name in (*minds, "agent/core.py", "agent/rank.py", "agent/lines.py", "plan.py", "tables.py"):
        heads = {n.split(".")[0] for n in imports(ROOT / name)}
        assert heads <= pure | {"hashlib", "json", "fnmatch", "re"}, name
        tree = ast.parse((ROOT / name).read_text())
        calls = {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_os(node.func.value)
        }
        assert calls <= {"WIFSIGNALED", "WTERMSIG", "waitstatus_to_exitcode"}, name


def _is_os(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "os"


def test_every_public_name_is_there() -> None:
    for name in zlaunch.__all__:
        assert getattr(zlaunch, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = zlaunch.nonsense  # type: ignore[attr-defined]
