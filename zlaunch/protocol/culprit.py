"""Level 2: which part of an object is it that cannot be pickled?

Pickle says "cannot pickle '_thread.lock' object" and not where it is. Here the parts of the object are tried one by
one, and the first that fails is tried further, until no part of it fails by itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType

_DEEPEST = 8
_WIDEST = 1000
"""Parts of one object that are tried: the search must not take longer than the user will wait."""


def find_culprit(obj: object, error: Exception, attempt: Callable[[object], object]) -> tuple[str, object, str]:
    """The path to the smallest part of ``obj`` that ``attempt`` fails for (empty: the whole), the part, and why."""
    path = ""
    for _ in range(_DEEPEST):
        for step, part in _parts(obj):
            try:
                attempt(part)
            except Exception as failure:
                obj, path, error = part, path + step, failure
                break
        else:
            break
    return path.strip(), obj, f"{type(error).__name__}: {error}"


def _parts(obj: object) -> Iterator[tuple[str, object]]:
    for number, (step, part) in enumerate(_all_parts(obj)):
        if number == _WIDEST:
            return
        if part is not obj:
            yield step, part


def _all_parts(obj: object) -> Iterator[tuple[str, object]]:
    if isinstance(obj, Mapping):
        for key, value in obj.items():
            yield f"[{key!r}]", value
            yield f" key {key!r}", key
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for number, value in enumerate(obj):
            yield f"[{number}]", value
    elif isinstance(obj, functools.partial):
        yield ".func", obj.func
        yield ".args", obj.args
        yield ".keywords", obj.keywords
    elif isinstance(obj, MethodType):
        yield ".__self__", obj.__self__
    elif isinstance(obj, FunctionType):
        yield from _parts_of_function(obj)
        return
    attributes = getattr(obj, "__dict__", None)
    if isinstance(attributes, Mapping):
        for key, value in list(attributes.items()):
            if not (isinstance(obj, (type, ModuleType)) and key.startswith("__")):
                yield f".{key}", value


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, object]]:
    try:
        names = inspect.getclosurevars(function)
    except (TypeError, ValueError):  # a cell that is still empty
        return
    for key, value in names.nonlocals.items():
        yield f" variable {key!r}", value
    for key, value in names.globals.items():
        yield f" global {key!r}", value
    for number, value in enumerate(function.__defaults__ or ()):
        yield f" default {number}", value
    for key, value in (function.__kwdefaults__ or {}).items():
        yield f" default {key!r}", value
