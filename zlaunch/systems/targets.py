"""Level 2: is what ranks are to run there? Looks at files only: no code of the user's runs before the ranks do."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from .nearest import nearest


class TargetError(FileNotFoundError):
    """A script, module or program is not there, or cannot be run.

    Attributes:
        hint: what may help, often the nearest name; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(f"{message}; {hint}" if hint else message)


def home(command: Sequence[str], is_module: bool) -> str | None:
    """The folder that Python puts first into a rank's ``sys.path``; ``None`` for a program."""
    if is_module:
        return os.getcwd()
    if command and command[0].endswith(".py"):
        return os.path.dirname(os.path.realpath(command[0]))
    return None


def check_script(path: str) -> None:
    """Raises ``TargetError`` unless ``path`` is a file that can be read."""
    script = Path(path)
    if script.is_dir():
        raise TargetError(f"{path} is a folder", "name the .py file in it, or use -m for a package")
    if not script.exists():
        raise TargetError(f"there is no script {path}", _several_words(path) or _nearest_file(script))
    if not os.access(script, os.R_OK):
        raise TargetError(f"{path} may not be read")


def check_module(name: str, search: Sequence[str]) -> None:
    """Raises ``TargetError`` unless ``python -m name`` would find something to run in ``search`` or installed."""
    if name.endswith(".py") and Path(name).exists():
        raise TargetError(f"-m {name}: this is a file, not a module", "leave out -m")
    spec = check_import(name, search, said=f"-m {name}")
    folders = spec.submodule_search_locations if spec else None
    if spec is None or folders is None or _finds_its_own_way(spec):
        return
    if not PathFinder.find_spec(f"{name}.__main__", list(folders)):
        raise TargetError(f"-m {name}: the package has no __main__.py", "name the module in it")


def search_path(home: str | None, env: Mapping[str, str]) -> list[str]:
    """Where the ranks look before they look at what is installed."""
    return [path for path in (home, *env.get("PYTHONPATH", "").split(os.pathsep)) if path]


def check_import(name: str, search: Sequence[str], said: str) -> ModuleSpec | None:
    """Raises ``TargetError`` unless there is such a module; ``None`` where only its import could tell."""
    first, *rest = name.split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        raise TargetError(f"{said}: this is not a module's name")
    spec = PathFinder.find_spec(first, list(search)) or _installed(first)
    if spec is None:
        raise TargetError(f"{said}: there is no module {first}", _nearest_module(first, [*search, *sys.path]))
    done = first
    for part in rest:
        if _finds_its_own_way(spec):
            return None
        folders = list(spec.submodule_search_locations or ())
        below = PathFinder.find_spec(f"{done}.{part}", folders)
        if below is None:
            raise TargetError(f"{said}: there is no module {part} in {done}", _nearest_module(part, folders))
        spec, done = below, f"{done}.{part}"
    return spec


def check_program(name: str, env: Mapping[str, str]) -> None:
    """Raises ``TargetError`` unless ``name`` can be started, by its path or through PATH."""
    path = Path(name)
    if shutil.which(name, path=env.get("PATH", os.defpath)):
        return
    if path.is_dir():
        raise TargetError(f"{name} is a folder", "name the program in it, or use -m for a package")
    if os.sep in name:
        if path.exists():
            raise TargetError(f"{name} is not executable", f"chmod +x {name}, or name its interpreter")
        raise TargetError(f"there is no program {name}", _several_words(name) or _nearest_file(path))
    if path.exists():
        raise TargetError(f"there is no program {name} on PATH", f"the file here is ./{name}")
    hint = _several_words(name) or _nearest_file(path) or _nearest_program(name, env)
    if "=" in name and name.partition("=")[0].isidentifier():
        hint = f"a variable for the ranks is --env {name}"
    raise TargetError(f"there is no program {name} on PATH", hint)


def _several_words(name: str) -> str:
    """What somebody may have meant who gave a shell's line as one word."""
    return "it is one word as it stands here: leave out the quotes, or give it to sh -c" if " " in name else ""


def _installed(name: str) -> ModuleSpec | None:
    """A top-level module as any of this interpreter's finders knows it; its code does not run for that."""
    here = sys.path[0] if sys.path else ""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # ValueError: __main__ and the like, loaded without a spec
        return None
    if spec is not None and spec.origin and Path(spec.origin).parent == Path(here or "/nowhere"):
        # sys.path[0] is the folder of the zlaunch command, which ranks do not search, or the current one,
        # where we have looked already.
        return None
    return spec


def _finds_its_own_way(spec: ModuleSpec) -> bool:
    """Whether the package changes its ``__path__`` when it is imported, so that files alone do not tell."""
    if not spec.origin or not spec.origin.endswith(".py"):
        return spec.origin not in (None, "namespace")
    try:
        return "__path__" in Path(spec.origin).read_text(errors="replace")
    except OSError:
        return True


def _nearest_file(path: Path) -> str:
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.is_file()]
    except OSError:
        return f"there is no folder {path.parent}"
    same_stem = [name for name in names if name == f"{path.name}.py"]
    hint = f"did you mean {same_stem[0]}?" if same_stem else nearest(path.name, names)
    return hint.replace("did you mean ", f"did you mean {path.parent}{os.sep}") if path.parent.name else hint


def _nearest_module(name: str, folders: Sequence[str]) -> str:
    names: list[str] = []
    for folder in folders:
        if not os.path.isdir(folder):
            continue
        for entry in os.scandir(folder):
            stem, dot, ending = entry.name.partition(".")
            if stem.isidentifier() and (ending == "py" or (not dot and entry.is_dir())):
                names.append(stem)
    return nearest(name, names)


def _nearest_program(name: str, env: Mapping[str, str]) -> str:
    names: set[str] = set()
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        try:
            names.update(os.listdir(folder or "."))
        except OSError:
            continue
    return nearest(name, sorted(names))
