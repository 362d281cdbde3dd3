"""Level 2: objects to frames and back, by cloudpickle. Only the launcher and the worker may open a letter.

Frame 0 is the pickle; the frames after it are the buffers of large arrays and tensors, which are neither copied when
they are written nor when they are read: what is loaded lies in the memory that it was given. numpy does that by
itself (protocol 5). PyTorch's tensors pickle their storage into the stream through a second pickle, so storages are
reduced here instead: all tensors that share a storage go on sharing it (tied weights, views), and everything else
about a tensor stays PyTorch's own business. Torch is never imported in order to dump: who has no torch has no tensor.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import cloudpickle

from ..errors import SerializationError
from .culprit import find_culprit
from .envelope import Buffer
from .travel import modules_by_value

_SMALL = 2048
"""Buffers below this size stay in the pickle: a frame of its own would cost more than the copy."""
_NAMED = 5
"""Modules that an error names."""
_MACHINERY = frozenset({"__builtins__", "__cached__", "__loader__", "__spec__"})
"""What an import writes into a module, and is of no use where it was not imported."""
_arrived: dict[str, ModuleType] = {}
_registry = threading.RLock()
"""Who has put modules into cloudpickle's registry, or must not find them there."""


def dump(obj: object, name: str = "it") -> list[Buffer]:
    """Pickle ``obj``. Its arrays and tensors must not change until the frames have been written.

    Args:
        obj: anything that cloudpickle takes.
        name: what to call the object in an error: ``the result``.

    Raises:
        SerializationError: it cannot be pickled; the message has the path to the part that can't, and why.
    """
    try:
        return _dump(obj)
    except Exception as error:
        path, part, reason = find_culprit(obj, error, _dump)
        where = f"its part {path}, {_describe(part)}" if path else _describe(part)
        raise SerializationError(f"{name} cannot be pickled ({where}): {reason}") from error


def dump_task(
    function: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    absent: Sequence[str] = (),
) -> list[Buffer]:
    """Pickle a function step's ``(function, args, kwargs)``.

    Args:
        function: what to call.
        args: with what.
        kwargs: and with what by name.
        absent: folders that a host has not: functions, classes and modules of the user in them travel by value.
            Results and exceptions of such classes still come back as the caller's own ones.

    Raises:
        SerializationError: as ``dump``; the message says which argument of which function it is.
    """
    task = (function, tuple(args), dict(kwargs))
    with _by_value(absent) as modules:
        try:
            return _dump(task)
        except Exception as error:
            failed = error
            problem = _find_problem(failed, *task)
    if modules and _can_be_dumped(task):
        mine = getattr(function, "__module__", "")
        order = sorted(modules, key=lambda name: (name != mine, name))
        names = ", ".join(order[:_NAMED]) + (", ..." if len(order) > _NAMED else "")
        problem = SerializationError(
            f"{problem}. By value is how {names} must travel, since not all hosts have the folder(s) "
            f"{', '.join(absent)}: have them there, or make what cannot be pickled where it is needed"
        )
    raise problem from failed


def _find_problem(
    error: Exception, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> SerializationError:
    title = getattr(function, "__qualname__", None) or repr(function)
    try:
        dump(function, f"function {title}")
        for number, value in enumerate(args):
            dump(value, f"argument {number} of {title}")
        for key, value in kwargs.items():
            dump(value, f"argument {key!r} of {title}")
    except SerializationError as found:
        return found
    return SerializationError(f"the call of {title} cannot be pickled: {_reason(error)}")


def _can_be_dumped(obj: object) -> bool:
    try:
        _dump(obj)
    except Exception:
        return False
    return True


@contextmanager
def _by_value(absent: Sequence[str]) -> Iterator[dict[str, ModuleType]]:
    """Have cloudpickle take apart what lies in these folders, for now, and for nobody else who dumps a task."""
    with _registry:
        modules = modules_by_value(absent)
        users = cloudpickle.list_registry_pickle_by_value()
        ours = [module for name, module in modules.items() if name not in users]
        try:
            for module in ours:
                cloudpickle.register_pickle_by_value(module)
            yield modules
        finally:
            for module in ours:
                with suppress(ValueError):
                    cloudpickle.unregister_pickle_by_value(module)


def load(frames: Sequence[memoryview]) -> Any:
    """The object of a letter. Its arrays and tensors use the memory of ``frames``, which is written to if they are.

    Raises:
        SerializationError: it cannot be rebuilt here; ``__cause__`` is what the attempt raised.
    """
    try:
        return pickle.loads(frames[0], buffers=frames[1:])
    except Exception as error:
        raise SerializationError(f"cannot be unpickled: {_reason(error)}") from error


def _dump(obj: object) -> list[Buffer]:
    stream = io.BytesIO()
    buffers: list[Buffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _SMALL:
            return True
        buffers.append(view)
        return False

    _Pickler(stream, keep).dump(obj)
    return [stream.getbuffer(), *buffers]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """cloudpickle, but for the storages of tensors."""

    def __init__(self, stream: io.BytesIO, keep: Callable[[pickle.PickleBuffer], bool]) -> None:
        super().__init__(stream, protocol=5, buffer_callback=keep)
        torch = sys.modules.get("torch")
        self._typed: type | None = getattr(torch, "TypedStorage", None)
        self._untyped: type | None = getattr(torch, "UntypedStorage", None)
        self._storages: dict[int, _Storage] = {}
        self._by_value = cloudpickle.list_registry_pickle_by_value()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is ModuleType and obj.__name__ in self._by_value:
            # cloudpickle itself would never come to an end with two modules that import each other.
            return _new_module, (obj.__name__,), _contents(obj), None, None, _fill_module
        if self._untyped is not None:
            if kind is _Storage:
                return obj.reduce()
            if kind is self._typed and self._takes(obj._untyped_storage):
                return _load_typed, (self._box(obj._untyped_storage), obj.dtype)
            if kind is self._untyped and self._takes(obj):
                return _unbox, (self._box(obj),)
        return super().reducer_override(obj)

    @staticmethod
    def _takes(storage: Any) -> bool:
        return storage.device.type in ("cpu", "cuda")

    def _box(self, storage: Any) -> _Storage:
        # _cdata is the address of the C++ storage: one for all the Python objects that stand for it. The box keeps it
        # alive, and being one object itself, lets pickle notice that it was met before.
        return self._storages.setdefault(storage._cdata, _Storage(storage))


def _contents(module: ModuleType) -> dict[str, object]:
    return {key: value for key, value in vars(module).items() if key not in _MACHINERY}


def _new_module(name: str) -> ModuleType:
    """A module that came by value. Who imports it there by its name, finds it, and so do results that refer to it."""
    if name not in _arrived:
        module = _arrived[name] = ModuleType(name)
        if name not in sys.modules:
            sys.modules[name] = module
            package, _, child = name.rpartition(".")
            if package:
                setattr(_package(package), child, module)
    return _arrived[name]


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:  # it has not come, or not yet
        module = _new_module(name)
        vars(module).setdefault("__path__", [])
        return module


def _fill_module(module: ModuleType, contents: dict[str, object]) -> None:
    vars(module).update(contents)


class _Storage:
    """One storage of tensors while it is being pickled."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage

    def reduce(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        device = str(self.storage.device)
        flat = self.storage if device == "cpu" else self.storage.cpu()
        return _load_storage, (pickle.PickleBuffer(_view(flat)), device)


def _view(storage: Any) -> memoryview:
    array = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr() or 0)
    array.owner = storage  # the view keeps the array, and the array the memory
    return memoryview(array).cast("B")


def _load_storage(buffer: Any, device: str) -> Any:
    """A storage over ``buffer``; one of a GPU goes back there, if this process has that GPU, and else stays here."""
    import torch

    if not len(buffer):
        storage: Any = torch.UntypedStorage(0)  # type: ignore[no-untyped-call]
    else:
        storage = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    place = torch.device(device)
    if place.type == "cuda" and torch.cuda.is_available() and (place.index or 0) < torch.cuda.device_count():
        return storage.to(device=place)
    return storage


def _load_typed(storage: Any, dtype: Any) -> Any:
    import torch

    return torch.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]


def _unbox(storage: Any) -> Any:
    return storage


def _describe(part: object) -> str:
    kind = type(part)
    return f"a {kind.__qualname__}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{kind.__qualname__}"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
