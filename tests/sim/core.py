"""What simulators of schedulers have in common: a thread with a socket, to which their commands talk, and its clients.

All state belongs to the one event loop of that thread; tests look from outside, by the commands themselves. A command
is a coroutine ``async def bsub(call) -> int``, found by the name of the program; what it returns is the exit status.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import json
import os
import shutil
import stat
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from bed import Bed, BedError
from bed.commands import Commands
from bed.programs import PATIENCE

from .grammar import Refusal

_LINE = 1 << 24  # bytes: an environment, or a piece of output, in one line of JSON

_FAILED = 70
"""Exit status of a command in which the simulator itself has made a mistake: EX_SOFTWARE."""


class Watched:
    """Something that changes: ``await until(lambda: ...)`` looks again at every ``touch()``."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def touch(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, true: Callable[[], object]) -> None:
        while not true():
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future


class Call:
    """One run of a command: where it was called, with what, and the way to its streams.

    Attributes:
        name, argv: the program's name and its other words.
        environ, cwd, umask, tty: the caller's; ``tty`` says of each of the three streams whether it is a terminal.
        host: the name of the host where it runs: ``node1`` ..., or this machine's.
        gone: whether it has died before we said its exit status. Its coroutine is cancelled then.
    """

    def __init__(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.name, *self.argv = request["argv"]
        self.name = os.path.basename(self.name)
        self.environ: dict[str, str] = request["environ"]
        self.cwd: str = request["cwd"]
        self.host: str = request["host"]
        self.tty: list[bool] = request["tty"]
        self.umask: int = request["umask"]
        self.gone = False
        self._writer = writer
        self._signals: dict[int, Callable[[], None]] = {}
        self._reader: Callable[[bytes], None] | None = None

    def tell(self, **frame: Any) -> None:
        if not self.gone:
            self._writer.write(json.dumps(frame).encode() + b"\n")

    def say(self, text: str | bytes, stream: int = 1) -> None:
        """Write to its stdout (or stderr, 2); text goes with a newline, bytes as they are."""
        data = f"{text}\n".encode(errors="surrogateescape") if isinstance(text, str) else text
        self.tell(out=stream, data=data.decode("latin-1"))

    def complain(self, text: str) -> None:
        """A line on stderr."""
        self.say(text, 2)

    async def drain(self) -> None:
        """Until it has taken what was said, or is gone."""
        with suppress(ConnectionError):
            await self._writer.drain()

    def trap(self, signals: Mapping[int, Callable[[], None]]) -> None:
        """Call these when it gets these signals; all others do what they do to any program."""
        self._signals.update(signals)
        self.tell(trap=[int(number) for number in signals])

    def read(self, take: Callable[[bytes], None]) -> None:
        """Read its stdin from now on, and give each piece to ``take``; ``b""`` is the end."""
        self._reader = take
        self.tell(stdin=True)

    async def read_all(self) -> bytes:
        """Its whole stdin."""
        pieces: list[bytes] = []
        end = asyncio.Event()
        self.read(lambda data: pieces.append(data) if data else end.set())
        await end.wait()
        return b"".join(pieces)

    def hear(self, frame: dict[str, Any]) -> None:
        match frame:
            case {"signal": int(number)} if number in self._signals:
                self._signals[number]()
            case {"data": str(data)} if self._reader:
                self._reader(data.encode("latin-1"))
            case {"end": True} if self._reader:
                self._reader(b"")


Handler = Callable[[Call], Awaitable[int]]
Shepherd = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Cluster(Commands):
    """The base of a simulator; up when the constructor returns. ``commands`` says what programs there are.

    Args:
        bed: whose hosts are the nodes.
        name: of its folder in the bed's; there may be several of a kind on one bed.
        cpus, gpus: of each host, as the scheduler sees it.

    Attributes:
        environ: what the commands need: PATH, with their folder in front.
        loop: the event loop; only in its thread may anything of ours be touched.
        shepherds: who waits for the program that was started in a host with this token.
    """

    OWN: tuple[str, ...] = ()
    """Prefixes of variables that no command shall find in our environment."""

    def __init__(self, bed: Bed, name: str, *, cpus: int = 4, gpus: int = 0) -> None:
        self.bed, self.cpus, self.gpus = bed, cpus, gpus
        places = (bed.folder / f"{name}{number or ''}" for number in itertools.count())
        self.folder = next(place for place in places if not place.exists())
        self.bin, self.socket = self.folder / "bin", self.folder / "socket"
        self.bin.mkdir(parents=True)
        self.environ = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        self.shepherds: dict[str, asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}
        self._owner = os.getpid()
        self._tasks: set[asyncio.Task[Any]] = set()
        program = (Path(__file__).parent / "client.py").read_text()
        for command in self.commands():
            self._install(command, program)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._up = threading.Event()
        self._thread.start()
        atexit.register(self.down)
        if not self._up.wait(PATIENCE):
            raise BedError(f"the simulator {name} did not come up")

    def commands(self) -> Mapping[str, Handler]:
        """The coroutine of each command, by the program's name."""
        return {}

    def _install(self, name: str, program: str) -> None:
        file = self.bin / name
        file.write_text(f"#!{sys.executable} -IS\n{program}")
        file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- the loop, and those who talk to it

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_unix_server(self._greet, self.socket, limit=_LINE))
        self.start()
        self._up.set()
        self.loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        while left := asyncio.all_tasks(self.loop):  # ends that wait for processes to die are not cancelled
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.close()

    def start(self) -> None:
        """What is to be done in the loop's thread before anybody calls."""

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Let it run beside everything else; an exception in it is printed."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            line = await reader.readline()
            request = json.loads(line) if line else {}
            if "shepherd" in request:
                waiting = self.shepherds.pop(request["shepherd"], None)
                if waiting and not waiting.done():
                    waiting.set_result((reader, writer))
                    return
            elif request:
                await self._serve(Call(request, writer), reader)
        writer.close()

    async def _serve(self, call: Call, reader: asyncio.StreamReader) -> None:
        work = asyncio.ensure_future(self._answer(call))
        listening = asyncio.ensure_future(self._listen(call, reader))
        try:
            await asyncio.wait({work, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                call.gone = True
                work.cancel()
            with suppress(asyncio.CancelledError):
                call.tell(exit=await work)
            await call.drain()
        finally:
            listening.cancel()

    async def _answer(self, call: Call) -> int:
        try:
            return await self.commands()[call.name](call)
        except Refusal as refusal:
            call.complain(str(refusal))
            return refusal.status
        except Exception:
            call.complain(f"the simulator has failed:\n{traceback.format_exc()}")
            return _FAILED

    async def _listen(self, call: Call, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                call.hear(json.loads(line))

    # -- commands, as a test calls them on the head

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        ours = {key: value for key, value in os.environ.items() if not key.startswith(self.OWN)}
        return ours | self.environ | dict(more or {})

    def call(self, coroutine: Any) -> Any:
        """Run it in the loop, from another thread; what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def down(self) -> None:
        """End all that runs, and remove the commands. Nothing happens where it is down."""
        if os.getpid() != self._owner or not self._thread.is_alive():
            return
        atexit.unregister(self.down)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)
