"""Level 2: a user's own systems, from ``systems.toml``. One function reads the file, the rest only judges it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .known import FAMILIES, Setting
from .nearest import nearest
from .params import PARAMETERS, DescriptionError, Value, check


class OwnSystem(NamedTuple):
    """A system as its user wrote it down; what is left out stays open."""

    name: str
    path: str
    """The file that it stands in."""
    hosts: tuple[str, ...]
    """Names of hosts, without digits or in full."""
    params: Mapping[str, Value]
    queues: Mapping[str, Mapping[str, Value]]
    """What differs from ``params`` there; the first is the default."""
    family: str | None
    environment: tuple[Setting, ...]
    arguments: tuple[tuple[str, str | None], ...]
    """For the launch command of whatever scheduler it has; ``None`` for a flag."""


_OTHER_KEYS = ("hosts", "family", "queues", "env", "args")


def systems_file(environ: Mapping[str, str]) -> Path:
    """``$XDG_CONFIG_HOME/zlaunch/systems.toml``, by default in ``~/.config``; a relative folder there is passed over.

    The XDG base directory specification says so.
    """
    folder = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(folder):
        folder = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")
    return Path(folder, "zlaunch", "systems.toml")


def read_systems(path: str | os.PathLike[str]) -> dict[str, OwnSystem]:
    """The systems of a file, by name; none where there is no such file.

    Raises:
        DescriptionError: it cannot be read, or what is in it cannot be meant; with the file and the key.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DescriptionError(f"{os.fspath(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DescriptionError(f"{os.fspath(path)}: this is not UTF-8 (byte {error.start})") from None
    return parse_systems(text, os.fspath(path))


def parse_systems(text: str, path: str) -> dict[str, OwnSystem]:
    """As ``read_systems``, of a text; pure."""
    import tomllib  # 5 ms that only those pay who have such a file

    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DescriptionError(f"{path}: {error}") from None
    found = {name: _Reader(path, name).system(table) for name, table in tables.items()}
    whose: dict[str, str] = {}
    for system in found.values():
        for host in system.hosts:
            if host in whose:
                raise DescriptionError(f"{path}: {system.name}.hosts: {host!r} is a host of {whose[host]} already")
            whose[host] = system.name
    return found


class _Reader:
    """One system's table; each complaint has the file and the key."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name

    def wrong(self, key: str, words: str, hint: str = "") -> DescriptionError:
        return DescriptionError(f"{self.path}: {self.name}{f'.{key}' if key else ''}: {words}", hint)

    def system(self, table: object) -> OwnSystem:
        if not isinstance(table, dict):
            raise self.wrong("", f"expected a table, [{self.name}], not {table!r}")
        own = {key: value for key, value in table.items() if key not in _OTHER_KEYS}
        params = self.params(own, "", also=_OTHER_KEYS)
        queues = {
            queue: self.params(self.table(shape, f"queues.{queue}"), f"queues.{queue}.")
            for queue, shape in self.table(table.get("queues", {}), "queues").items()
        }
        for queue, shape in queues.items():
            if "scheduler" in shape:
                raise self.wrong(f"queues.{queue}.scheduler", "a system has one scheduler for all its queues")
        return OwnSystem(
            self.name,
            self.path,
            self.hosts(table.get("hosts", [self.name])),
            params,
            queues,
            self.family(table.get("family")),
            self.environment(self.table(table.get("env", {}), "env")),
            self.arguments(self.table(table.get("args", {}), "args")),
        )

    def table(self, value: object, key: str) -> dict[str, object]:
        if not isinstance(value, dict):
            raise self.wrong(key, f"expected a table, [{self.name}.{key}], not {value!r}")
        return value

    def params(self, table: Mapping[str, object], prefix: str, also: tuple[str, ...] = ()) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for key, value in table.items():
            if key not in PARAMETERS:
                known = [*PARAMETERS, *also]
                hint = nearest(key, known) or f"there are {', '.join(known)}"
                raise self.wrong(prefix + key, "there is no such key", hint)
            try:
                found[key] = check(key, value)
            except ValueError as error:
                raise self.wrong(prefix + key, str(error)) from None
        return found

    def hosts(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(host, str) and host for host in value):
            raise self.wrong("hosts", f'expected names of hosts, ["login", "node"], not {value!r}')
        return tuple(dict.fromkeys(host.lower() for host in value))

    def family(self, value: object) -> str | None:
        if value is None or (isinstance(value, str) and value in FAMILIES):
            return value
        near = nearest(value, list(FAMILIES)) if isinstance(value, str) else ""
        raise self.wrong("family", f"there is no family {value!r}", near or f"there are {', '.join(FAMILIES)}")

    def environment(self, table: Mapping[str, object]) -> tuple[Setting, ...]:
        for name, value in table.items():
            if not name or "=" in name or "\0" in name:
                raise self.wrong(f"env.{name}", "this is not a variable's name")
            if not isinstance(value, str | int | float) or isinstance(value, bool) or "\0" in str(value):
                raise self.wrong(f"env.{name}", f"expected a string or a number, not {value!r}")
        return tuple(Setting(name, str(value)) for name, value in table.items())

    def arguments(self, table: Mapping[str, object]) -> tuple[tuple[str, str | None], ...]:
        found: list[tuple[str, str | None]] = []
        for key, value in table.items():
            if not key.startswith("-"):
                raise self.wrong(f"args.{key}", "expected an option as the scheduler spells it: '--exclusive' = true")
            if value is True:
                found.append((key, None))
            elif isinstance(value, str | int | float) and value is not False and "\0" not in str(value):
                found.append((key, str(value)))
            else:
                raise self.wrong(f"args.{key}", f"expected a string, a number, or true for a flag, not {value!r}")
        return tuple(found)
