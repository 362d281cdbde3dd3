"""What a cluster on the bed, real or simulated, does for tests: it runs commands on the head, and waits for jobs."""

from __future__ import annotations

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .programs import PATIENCE, BedError, until


class Commands(ABC):
    """Commands as somebody types them who is on the head."""

    @abstractmethod
    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        """Ours, in which nobody else's cluster is, and what it takes to find this one."""

    @abstractmethod
    def state(self, job: Any) -> str:
        """Where a job stands, in the scheduler's words; empty for one that is unknown, or is so by now."""

    def run(
        self, argv: Sequence[str | Path | int], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; what it prints is returned.

        ``env`` is added to our environment; ``options`` are those of ``subprocess.run``, 30 s for ``timeout``.
        """
        defaults: dict[str, Any] = {"text": True, "timeout": 30, "check": False, "capture_output": True}
        if "input" not in options:
            defaults["stdin"] = subprocess.DEVNULL
        if "stdout" in options or "stderr" in options:
            del defaults["capture_output"]
        done: subprocess.CompletedProcess[str] = self._begin(subprocess.run, argv, env, defaults | options)
        return done

    def popen(
        self, argv: Sequence[str | Path | int], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command; ``options`` are those of ``subprocess.Popen``, text mode is the default."""
        chosen = {"text": True, "stdin": subprocess.DEVNULL} | options
        process: subprocess.Popen[str] = self._begin(subprocess.Popen, argv, env, chosen)
        return process

    def _begin(
        self, start: Any, argv: Iterable[str | Path | int], env: Mapping[str, str] | None, options: dict[str, Any]
    ) -> Any:
        environ = self._environment(env)
        program, *words = map(str, argv)
        return start([shutil.which(program, path=environ["PATH"]) or program, *words], env=environ, **options)

    def ask(self, *argv: str | Path | int, **options: Any) -> str:
        """What a command prints. Raises ``BedError`` where it fails."""
        done = self.run(argv, **options)
        if done.returncode != 0:
            raise BedError(f"{' '.join(map(str, argv))}: {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def wait(self, job: Any, *states: str, seconds: float = PATIENCE) -> str:
        """Until the job has one of these states, which is returned.

        Raises:
            BedError: it has not within these seconds.
        """
        state = ""

        def reached() -> bool:
            nonlocal state
            state = self.state(job)
            return state in states

        try:
            until(reached, f"job {job}", seconds)
        except BedError as error:
            raise BedError(f"{error}: not {' or '.join(states)} but {state or 'unknown'}") from None
        return state
