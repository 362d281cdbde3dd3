"""Level 4, worker: what imports leave behind in the fork template, and what of it ranks are given.

A rank that was an interpreter of its own would import the same modules itself, and find what they did: variables that
they set, handlers of signals, a seed, text that waits in an open file. A fork has some of this from the template, some
of it would be lost to what a rank is given afterwards, and some must not be had by several processes. So the imports
are watched, their traces are taken off the template, and each rank gets those that it would have made itself.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from msgspec import Struct

from ..systems.processes import descendants
from ..torchenv import remembered
from ..torchenv.environment import OWN
from . import linux

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask to end. They mean the ranks: the template itself ignores them."""
_FRESH: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
"""As an interpreter has them that was just started."""
_TEMPORARY = ("TMPDIR", "TEMP", "TMP")
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_OS_ENTROPY = 1 << 96
"""numpy takes 128 bits of the operating system's where it is given no seed; nobody writes such a number by hand."""
_LAYERS: tuple[type[io.IOBase], ...] = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)

left_open: list[Any] = []
"""Files that imports have opened for writing. The collector does not find them in a rank, and they are its own to write
out: what they held when it was forked has been written already."""


class Traces(Struct):
    """What imports did."""

    env: dict[str, str | None] = {}
    """Variables that they changed; ``None`` for those that they removed."""
    before: list[str] = []
    after: list[str] = []
    """Folders that they put before and behind those of ``sys.path``."""
    handlers: dict[int, Any] = {}
    """Of signals whose handlers the template has for itself."""
    read: list[str] = []
    """Variables of a rank that they looked up: what they made of them is wrong in every rank."""
    random: tuple[Any, ...] | None = None
    """The state of Python's generator, where they seeded it."""
    numpy_seeded: bool = False
    unseeded: list[Any] = []
    """Their own generators of random numbers, but for those that they gave a seed."""
    template: dict[str, str] = {}
    """The environment in which all this was."""

    def restore(self, env: Mapping[str, str]) -> None:
        """Bring them into this rank, whose environment is to be ``env``."""
        os.environ.clear()
        os.environ.update(env)
        for name, value in self.env.items():
            if name in OWN:  # they have found none, and would have found ours
                continue
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._differs("TZ"):
            time.tzset()
        tempfile = sys.modules.get("tempfile")
        if tempfile is not None and any(map(self._differs, _TEMPORARY)):
            vars(tempfile)["tempdir"] = None  # it is looked for once, and then remembered
        remembered.tell_rank(env)
        self._deal_random_numbers()

    def restore_path(self) -> None:
        """Put their folders to ``sys.path``."""
        sys.path[:0] = [folder for folder in self.before if folder not in sys.path]
        sys.path += [folder for folder in self.after if folder not in sys.path]

    def _differs(self, name: str) -> bool:
        return os.environ.get(name) != self.template.get(name)

    def _deal_random_numbers(self) -> None:
        """As interpreters of their own would have them: alike where there is a seed, and only there."""
        if self.random is not None:  # else Python has seen to it, in the fork itself
            sys.modules["random"].setstate(self.random)
        legacy = sys.modules.get("numpy.random")
        if legacy is not None and not self.numpy_seeded:
            legacy.seed()
        for generator in self.unseeded:
            with suppress(Exception):
                _seed(generator)


@contextmanager
def watch() -> Iterator[Traces]:
    """Within this, modules are imported; what they did is in what it gives, afterwards."""
    traces = Traces(template=dict(os.environ))
    path = list(sys.path)
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # what comes meanwhile is ignored afterwards, as always
    for number, handler in _FRESH.items():
        signal.signal(number, handler)
    with _exit_handlers(), _reads(traces), _seeds(traces):
        yield traces
    _look_through_objects(traces)
    for number in (*ASKING, signal.SIGCHLD):
        handler = signal.getsignal(number)
        if handler is not None and handler != _FRESH.get(number, signal.SIG_DFL):  # None: one that is not Python's
            traces.handlers[number] = handler
        signal.signal(number, signal.SIG_IGN if number in ASKING else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    changed = {name for name, _ in traces.template.items() ^ os.environ.items()}
    traces.env = {name: os.environ.get(name) for name in changed}
    added = [folder for folder in sys.path if folder not in path]
    kept = next((place for place, folder in enumerate(sys.path) if folder in path), 0)
    traces.before = [folder for folder in sys.path[:kept] if folder in added]
    traces.after = [folder for folder in added if folder not in traces.before]


@contextmanager
def _exit_handlers() -> Iterator[None]:
    """Forget the exit handlers of what is imported, but for those that Python's own have.

    An inherited handler costs time in every rank (torch's: 0.15 s in eight), and would clean up what all share. What
    was registered before, as the interpreter started (a tool that measures coverage), stays.
    """
    found: list[Callable[..., Any]] = []
    register = atexit.register

    def remember(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        found.append(function)
        return register(function, *args, **kwargs)

    atexit.register = remember
    try:
        yield
    finally:
        atexit.register = register
    for function in found:
        atexit.unregister(function)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # private: the only way
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # the next one registers anew
    for module, name in (("multiprocessing.util", "_exit_function"), ("logging", "shutdown")):
        own = getattr(sys.modules.get(module), name, None)
        if own is not None:
            atexit.unregister(own)
            atexit.register(own)


@contextmanager
def _reads(traces: Traces) -> Iterator[None]:
    """Notice who asks for a rank's own variables: there are none yet."""
    kind = type(os.environ)
    look_up = kind.__getitem__

    def noticed(self: Any, name: str) -> str:
        if name in OWN and self is os.environ and name not in traces.read and not remembered.is_asked_by_one():
            traces.read.append(name)
        return look_up(self, name)

    kind.__getitem__ = noticed  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__getitem__ = look_up  # type: ignore[method-assign]


@contextmanager
def _seeds(traces: Traces) -> Iterator[None]:
    """Tell generators that are given a seed from those that take one of the operating system's."""
    import random

    unseeded: weakref.WeakSet[random.Random] = weakref.WeakSet()
    seed, of_instance = random.seed, random.Random.seed
    seeded = False

    def seed_all(a: Any = None, version: int = 2) -> None:
        nonlocal seeded
        seeded = a is not None
        seed(a, version)

    def seed_one(self: random.Random, a: Any = None, version: int = 2) -> None:
        (unseeded.discard if a is not None else unseeded.add)(self)
        of_instance(self, a, version)

    random.seed, random.Random.seed = seed_all, seed_one  # type: ignore[method-assign]
    try:
        yield
    finally:
        random.seed, random.Random.seed = seed, of_instance  # type: ignore[method-assign]
    traces.random = random.getstate() if seeded else None
    traces.unseeded = list(unseeded)


def _is_unseeded(generator: Any) -> bool:
    bits = getattr(generator, "bit_generator", None) or generator._bit_generator
    entropy = getattr(bits.seed_seq, "entropy", None)
    return isinstance(entropy, int) and entropy >= _OS_ENTROPY


def _seed(generator: Any) -> None:
    if hasattr(generator, "bit_generator"):
        generator.bit_generator.state = type(generator.bit_generator)().state
    else:
        generator.seed()


def _look_through_objects(traces: Traces) -> None:
    """Find numpy's generators, and write out, once and here, what waits in open files: each rank would do so otherwise.

    There are hundreds of thousands of objects, so all is looked for at once.
    """
    numpy: Any = sys.modules.get("numpy.random")
    generators: tuple[type, ...] = (numpy.Generator, numpy.RandomState) if numpy is not None else ()
    kinds = {*_LAYERS, *generators}
    found = [each for each in gc.get_objects() if type(each) in kinds]
    if numpy is not None:
        global_one = numpy.mtrand._rand
        with suppress(Exception):  # an attribute that another version has not
            traces.numpy_seeded = global_one._bit_generator.seed_seq is None
        own = [each for each in found if type(each) in generators and each is not global_one]
        traces.unseeded += [each for each in own if _is_unseeded(each)]
    for layer in _LAYERS:  # text first: it goes to the bytes below it
        for file in [each for each in found if type(each) is layer]:
            with suppress(Exception):
                file.flush()
                if file.fileno() > 2:
                    left_open.append(file)
    linux.flush_c_streams()


def why_not_to_fork(traces: Traces, own: frozenset[int]) -> str:
    """What the module that was just imported did that no fork survives or may share; empty where there is nothing.

    ``own`` are the descriptors that were open before.
    """
    threads = linux.count_threads()
    if threads > 1:
        return f"started {threads - 1} thread{'s'[: threads - 2]}"
    if children := len(descendants(os.getpid())):
        return f"started {children} process{'es' if children > 1 else ''}"
    if devices := linux.open_gpu_devices():
        return f"opened {', '.join(devices)}"
    if kinds := linux.unshareable(own):
        return f"opened {' and '.join(kinds)}"
    if any(signal.getitimer(timer)[0] for timer in _TIMERS):
        return "set a timer"
    if traces.read:
        return f"asked for {', '.join(traces.read)}, which a process has only when it is a rank"
    return ""
