"""Level 6: a launcher's fields as options of a user's own command line.

    parser = argparse.ArgumentParser()
    add_zlaunch_arguments(parser)
    launcher = launcher_from_args(parser.parse_args())

Defaults are the dataclass's own, so that the two cannot drift apart. ``hostnames`` is ``--hostnames a b``,
and so on; where a field may be ``None``, the word ``None`` says so.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from ..backends import SCHEDULERS
from ..launcher import Launcher

_HOST_WORDS = ("auto", "local", *SCHEDULERS)
_WORKER_WORDS = ("auto", "gpu", "cpu")


class _Argument(NamedTuple):
    """How one field is written as an option. ``several`` words are handed to ``join`` as a list."""

    read: Callable[[str], object]
    help: str
    several: bool = False
    join: Callable[[list[Any]], object] = tuple
    choices: tuple[str | None, ...] = ()


def _or_none(read: Callable[[str], object]) -> Callable[[str], object]:
    def reader(word: str) -> object:
        return None if word == "None" else read(word)

    reader.__name__ = getattr(read, "__name__", "value")  # argparse names it in "invalid float value"
    return reader


def _workers(word: str) -> int | str:
    if word in _WORKER_WORDS:
        return word
    try:
        number = int(word)
    except ValueError:
        number = 0
    if number < 1:
        words = ", ".join(_WORKER_WORDS)
        raise ArgumentTypeError(f"expected a number above 0 or one of {words}, not {word!r}")
    return number


def _workers_per_host(words: list[int | str]) -> object:
    if len(words) == 1:
        return words[0]
    if not all(isinstance(word, int) for word in words):
        raise ValueError("--workers-per-host: several values are one number for each host")
    return words


def _hostnames(words: list[str]) -> object:
    return words[0] if len(words) == 1 and words[0] in _HOST_WORDS else words


def _assignment(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise ArgumentTypeError(f"expected KEY=VALUE, not {word!r}")
    return name, value


def _modules(word: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in word.split(",") if name.strip())


def _yes_no(word: str) -> bool:
    if word.lower() in ("true", "yes", "1", "false", "no", "0"):
        return word.lower() in ("true", "yes", "1")
    raise ArgumentTypeError(f"expected true or false, not {word!r}")


_ARGUMENTS: dict[str, _Argument] = {
    "hostnames": _Argument(str, "hosts, or auto, local, slurm, lsf, flux", several=True, join=_hostnames),
    "workers_per_host": _Argument(
        _workers, "a number, one for each host, gpu, cpu or auto", several=True, join=_workers_per_host
    ),
    "backend": _Argument(_or_none(str), "process group", choices=("auto", "nccl", "gloo", "mpi", "ucc", None)),
    "rendezvous": _Argument(str, "how ranks find each other", choices=("tcp", "mpi")),
    "ssh_config_file": _Argument(_or_none(str), "what ssh reads instead of its own configuration"),
    "worker_timeout": _Argument(float, "process-group timeout in seconds"),
    "agent_timeout": _Argument(float, "longest wait for agents to start, in seconds"),
    "copy_env_vars": _Argument(str, "variables to take to the hosts, as shell patterns", several=True),
    "extra_env_vars": _Argument(_assignment, "variables to set, KEY=VALUE", several=True, join=dict),
    "env_file": _Argument(_or_none(str), "a .env file"),
    "gpus_per_worker": _Argument(int, "GPUs of each rank"),
    "gpu_memory_fraction": _Argument(_or_none(float), "share of its GPU's memory that a rank may use"),
    "unswap_rocr_hip": _Argument(_yes_no, "leave ROCR_VISIBLE_DEVICES where it is"),
    "preload": _Argument(_modules, "modules imported once per host, separated by commas"),
    "start_method": _Argument(str, "how ranks start", choices=("fork", "spawn")),
    "grace_period": _Argument(float, "seconds from SIGTERM to SIGKILL"),
    "time_limit": _Argument(_or_none(float), "longest run of a step in seconds"),
    "max_restarts": _Argument(int, "how often a failed step is started again"),
    "log_dir": _Argument(_or_none(str), "folder of the ranks' log files"),
    "view": _Argument(str, "what the console shows", choices=("auto", "live", "plain", "json", "none")),
    "python": _Argument(_or_none(str), "the interpreter on other hosts"),
    "setup": _Argument(_or_none(str), "what the shell on other hosts does first"),
    "host_timeout": _Argument(float, "silence in seconds after which a host is lost"),
    "bind": _Argument(str, "cores that ranks are bound to", choices=("auto", "none", "numa", "core")),
}


def add_zlaunch_arguments(parser: ArgumentParser) -> None:
    """Add an option for every field of ``Launcher``, in a group of their own."""
    group = parser.add_argument_group("zlaunch")
    for name, default in _defaults().items():
        argument = _ARGUMENTS[name]
        said: dict[str, Any] = {"nargs": "+"} if argument.several else {}
        if argument.choices:
            words = "{" + ",".join(str(choice) for choice in argument.choices) + "}"
            said |= {"choices": argument.choices, "metavar": words}
        elif argument.read is _assignment:
            said |= {"metavar": "KEY=VALUE"}
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            type=argument.read,
            default=SUPPRESS,
            help=f"{argument.help} (default: {_words(default)})".replace("%", "%%"),
            **said,
        )


def launcher_from_args(args: Namespace) -> Launcher:
    """The launcher that the parsed options describe; options that were not given leave the default.

    Raises:
        ValueError: values that do not go together, as ``Launcher`` itself raises it.
    """
    chosen: dict[str, Any] = {}
    for name in _defaults():
        if hasattr(args, name):
            value = getattr(args, name)
            argument = _ARGUMENTS[name]
            chosen[name] = argument.join(value) if argument.several and isinstance(value, list) else value
    return Launcher(**chosen)


def _defaults() -> dict[str, object]:
    """The fields that ``Launcher`` is made from, with their defaults."""
    return {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(Launcher)
        if field.init
    }


def _words(default: object) -> str:
    return " ".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)


add_torchrunx_argument_group = add_zlaunch_arguments
"""torchrunx's name for it."""
