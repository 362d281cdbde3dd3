"""Benchmarks: what is measured, as a table of rows; each row has contestants, which are measured in turn.

A contestant's ``measure`` takes a ``Workshop`` and returns one round's numbers. Every number is taken on
CLOCK_MONOTONIC, which all processes of a machine share, so that a moment in one can be set against one in another.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from counting import Count, count
from hosts import HOST_ROWS
from processes import Failed, Workshop, loopback_bytes, python, tool, wait_until
from terms import LIMIT, Contestant, Row, Sample

RANKS = 8
LINES = 200_000
LINES_TORCHRUNX = 20_000
_TABLE = re.compile(rb"\r\x1b\[\?7l.*?\x1b\[\?7h", re.DOTALL)
"""The table of the live view, which repeats some lines."""
MEGABYTES = 256
NO_SHARED_MEMORY = {"ZLAUNCH_NO_SHARED_MEMORY": "1"}

# --- steps ------------------------------------------------------------------------------------------------------------


def driven_steps(product: str, backend: str | None, repeat: int, shop: Workshop) -> Sample:
    """Steps that a Python program launches."""
    answer = shop.driver(product).ask(LIMIT, do="steps", ranks=RANKS, backend=backend, repeat=repeat)
    return Sample(answer["seconds"])


def torchrun(program: str, *argv: str, shop: Workshop) -> Sample:
    """A script under torchrun, from nothing to its end."""
    command = [*tool("torchrun"), "--standalone", f"--nproc-per-node={RANKS}", *python(program)[1:], *argv]
    return Sample([shop.timed(command, LIMIT)])


def driven_groups(product: str, cold: bool, shop: Workshop) -> Sample:
    """A process group of a Python program's ranks, from the call until all have met in it."""
    return Sample([shop.driver(product).ask(LIMIT, do="groups", ranks=RANKS, cold=cold)["seconds"]])


def torchrun_groups(shop: Workshop) -> Sample:
    """The same under torchrun, from the start of its command."""
    folder = shop.new_folder()
    began = time.monotonic()
    torchrun("step.py", "gloo", str(folder), shop=shop)
    met = [float(path.read_text()) for path in folder.glob("met.*")]
    if len(met) != RANKS:
        raise Failed(f"{len(met)} of {RANKS} ranks have met")
    return Sample([max(met) - began])


def forks(group: str, repeat: int, shop: Workshop) -> Sample:
    """Bare forks of a process that has torch imported."""
    running = shop.start(
        [*python("forks.py"), str(RANKS), str(repeat), group],
        folder := shop.new_folder(),
        {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdout=folder / "seconds",
    )
    running.wait(LIMIT)
    return Sample(json.loads((folder / "seconds").read_text()))


def command(*argv: str, shop: Workshop) -> Sample:
    """Any program, from its start to its end."""
    return Sample([shop.timed(argv, LIMIT)])


def imports(preload: str, shop: Workshop) -> Sample:
    """A script that imports transformers, on ranks that have imported ``preload`` before the fork."""
    return command(*_run(), "--preload", preload, *python("import_transformers.py")[1:], shop=shop)


# --- deaths -----------------------------------------------------------------------------------------------------------


def driven_death(product: str, backend: str | None, shop: Workshop) -> Sample:
    """From SIGKILL to one of the ranks of a step to the exception in the program that called it."""
    folder = shop.new_folder()
    driver = shop.driver(product)
    driver.tell(do="death", ranks=4, backend=backend, folder=str(folder))
    killed = _kill_one(folder)
    answer = driver.answer(LIMIT)
    return Sample([answer["at"] - killed], {"error": answer["error"]})


def torchrun_death(group: str, shop: Workshop) -> Sample:
    """From SIGKILL to one of the ranks to the end of torchrun."""
    folder = shop.new_folder()
    argv = [*tool("torchrun"), "--standalone", "--nproc-per-node=4", *python("waiter.py")[1:], str(folder), group]
    running = shop.start(argv, folder)
    killed = _kill_one(folder)
    return Sample([running.wait_failed(LIMIT) - killed])


def _kill_one(folder: Path) -> float:
    """Wait until four ranks are at rest, kill one that is not the first, and say when."""
    wait_until(lambda: len(_pids(folder)) == 4, LIMIT, "four ranks")
    time.sleep(0.5)
    pid = int((folder / "pid.2").read_text())
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return killed


def _pids(folder: Path) -> list[Path]:
    return [path for path in folder.glob("pid.*") if path.suffix != ".part"]


# --- lines ------------------------------------------------------------------------------------------------------------


def lines_sample(folder: Path, ended: float, lines: int, files: list[Path], ranks: int = 4) -> Sample:
    """Lines per second from the first line to the end of the run, and what was found in the files."""
    first = min(float(path.read_text()) for path in folder.glob("first.*"))
    console = count([folder / "console"], ranks, lines)
    logs = count(files, ranks, lines)
    facts = {"lines": ranks * lines, "files": len(files), **_told("console", console), **_told("logs", logs)}
    return Sample([ranks * lines / (ended - first)], facts)


def _told(where: str, found: Count) -> dict[str, int]:
    return {
        f"{where}_lost": found.lost,
        f"{where}_torn": found.torn,
        f"{where}_again": found.again,
        f"{where}_unordered": found.unordered,
    }


def zlaunch_lines(lines: int, shop: Workshop) -> Sample:
    """``zlaunch run`` with its defaults: folding, encryption, a file for each rank."""
    folder = shop.new_folder()
    logs = folder / "logs"
    argv = [*tool("zlaunch"), "run", "-n", "4", "--log-dir", str(logs)]
    running = shop.start([*argv, *python("printer.py")[1:], str(folder), str(lines)], folder, stdout=folder / "console")
    return lines_sample(folder, running.wait(LIMIT), lines, sorted(logs.rglob("*[[]*[]].log")))


def terminal_lines(view: str, lines: int, shop: Workshop) -> Sample:
    """Seconds from the first line to the end of the run, into a terminal that is read."""
    folder = shop.new_folder()
    logs = folder / "logs"
    run = [*tool("zlaunch"), "run", "-n", "4", "--view", view, "--log-dir", str(logs)]
    printer = [*python("printer.py")[1:], str(folder), str(lines)]
    running = shop.start([*python("terminal.py"), str(folder / "console"), *run, *printer], folder)
    ended = running.wait(LIMIT)
    console = folder / "console"
    console.write_bytes(_TABLE.sub(b"", console.read_bytes()))
    found = lines_sample(folder, ended, lines, sorted(logs.rglob("*[[]*[]].log")))
    return Sample([4 * lines / found.values[0]], found.facts)


def torchrun_lines(lines: int, shop: Workshop) -> Sample:
    """torchrun with files for each rank, and all of it on the console."""
    folder = shop.new_folder()
    logs = folder / "logs"
    argv = [*tool("torchrun"), "--standalone", "--nproc-per-node=4", "--redirects=3", "--tee=3", f"--log-dir={logs}"]
    running = shop.start([*argv, *python("printer.py")[1:], str(folder), str(lines)], folder, stdout=folder / "console")
    return lines_sample(folder, running.wait(LIMIT), lines, sorted(logs.rglob("stdout.log")))


def torchrunx_lines(lines: int, shop: Workshop) -> Sample:
    """torchrunx with a file for each rank, and all of it on the console. Fewer lines: it is slow."""
    folder = shop.new_folder()
    driver = shop.driver("torchrunx")
    console = driver.running.output
    before = console.stat().st_size
    answer = driver.ask(LIMIT, do="lines", ranks=4, folder=str(folder), count=lines)
    shop.sweep()  # its log server is killed at the end, and has written then what it ever will
    with console.open("rb") as printed:
        printed.seek(before)
        (folder / "console").write_bytes(printed.read())
    return lines_sample(folder, answer["at"], lines, sorted((folder / "logs").rglob("*[[]*[]].log")))


# --- tensors ----------------------------------------------------------------------------------------------------------


def driven_tensors(product: str, env: dict[str, str] | None, shop: Workshop) -> Sample:
    """Gigabytes per second from the first return of a function to the caller's results."""
    driver = shop.driver(product, env)
    driver.ask(LIMIT, do="steps", ranks=2, backend=None, repeat=1)  # starting is not what is measured here
    before = loopback_bytes()
    answer = driver.ask(LIMIT, do="tensors", ranks=2, folder=str(shop.new_folder()), megabytes=MEGABYTES)
    size = 2 * MEGABYTES * 2**20
    sent = loopback_bytes() - before
    if env and sent < size:
        raise Failed(f"only {sent} bytes went over the wire: {' '.join(env)} was not heeded")
    facts = {"wire_bytes": sent, "seconds": answer["seconds"], "reading_seconds": answer["reading"]}
    return Sample([size / 1e9 / answer["seconds"]], facts)


# --- the table --------------------------------------------------------------------------------------------------------


def _zlaunch(measure: Callable[[Workshop], Sample], target: float, name: str = "zlaunch") -> Contestant:
    return Contestant(name, measure, "zlaunch", target)


def _peer(name: str, measure: Callable[[Workshop], Sample]) -> Contestant:
    return Contestant(name, measure, "peer")


def _floor(name: str, measure: Callable[[Workshop], Sample]) -> Contestant:
    return Contestant(name, measure, "floor")


def _step_row(name: str, title: str, backend: str | None, target: float, repeat: int) -> Row:
    group = backend or "none"
    return Row(
        name,
        title,
        "from the call to the results; torchrun: from the start of its command to its end",
        (
            _zlaunch(partial(driven_steps, "zlaunch", backend, repeat), target),
            _peer("torchrunx", partial(driven_steps, "torchrunx", backend, 1)),
            _peer("torchrun, cold", lambda shop: torchrun("step.py", group, shop=shop)),
            _floor("bare forks", partial(forks, group, repeat)),
        ),
    )


def _death_row(name: str, title: str, backend: str | None, target: float) -> Row:
    return Row(
        name,
        title,
        "from kill(2) to the exception in the calling program; torchrun: to its end",
        (
            _zlaunch(partial(driven_death, "zlaunch", backend), target),
            _peer("torchrunx", partial(driven_death, "torchrunx", backend)),
            _peer("torchrun", partial(torchrun_death, backend or "none")),
        ),
    )


ROWS: tuple[Row, ...] = (
    _step_row("step", "a step of 8 ranks returning an int, agents warm, no process group", None, 0.10, 10),
    _step_row("barrier", "the same with a gloo group and a barrier", "gloo", 0.30, 5),
    Row(
        "group",
        "from the call to a gloo group in which all 8 ranks have met, cold",
        "from run(), or from the start of torchrun's command, to the last rank that leaves the first barrier",
        (
            Contestant("zlaunch", partial(driven_groups, "zlaunch", True), "zlaunch"),
            Contestant("zlaunch, agents warm", partial(driven_groups, "zlaunch", False), "zlaunch"),
            _peer("torchrunx", partial(driven_groups, "torchrunx", True)),
            _peer("torchrun", torchrun_groups),
        ),
    ),
    Row(
        "import",
        "run -n 8 of a script that only imports torch, cold",
        "from the start of the command to its end",
        (
            _zlaunch(lambda shop: command(*_run(), *_script(), shop=shop), 2.5),
            _peer("torchrun", lambda shop: torchrun("import_torch.py", shop=shop)),
            _floor("one import torch", lambda shop: command(*python("import_torch.py"), shop=shop)),
        ),
    ),
    Row(
        "import-transformers",
        "run -n 8 of a script that only imports the Trainer of transformers, cold, with --preload",
        "from the start of the command to its end",
        (
            Contestant("zlaunch", partial(imports, "torch,transformers.trainer"), "zlaunch"),
            Contestant("zlaunch, --preload transformers", partial(imports, "transformers"), "zlaunch"),
            Contestant("zlaunch, without --preload", partial(imports, "torch"), "zlaunch"),
            _peer("torchrun", lambda shop: torchrun("import_transformers.py", shop=shop)),
            _floor("one import", lambda shop: command(*python("import_transformers.py"), shop=shop)),
        ),
        missing=lambda: None if find_spec("transformers") else "transformers is not installed",
    ),
    _death_row("death", "SIGKILL of one of 4 ranks, that sleep, to the caller's exception", None, 0.05),
    _death_row("death-barrier", "the same, the other 3 waiting in a gloo barrier", "gloo", 0.05),
    Row(
        "lines",
        f"4 ranks printing {LINES:,} different lines each, to console file and log files",
        f"lines of all ranks, each counted once, from the first line to the end of the run; "
        f"torchrunx: {LINES_TORCHRUNX:,} lines each",
        (
            _zlaunch(partial(zlaunch_lines, LINES), 500_000),
            _peer("torchrunx", partial(torchrunx_lines, LINES_TORCHRUNX)),
            _peer("torchrun", partial(torchrun_lines, LINES)),
        ),
        "lines/s",
        True,
    ),
    Row(
        "lines-terminal",
        f"4 ranks printing {LINES:,} different lines each, into a terminal, with the live view",
        "from the first line to the end of the run; the floor: plain lines into the same terminal",
        (
            Contestant("zlaunch", partial(terminal_lines, "live", LINES), "zlaunch", times_floor=1.25),
            _floor("the plain view", partial(terminal_lines, "plain", LINES)),
        ),
    ),
    Row(
        "tensors",
        f"2 ranks returning {MEGABYTES} MiB tensors",
        "GB (10^9 bytes) of both, from the first function's return to the caller's results",
        (
            _zlaunch(partial(driven_tensors, "zlaunch", None), 1.0),
            _zlaunch(partial(driven_tensors, "zlaunch", NO_SHARED_MEMORY), 0.4, "zlaunch, encrypted wire"),
            _peer("torchrunx", partial(driven_tensors, "torchrunx", None)),
        ),
        "GB/s",
        True,
    ),
    Row(
        "help",
        "--help",
        "from the start of the command to its end",
        (
            _zlaunch(lambda shop: command(*tool("zlaunch"), "--help", shop=shop), 0.15),
            _peer("torchrun", lambda shop: command(*tool("torchrun"), "--help", shop=shop)),
        ),
    ),
    *HOST_ROWS,
)


def _run() -> list[str]:
    return [*tool("zlaunch"), "run", "-n", str(RANKS)]


def _script() -> list[str]:
    return python("import_torch.py")[1:]
