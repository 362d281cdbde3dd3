"""Level 6: the values of the options, each asked for as what it has to be; errors have the option as it was spelled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ..model import Bind
from ..systems import targets
from ..view.settings import ViewName
from .grammar import Given, UsageError

Workers = int | tuple[int, ...] | Literal["gpu", "cpu", "auto"]

LOG_DIR = "zlaunch_logs"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_plain(given: Given) -> None:
    """Raises UsageError for a line break, or another control character, in what a scheduler is given."""
    if _CONTROL.search(given.text):
        raise UsageError(f"{given.spelling} {given.text!r}: no scheduler takes a line break or a control character")


class Values:
    """The given words."""

    def __init__(self, given: Mapping[str, list[Given]]) -> None:
        self._given = given

    def flag(self, key: str) -> bool:
        """Whether the option is there."""
        return key in self._given

    def all(self, key: str) -> list[Given]:
        """All its values, in their order."""
        return self._given.get(key, [])

    def last(self, key: str) -> Given | None:
        """The value that counts."""
        return self._given[key][-1] if key in self._given else None

    def text(self, key: str) -> str | None:
        """The same as it was written."""
        given = self.last(key)
        return given.text if given else None

    def workers(self, *, here: bool) -> Workers | None:
        """``None`` where nothing was said. Only of this machine can we know by now what is there."""
        given = self.last("procs-per-node")
        if given is None:
            return None
        match given.text:
            case "gpu" | "cpu" | "auto" as word:
                if word == "gpu" and here:
                    self._want_gpu()
                return word
        return self.integer("procs-per-node", 1, least=1, words="a number of ranks, gpu, cpu or auto")

    def _want_gpu(self) -> None:
        from ..systems.gpus import look

        sight = look()
        if not sight.gpus:
            given = self._given["procs-per-node"][-1]
            why = f" ({sight.trouble})" if sight.trouble else ""
            raise UsageError(
                f"{given.spelling} gpu: no GPU is visible on this machine{why}",
                "zlaunch info says what was found; -n cpu and -n NUMBER need none",
            )

    def integer(self, key: str, default: int, *, least: int = 0, words: str = "a whole number") -> int:
        """A whole number; ``words`` say what else it might have been."""
        given = self.last(key)
        if given is None:
            return default
        if not re.fullmatch(r"[+-]?\d+", given.text, re.ASCII):
            raise UsageError(f"{given.spelling}: expected {words}, not {given.text!r}")
        if int(given.text) < least:
            raise UsageError(f"{given.spelling} {given.text}: at least {least} is needed")
        return int(given.text)

    def _number(self, given: Given, words: str) -> float:
        try:
            number = float(given.text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"{given.spelling}: expected {words}, not {given.text!r}")
        return number

    def gigabytes(self, key: str) -> float | None:
        """GB."""
        given = self.last(key)
        return self._number(given, "a number of GB") if given else None

    def plain(self, key: str) -> str | None:
        """A word that goes to a scheduler as it is: one line, and not empty."""
        given = self.last(key)
        if given is None:
            return None
        check_plain(given)
        if not given.text.strip():
            raise UsageError(f"{given.spelling} needs a value")
        return given.text

    def nodes(self) -> tuple[int, int] | None:
        """The least and the most hosts that -N wants; torchrun writes MIN:MAX."""
        given = self.last("nodes")
        if given is None:
            return None
        counts = given.text.split(":")
        if len(counts) > 2 or not all(re.fullmatch(r"\d{1,9}", n, re.ASCII) and int(n) > 0 for n in counts):
            raise UsageError(f"{given.spelling} {given.text}: expected a number of hosts")
        least, most = int(counts[0]), int(counts[-1])
        if most < least:
            raise UsageError(f"{given.spelling} {given.text}: {most} is less than {least}")
        return least, most

    def seconds(self, key: str, default: float, *, least: float = 0) -> float:
        """Seconds, ``least`` at least."""
        given = self.last(key)
        if given is None:
            return default
        number = self._number(given, "seconds")
        if number < least:
            raise UsageError(f"{given.spelling} {given.text}: {least:g} at least")
        return number

    def minutes(self, key: str) -> float | None:
        """Minutes, above 0, in seconds."""
        given = self.last(key)
        if given is None:
            return None
        number = self._number(given, "minutes")
        if number <= 0:
            raise UsageError(f"{given.spelling} {given.text}: more than 0 minutes are needed")
        return number * 60

    def fraction(self, key: str) -> float | None:
        """Above 0, and 1 at most."""
        given = self.last(key)
        if given is None:
            return None
        number = self._number(given, "a fraction")
        if not 0 < number <= 1:
            raise UsageError(f"{given.spelling} {given.text}: expected more than 0 and at most 1")
        return number

    def env(self, environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """What ``--env-file`` and ``--env`` set; the latter wins."""
        pairs = self._env_file(environ)
        for given in self._given.get("env", ()):
            name, equals, value = given.text.partition("=")
            if not _VARIABLE.fullmatch(name):
                raise UsageError(f"{given.spelling} {given.text}: {name!r} is not a variable's name")
            if not equals and name not in environ:
                raise UsageError(f"{given.spelling} {name}: it is not set here", f"write {name}=VALUE")
            pairs[name] = value if equals else environ[name]
        return tuple(pairs.items())

    def _env_file(self, environ: Mapping[str, str]) -> dict[str, str]:
        given = self.last("env-file")
        if given is None:
            return {}
        from ..torchenv.envfile import parse_env_file

        try:
            return parse_env_file(Path(given.text).read_text(), environ, given.text)
        except OSError as error:
            raise UsageError(f"{given.spelling} {given.text}: {error.strerror}") from None
        except ValueError as error:
            raise UsageError(f"{given.spelling}: {error}") from None

    def target(self, key: str) -> str | None:
        """A file to write, whose folders may have to be made."""
        given = self.last(key)
        if given is None:
            return None
        path = Path(given.text)
        if not given.text or path.is_dir():
            raise UsageError(f"{given.spelling} {given.text}: expected a file")
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                raise UsageError(f"{given.spelling} {given.text}: {parent} is not a folder")
        return given.text

    def log_dir(self, environ: Mapping[str, str]) -> str | None:
        """Where the ranks' files go; ``None``: there are none."""
        given = self.last("log-dir")
        if given is None:
            return environ.get("ZLAUNCH_LOG_DIR", LOG_DIR) or None
        if given.text == "none":
            return None
        if not given.text or (Path(given.text).exists() and not Path(given.text).is_dir()):
            raise UsageError(f"{given.spelling} {given.text}: expected a folder, or none")
        return given.text

    def modules(self, key: str, default: tuple[str, ...], search: Sequence[str]) -> tuple[str, ...]:
        """Names of modules that are there."""
        given = self.last(key)
        if given is None:
            return default
        names = tuple(name.strip() for name in given.text.split(",") if name.strip())
        for name in names:
            targets.check_import(name, search, said=f"{given.spelling} {name}")
        return names

    def ranks(self, key: str) -> str | None:
        """A list of ranks, checked and as it was written."""
        from ..view.settings import parse_ranks

        given = self.last(key)
        if given is None:
            return None
        try:
            parse_ranks(given.text)
        except ValueError as error:
            raise UsageError(f"{given.spelling}: {error}") from None
        return given.text

    def bind(self) -> Bind:
        """To which cores ranks are bound."""
        match self.text("bind"):
            case "core" | "numa" | "none" as word:
                return word
            case _:
                return "auto"

    def view(self) -> ViewName:
        """How the console shows it."""
        match self.text("view"):
            case "live" | "plain" | "json" | "none" as word:
                return word
            case _:
                return "auto"  # the grammar has refused all else
