"""Hubs, spokes and strangers for the tests of the wire. Run as a program it is an agent: its invitation on stdin."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import zmq

from zlaunch.link.hub import Hub, HubEvent, Joined
from zlaunch.link.spoke import Invitation, Lost, Spoke, SpokeEvent, Told
from zlaunch.model import HostFacts
from zlaunch.protocol import messages as m
from zlaunch.protocol.frames import encode

PATIENCE = 20.0
"""Seconds after which a test that waits has failed."""


def hello() -> m.Hello:
    return m.Hello(HostFacts(hostname="h", pid=os.getpid(), cores=1, version="0"), time.monotonic())


def hear(hub: Hub, done: Callable[[list[HubEvent]], object], *others: Hub | Spoke) -> list[HubEvent]:
    """Poll the hub (and let others have their turn) until ``done`` of all that it told."""
    told: list[HubEvent] = []
    deadline = time.monotonic() + PATIENCE
    while not done(told):
        assert time.monotonic() < deadline, f"waited in vain; told so far: {told[-20:]}; {hub.counters}"
        for other in others:
            other.poll(0)
        told += hub.poll(0.002 if others else 0.05)[0]
    return told


def listen(spoke: Spoke, done: Callable[[list[SpokeEvent]], object], *others: Hub | Spoke) -> list[SpokeEvent]:
    """The same for a spoke."""
    told: list[SpokeEvent] = []
    deadline = time.monotonic() + PATIENCE
    while not done(told):
        assert time.monotonic() < deadline, f"waited in vain; told so far: {told[-20:]}"
        for other in others:
            other.poll(0)
        told += spoke.poll(0.002 if others else 0.05)[0]
    return told


def some(kind: type) -> Callable[[list[Any]], bool]:
    return lambda told: any(isinstance(event, kind) for event in told)


def while_serving(hub: Hub, work: Callable[[], Any]) -> list[HubEvent]:
    """Run ``work`` in a thread while the hub has its turns: a handshake needs both ends. Raises what it raises."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    told: list[HubEvent] = []
    while thread.is_alive():
        told += hub.poll(0.005)[0]
    thread.join()
    if failure:
        raise failure[0]
    return told


def join(hub: Hub, host: int = 0, invitation: Invitation | None = None, first: str = "") -> Spoke:
    """A spoke that has joined as this host."""
    spoke = Spoke(invitation or hub.invite(host))
    while_serving(hub, lambda: spoke.connect(PATIENCE, first))
    spoke.send(hello())
    hear(hub, some(Joined))
    return spoke


@contextmanager
def joined(*, host: int = 0, heartbeat: float = 1.0, silence: float = 4.5) -> Iterator[tuple[Hub, Spoke]]:
    """A hub and a spoke, in one thread."""
    hub = Hub(heartbeat=heartbeat, silence=silence)
    spoke = join(hub, host)
    try:
        yield hub, spoke
    finally:
        spoke.close()
        hub.close()


class Stranger:
    """Two DEALERs that speak whatever they are told to: with an invitation's keys, or without any."""

    def __init__(self, hub: Hub, invitation: Invitation, *, identity: str | None = None, **keys: str | None) -> None:
        self.hub, self.invitation = hub, invitation
        self.context = zmq.Context()
        self.control = self._dealer(invitation.control[0], identity, keys)
        self.bulk = self._dealer(invitation.bulk[0], identity, keys)

    def _dealer(self, endpoint: str, identity: str | None, keys: dict[str, str | None]) -> zmq.Socket[bytes]:
        dealer = self.context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.sndhwm = 0
        name = self.invitation.user + "/0" if identity is None else identity
        if name:
            dealer.routing_id = name.encode()
        if keys.get("server", "") is not None:
            dealer.curve_serverkey = (keys.get("server") or self.invitation.server_key).encode()
            dealer.curve_publickey = (keys.get("public") or self.invitation.public_key).encode()
            dealer.curve_secretkey = (keys.get("secret") or self.invitation.secret_key).encode()
        dealer.reconnect_ivl = 2**31 - 1
        dealer.connect(endpoint)
        return dealer

    def say(self, seq: int, message: Any, *frames: bytes, bulk: bool = False) -> None:
        self.raw(encode(self.invitation.nonce, seq, message), *frames, bulk=bulk)

    def raw(self, *frames: bytes, bulk: bool = False) -> None:
        (self.bulk if bulk else self.control).send_multipart(frames)

    def greet(self) -> None:
        self.say(1, hello())
        self.say(1, None, bulk=True)

    def close(self) -> None:
        self.context.destroy(linger=0)


class Child:
    """An agent in a process of its own: answers pings, until it is told to leave."""

    def __init__(self, hub: Hub, host: int) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, env=_environment())
        assert self.process.stdin is not None
        self.process.stdin.write(hub.invite(host).to_line())
        self.process.stdin.flush()
        hear(hub, some(Joined))

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)
        if number == signal.SIGSTOP:
            os.waitpid(self.process.pid, os.WUNTRACED)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()
        self.process.wait(PATIENCE)


class Tunnel:
    """What ssh's remote forwardings are: two unix sockets, and who connects to one is connected to a port of the hub.

    ``hold`` is a cut in one direction: nothing gets through, and neither end is told.
    """

    def __init__(self, hub: Hub, prefix: str) -> None:
        self._held: set[str] = set()
        self._poll = select.poll()
        wake, self._wake = os.pipe()
        self._poll.register(wake, select.POLLIN)
        self._doors: dict[int, tuple[socket.socket, int]] = {}
        self._ways: dict[int, tuple[str, socket.socket, socket.socket]] = {}
        for ending, port in zip("cb", hub.tunnel_ports, strict=True):
            door = socket.socket(socket.AF_UNIX)
            door.bind(f"{prefix}.{ending}")
            door.listen()
            self._doors[door.fileno()] = (door, port)
            self._poll.register(door, select.POLLIN)
        self._thread = threading.Thread(target=self._carry, args=(wake,))
        self._thread.start()

    def hold(self, direction: Literal["up", "down"]) -> None:
        """Pass on nothing more that goes up to the hub, or down from it."""
        self._held.add(direction)

    def _carry(self, wake: int) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd == wake:
                    os.close(wake)
                    return
                if fd in self._doors:
                    door, port = self._doors[fd]
                    agent, hub = door.accept()[0], socket.create_connection(("127.0.0.1", port))
                    for way in (("up", agent, hub), ("down", hub, agent)):
                        self._ways[way[1].fileno()] = way
                        self._poll.register(way[1], select.POLLIN)
                else:
                    self._pass(fd)

    def _pass(self, fd: int) -> None:
        direction, source, sink = self._ways[fd]
        if direction in self._held:
            self._poll.unregister(fd)
            return
        try:
            data = source.recv(1 << 20)
            sink.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._poll.unregister(fd)
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        os.close(self._wake)
        self._thread.join(PATIENCE)
        for door, _ in self._doors.values():
            door.close()
        for _, source, _ in self._ways.values():
            source.close()


def _environment() -> dict[str, str]:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {**os.environ, "PYTHONPATH": root}


def main() -> None:
    spoke = Spoke(Invitation.from_line(sys.stdin.buffer.readline()))
    spoke.connect(PATIENCE)
    spoke.send(hello())
    while True:
        for event in spoke.poll(None)[0]:
            match event:
                case Told(m.Ping(sent)):
                    spoke.send(m.Pong(sent, time.monotonic(), False))
                case Told(m.Shutdown()) | Lost():
                    spoke.send(m.Bye())
                    spoke.flush(1.0)
                    spoke.close()
                    return
                case _:
                    pass


if __name__ == "__main__":
    main()
