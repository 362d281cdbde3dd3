"""The docs say what is: generated pages are up to date, links lead somewhere, examples run and print what they show.

A page marks its blocks with comments that a reader does not see:

- ``<!-- file: NAME -->``: the block is a file that the page's commands use;
- ``<!-- run -->``: the block runs; ``<!-- run: 1 -->`` ends with this status. The Python blocks of a page are one
  program;
- ``<!-- output -->``: every line of the block is printed by the page's program.

A ``console`` block shows its own output below its command. Numbers, ids, folders and the ranks' prefixes may differ.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from zlaunch.backends.scheduler import Launch, Nodes, Scheduler
from zlaunch.model import AllocationRequest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
GENERATORS = ("reference", "states", "benchmarks")

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(
    r"^<!-- (?P<mark>run|file|output)(?:: (?P<word>\S+))? -->\n```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_COMMAND_TIME = 90


def generator(name: str) -> ModuleType:
    """A script of docs/, which finds its neighbours as it does when it is run."""
    sys.path.insert(0, str(DOCS))
    try:
        spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(DOCS))


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_pages_are_up_to_date(name: str) -> None:
    for path, text in generator(name).pages().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is out of date; run: python docs/{name}.py"


def test_the_numbers_show_what_was_measured() -> None:
    def who(name: str, kind: str, median: float | None, **facts: int) -> dict[str, object]:
        return {"name": name, "kind": kind, "median": median, "rounds": [facts]}

    contestants = [
        who("zlaunch", "zlaunch", 512_345.6),
        who("zlaunch, encrypted wire", "zlaunch", 1.0),
        who("torchrunx", "peer", 19_000.0, console_lost=3),
        who("torchrun, cold", "peer", None),
        who("bare forks", "floor", 0.0213),
    ]
    machine = {"date": "2026-01-02T00:00", "cores": 2, "python": "3.11", "versions": {"torch": "2.13", "numpy": None}}
    rows = [{"title": "lines", "unit": "lines/s", "contestants": contestants}]
    text = generator("benchmarks").render({"machine": machine, "rows": rows})
    assert (
        "| lines | 512,346 lines/s | failed (cold) | 19,000 lines/s, lines lost | 0.0213 lines/s (bare forks) |" in text
    )
    assert "| … encrypted wire | 1 lines/s |" in text


# --- links ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: there is no {target}"
        assert target.is_relative_to(ROOT), f"{link} leads out of the project"
        if anchor:
            assert anchor in anchors(target), f"{link}: {target.name} has no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_contents() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall((DOCS / "README.md").read_text())}
    missing = [page.name for page in PAGES[1:] if page.name != "README.md" and page not in linked]
    assert not missing


# --- what the pages promise -------------------------------------------------------------------------------------------


def test_the_readme_installs_and_runs_what_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    commands = re.findall(r"^```sh\n(pip install .*?)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        for extra in re.findall(r"\.\[(\w+)\]", command):
            assert extra in project["optional-dependencies"]
        for word in re.findall(r"[\w/]+\.(?:py|txt)", command):
            assert (ROOT / word).is_file(), f"{command}: there is no {word}"
        assert "zlaunch run" not in command or "zlaunch" in project["scripts"]


def test_the_page_of_dependencies_has_all_and_no_others() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=!~\[; ]", dependency)[0] for dependency in project["dependencies"]}
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", (DOCS / "reference/dependencies.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == wanted
    assert all(len(why) > 20 for _, why in rows)


def test_the_page_of_variables_has_what_ranks_get() -> None:
    from zlaunch.model import Seat, Step
    from zlaunch.torchenv.environment import rank_environment

    step = Step(id="s", run_id="s", kind="command", env={}, cwd="/")
    seat = Seat(
        rank=0,
        local_rank=0,
        world_size=1,
        local_world_size=1,
        node_rank=0,
        nodes=1,
        hostname="localhost",
        master_addr="127.0.0.1",
        master_port=1,
    )
    page = (DOCS / "reference/environment.md").read_text()
    missing = [name for name in rank_environment(step, seat) if f"`{name}`" not in page]
    assert not missing


def test_the_page_of_refusals_has_every_kind() -> None:
    from typing import get_args

    from zlaunch.link.words import RefusalKind

    page = (DOCS / "explanation/wire.md").read_text()
    assert not [kind for kind in get_args(RefusalKind) if f"`{kind}`" not in page]


def test_the_page_of_json_has_the_fields_of_a_line() -> None:
    import json

    from zlaunch.events import Output
    from zlaunch.view.jsonlines import json_lines

    event = Output(at=1.0, run="r", rank=0, local_rank=0, hostname="h", stream="out", data=b"a", piece=True)
    fields = set(json.loads(json_lines(event))) - {"v", "event", "at"}
    page = (DOCS / "reference/json.md").read_text()
    described = page.partition("## `output`")[2].partition("## ")[0]
    assert fields == set(re.findall(r"^\| `(\w+)` \|", described, re.MULTILINE))


# --- examples ---------------------------------------------------------------------------------------------------------


@dataclass
class Examples:
    """What a page wants to be run."""

    files: dict[str, str] = field(default_factory=dict)
    console: list[tuple[str, int, list[str]]] = field(default_factory=list)
    program: str = ""
    output: list[str] = field(default_factory=list)


def examples(page: Path) -> Examples:
    """The marked blocks of a page."""
    found = Examples()
    for match in _BLOCK.finditer(page.read_text()):
        text, word = match["text"], match["word"]
        match match["mark"], match["kind"]:
            case "file", _:
                found.files[word] = text
            case "output", _:
                found.output += text.splitlines()
            case "run", "python":
                found.program += text
            case "run", "console":
                command, *shown = text.splitlines()
                assert command.startswith("$ "), f"{page.name}: a console block begins with its command"
                found.console.append((command[2:], int(word or 0), shown))
            case _:
                pytest.fail(f"{page.name}: a block of {match['kind']} cannot run")
    return found


def runnable() -> list[Path]:
    """Pages with something to run."""
    return [page for page in PAGES if "<!-- run" in page.read_text()]


def alike(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"^\[ranks? [\d,-]+\] (\[rank\d+\]: )?", "", line)
    line = re.sub(r"/\S*/(?=\S)", "", line)
    line = re.sub(r"\d{8}-\d{6}-[0-9a-f]{8}", "RUN", line)
    # how many of the others fail for want of a peer before they are ended is a race
    line = re.sub(r"^zlaunch: \d+ ranks? (failed because a peer was gone|w\w+ ended by zlaunch.*)", "zlaunch: N", line)
    line = re.sub(r"[\d.]+ m?s after the start", "N s after the start", line)
    return re.sub(r"\bpid \d+", "pid N", line)


def check_output(printed: str, expected: list[str]) -> None:
    there = [alike(line) for line in printed.splitlines()]
    missing = [line for line in expected if alike(line) not in there]
    assert not missing, f"not printed: {missing}\n--- printed was\n{printed}"


@pytest.mark.parametrize("page", runnable(), ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run_and_print_what_is_shown(page: Path, tmp_path: Path) -> None:
    found = examples(page)
    env = environment(tmp_path / "bin")
    here = tmp_path / "here"
    here.mkdir()
    for name, text in found.files.items():
        (here / name).write_text(text)
    for command, status, shown in found.console:
        done = run(["/bin/sh", "-c", command], here, env)
        assert done.returncode == status, f"{command}: status {done.returncode}\n{done.stdout}"
        check_output(done.stdout, shown)
    if found.program:
        (here / "page.py").write_text(found.program)
        done = run([sys.executable, "page.py"], here, env)
        assert done.returncode == 0, done.stdout
        check_output(done.stdout, found.output)


def environment(bin_dir: Path) -> dict[str, str]:
    """One in which ``zlaunch`` and ``python`` are this Python's, without settings of whoever runs the tests."""
    bin_dir.mkdir()
    for name, module in (("zlaunch", "-m zlaunch"), ("python", "")):
        (bin_dir / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (bin_dir / name).chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("ZLAUNCH_")}
    return {**env, "PATH": f"{bin_dir}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def run(command: list[str], here: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """stdout and stderr together; whoever takes too long is killed, and its agent ends by itself."""
    return subprocess.run(
        command,
        cwd=here,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_COMMAND_TIME,
        check=False,
    )


def test_the_fourth_scheduler_on_its_page_is_whole() -> None:
    """One file is all that it takes; what it says of PBS nobody has tried."""
    page = (DOCS / "howto" / "add-a-scheduler.md").read_text()
    code = page.partition('```python\n"""Level 4')[2].partition("\n```")[0]
    module = ModuleType("zlaunch.backends.pbs")
    module.__package__ = "zlaunch.backends"
    exec(compile('"""Level 4' + code, "pbs.py", "exec"), module.__dict__)
    pbs: Scheduler = module.__dict__["Pbs"]()
    assert {"name", "title", "submitter", "mark", "asked", "outputs", "unknown"} <= vars(type(pbs)).keys()
    request = AllocationRequest(nodes=2, ranks_per_node=4, minutes=90, dependency="afterok:12", name="a b")
    words = " ".join(pbs.words(request, {}))
    assert "select=2:" in words
    assert "depend=afterok:12" in words
    launch = Launch("/usr/bin/python3", None, "/home/me/launch")
    assert pbs.hold(request, launch, {}).files.keys() == {"hold.sh", "job.sh", "agent.sh"}
    assert "mpiexec" in pbs.agents(Nodes("1", ("a", "b")), launch, (), {}).argv[-1]
    assert pbs.job_id("12.server\n") == "12.server"
