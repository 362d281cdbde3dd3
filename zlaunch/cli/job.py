"""Level 6: the options become a ``Job``, once, at the door. Whatever is wrong with them is said here, before
anything starts; nobody behind this module sees a word of the command line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from ..systems import targets
from .grammar import Given, UsageError, Words
from .hosts import HostOptions

Workers = int | tuple[int, ...] | Literal["gpu", "cpu", "auto"]

LOG_DIR = "zlaunch_logs"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What ``zlaunch run`` was asked for. Times are in seconds."""

    kind: Literal["script", "module", "command"]
    argv: tuple[str, ...]
    """The script's path, the module's name or the program, and its arguments."""
    name: str
    home: str | None
    """The folder that Python puts first into the ranks' ``sys.path``; ``None`` for a program."""
    hosts: tuple[str, ...] | None
    """``None``: this machine."""
    workers: Workers
    """Ranks per host; several numbers are for one host each."""
    ssh_config: str | None
    python: str | None
    setup: str | None
    host_timeout: float
    gpus_per_worker: int
    gpu_memory_fraction: float | None
    unswap_rocr_hip: bool
    env: tuple[tuple[str, str], ...]
    """What the ranks' environment has on top of ours: that of the .env file, then that of --env."""
    time_limit: float | None
    grace: float
    max_restarts: int
    preload: tuple[str, ...]
    start_method: Literal["fork", "spawn"]
    out: str | None
    err: str | None
    color_stderr: bool
    log_dir: str | None
    ranks: str | None
    """Whose lines the console shows: ``all``, ``none``, ``0,4-7``; ``None`` for what the view thinks best."""
    view: Literal["auto", "plain", "json", "none"]
    verbose: bool
    dry_run: bool
    save_hostlist: bool


def job(words: Words, environ: Mapping[str, str]) -> Job:
    """Understand a command line.

    Raises:
        UsageError: it cannot be meant, or names a script, module, program or file that is not there.
    """
    try:
        return _job(words, environ)
    except targets.TargetError as error:
        raise UsageError(error.message, error.hint) from None


def _job(words: Words, environ: Mapping[str, str]) -> Job:
    given = _Values(words.given)
    hosts = HostOptions(words.given)
    env = given.env(environ)
    ranks_env = {**environ, **dict(env)}
    home = targets.home(words.command, given.flag("module"))
    search = targets.search_path(home, ranks_env)
    verbose = given.flag("verbose")
    without_command = partial(
        Job,
        home=home,
        hosts=hosts.names,
        workers=given.workers(here=hosts.names is None) or hosts.slots,
        ssh_config=hosts.ssh_config,
        python=hosts.python,
        setup=hosts.setup,
        host_timeout=given.seconds("host-timeout", 4.5),
        gpus_per_worker=given.integer("gpus-per-proc", 1, least=1),
        gpu_memory_fraction=given.fraction("fraction-max-gpu-mem"),
        unswap_rocr_hip=given.flag("unswap-rocr-hip-vis-dev"),
        env=env,
        time_limit=given.minutes("time-limit"),
        grace=given.seconds("grace", 30.0),
        max_restarts=given.integer("max-restarts", 0),
        preload=given.modules("preload", ("torch",), search),
        start_method="spawn" if given.text("start-method") == "spawn" else "fork",
        out=given.target("out"),
        err=given.target("err"),
        color_stderr=given.flag("color-stderr"),
        log_dir=given.log_dir(environ),
        ranks=given.ranks("ranks"),
        view=given.view(),
        verbose=verbose,
        dry_run=given.flag("dry-run"),
        save_hostlist=verbose or given.flag("save-hostlist"),
    )
    # The command comes last, so that of two mistakes the one that was typed first is told.
    here = hosts.names is None  # else the hosts may have a program that we have not
    kind, argv = _command(words.command, given.flag("module"), search, ranks_env if here else None)
    return without_command(kind=kind, argv=argv, name=given.text("job-name") or Path(argv[0]).name)


def _command(
    command: tuple[str, ...], is_module: bool, search: Sequence[str], env: Mapping[str, str] | None
) -> tuple[Literal["script", "module", "command"], tuple[str, ...]]:
    """A ``.py`` file is a script; with -m it is a module; anything else is a program, looked for in ``env``'s PATH."""
    if not command or not command[0]:
        raise UsageError("there is no COMMAND: what is to run on every rank?", "for example: zlaunch run -n 2 train.py")
    first = command[0]
    if is_module:
        targets.check_module(first, search)
        return "module", command
    if first.endswith(".py"):
        targets.check_script(first)
        return "script", command
    if env is not None:
        targets.check_program(first, env)
    return "command", command


class _Values:
    """The given words, each asked for as what it has to be; errors have the option as it was spelled."""

    def __init__(self, given: Mapping[str, list[Given]]) -> None:
        self._given = given

    def flag(self, key: str) -> bool:
        return key in self._given

    def last(self, key: str) -> Given | None:
        return self._given[key][-1] if key in self._given else None

    def text(self, key: str) -> str | None:
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
        from ..systems.gpus import visible_gpus

        if not visible_gpus():
            given = self._given["procs-per-node"][-1]
            raise UsageError(
                f"{given.spelling} gpu: no GPU is visible on this machine",
                "zlaunch info says what was found; -n cpu and -n NUMBER need none",
            )

    def integer(self, key: str, default: int, *, least: int = 0, words: str = "a whole number") -> int:
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

    def seconds(self, key: str, default: float) -> float:
        given = self.last(key)
        if given is None:
            return default
        number = self._number(given, "seconds")
        if number < 0:
            raise UsageError(f"{given.spelling} {given.text}: 0 at least")
        return number

    def minutes(self, key: str) -> float | None:
        given = self.last(key)
        if given is None:
            return None
        number = self._number(given, "minutes")
        if number <= 0:
            raise UsageError(f"{given.spelling} {given.text}: more than 0 minutes are needed")
        return number * 60

    def fraction(self, key: str) -> float | None:
        given = self.last(key)
        if given is None:
            return None
        number = self._number(given, "a fraction")
        if not 0 < number <= 1:
            raise UsageError(f"{given.spelling} {given.text}: expected more than 0 and at most 1")
        return number

    def env(self, environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
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
        given = self.last("log-dir")
        if given is None:
            return environ.get("ZLAUNCH_LOG_DIR", LOG_DIR) or None
        if given.text == "none":
            return None
        if not given.text or (Path(given.text).exists() and not Path(given.text).is_dir()):
            raise UsageError(f"{given.spelling} {given.text}: expected a folder, or none")
        return given.text

    def modules(self, key: str, default: tuple[str, ...], search: Sequence[str]) -> tuple[str, ...]:
        given = self.last(key)
        if given is None:
            return default
        names = tuple(name.strip() for name in given.text.split(",") if name.strip())
        for name in names:
            targets.check_import(name, search, said=f"{given.spelling} {name}")
        return names

    def ranks(self, key: str) -> str | None:
        from ..view.settings import parse_ranks

        given = self.last(key)
        if given is None:
            return None
        try:
            parse_ranks(given.text)
        except ValueError as error:
            raise UsageError(f"{given.spelling}: {error}") from None
        return given.text

    def view(self) -> Literal["auto", "plain", "json", "none"]:
        match self.text("view"):
            case "plain" | "json" | "none" as word:
                return word
            case _:
                return "auto"  # the grammar has refused all else
