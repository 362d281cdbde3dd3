"""For the tests of runs that are watched from elsewhere: shells, and a program whose ranks print what they are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bed.programs import until

from zlaunch.registry import runs

ROOT = Path(__file__).parent.parent
ZLAUNCH = [sys.executable, "-m", "zlaunch"]
PATIENCE = 60.0
PROGRAM = """
import os, pathlib, sys, time
rank = os.environ["RANK"]
print("rank", rank, "is ready", flush=True)
words, at = pathlib.Path("words"), 0
while True:
    said = words.read_text().splitlines() if words.exists() else []
    for line in said[at:]:
        if line.startswith("exit"):
            sys.exit(int(line.split()[1]) if rank == "1" else 0)
        print(rank, line, flush=True)
    at = len(said)
    time.sleep(0.02)
"""


class Shell:
    """Somebody in a folder of their own, who types commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "ZLAUNCH_LOG_DIR": "logs"}
        (folder / "prog.py").write_text(PROGRAM)
        self._said = 0

    def types(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        argv = [*ZLAUNCH, *words]
        return subprocess.run(
            argv,
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    @contextmanager
    def starts(self, *words: str) -> Iterator[Typed]:
        typed = Typed(words, self.folder, self.env)
        try:
            yield typed
        finally:
            typed.end()

    @contextmanager
    def runs(self, *words: str) -> Iterator[tuple[Typed, runs.RunEntry]]:
        """Two ranks of the program, in this shell, and what is written down of them."""
        before = {entry.run for entry in runs.look().runs}
        with self.starts("run", "-n", "2", "--preload", "", *words, "prog.py") as typed:
            until(lambda: {entry.run for entry in runs.look().runs} > before, "the run to be written down")
            until(lambda: runs.look().runs[-1].state == "running", "the run to be seen running")
            yield typed, runs.look().runs[-1]

    def has_ranks_say(self, line: str) -> None:
        with (self.folder / "words").open("a") as file:
            file.write(f"{line}\n")

    def ps(self, *words: str) -> dict[str, dict[str, Any]]:
        done = self.types("ps", "--json", *words)
        assert done.returncode == 0, done.stderr
        return {row["run"]: row for row in json.loads(done.stdout)}


class Typed:
    """A command that runs; its lines as they come."""

    def __init__(self, words: tuple[str, ...], folder: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [*ZLAUNCH, *words],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._guard = threading.Timer(PATIENCE, self.process.kill)
        self._guard.start()
        assert self.process.stdout
        assert self.process.stderr
        self.out, self.err = self.process.stdout, self.process.stderr

    def sees(self, line: str) -> list[str]:
        """All lines until this one has come."""
        seen = []
        for one in self.out:
            seen.append(one.rstrip("\n"))
            if seen[-1] == line:
                return seen
        raise AssertionError(f"{line!r} has not come: {seen}, {self.err.read()}")

    def finish(self) -> tuple[int, str, str]:
        """Until it ends: status, and the rest of what it said."""
        # Not communicate(), which reads past what the streams have taken in already and would lose that.
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.append(self.err.read()))
        reader.start()
        out = self.out.read()
        reader.join()
        return self.process.wait(PATIENCE), out, errors[0]

    def end(self) -> None:
        """Whatever became of it."""
        self._guard.cancel()
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.out.close()
        self.err.close()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    return runs.ticks(pid) == 0
