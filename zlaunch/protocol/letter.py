"""Level 2: objects to frames and back, by cloudpickle. Only the launcher and the worker may open a letter.

Frame 0 is the pickle; the frames after it are the buffers of large arrays and tensors, which are neither copied when
they are written nor when they are read: what is loaded lies in the memory that it was given. numpy does that by
itself (protocol 5). PyTorch's tensors pickle their storage into the stream through a second pickle, so storages are
reduced here instead: all tensors that share a storage go on sharing it (tied weights, views), and everything else
about a tensor stays PyTorch's own business. Torch is never imported in order to dump: who has no torch has no tensor.
"""

from __future__ import annotations

import ctypes
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle

from ..errors import SerializationError
from .culprit import find_culprit
from .envelope import Buffer

_SMALL = 2048
"""Buffers below this size stay in the pickle: a frame of its own would cost more than the copy."""


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


def dump_task(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> list[Buffer]:
    """Pickle a function step's ``(function, args, kwargs)``.

    Raises:
        SerializationError: as ``dump``; the message says which argument of which function it is.
    """
    try:
        return _dump((function, tuple(args), dict(kwargs)))
    except Exception as error:
        title = getattr(function, "__qualname__", None) or repr(function)
        dump(function, f"function {title}")
        for number, value in enumerate(args):
            dump(value, f"argument {number} of {title}")
        for key, value in kwargs.items():
            dump(value, f"argument {key!r} of {title}")
        raise SerializationError(f"the call of {title} cannot be pickled: {_reason(error)}") from error


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

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
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
