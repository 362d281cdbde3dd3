"""Level 3: an agent's end of the wire. Two DEALERs to one supervisor, connected once; used from one thread.

A broken connection is the end: nothing is sent again, because nobody could say what had arrived. After ``Lost`` what is
still said is dropped without a word, so that an agent can go home without asking at each step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import TypeAlias

import zmq
from msgspec import Struct

from ..protocol import frames
from ..protocol.frames import ATTACH_LIMIT, Buffer, Malformed, VersionMismatch
from ..protocol.messages import PROTOCOL, Log, Piece, ToAgent, ToSupervisor
from . import wires
from .dialing import Pair, dial, remove_tunnel
from .pieces import HELD_PIECES, Incoming, Outgoing
from .words import Invitation, LinkError, Refused, as_bytes

__all__ = ["Invitation", "LinkError", "Lost", "PieceCame", "Refused", "Spoke", "SpokeEvent", "Told"]

OUTBOX = 64 << 20
"""Bytes of control messages that may wait; a supervisor that takes no more is lost."""
TURN_MESSAGES, TURN_PIECES = 256, 4
_LAST_WORDS = 0.05
_LINGER = 1.0


class Told(Struct, frozen=True):
    """The supervisor said something, with the payload that was attached to it."""

    message: ToAgent
    payload: memoryview | None


class PieceCame(Struct, frozen=True):
    """A part of a payload that was announced before, in order and without a gap."""

    id: int
    offset: int
    data: memoryview


class Lost(Struct, frozen=True):
    """The supervisor is gone, for good. Told once, and nothing after it."""

    reason: str


SpokeEvent: TypeAlias = Told | PieceCame | Lost | Refused


class Spoke:
    """One agent's connection to its supervisor.

    Args:
        invitation: from the supervisor's hub.
        heartbeat: seconds between heartbeats on control, where not as the invitation says.
        silence: seconds after which a supervisor that answers none is lost, where not as the invitation says.
    """

    def __init__(self, invitation: Invitation, *, heartbeat: float | None = None, silence: float | None = None) -> None:
        self._invitation = invitation
        self._heartbeat = invitation.heartbeat if heartbeat is None else heartbeat
        self._silence = invitation.silence if silence is None else silence
        self._context = wires.new_context()
        self._pair: Pair | None = None
        self._way = ""
        self._waiter = wires.Waiter(())
        nonce = invitation.nonce
        self._control_in = frames.Inbound(nonce, frames.TO_AGENT)
        self._control_out = frames.Outbound(nonce)
        self._bulk_in = frames.Inbound(nonce, frames.BULK)
        self._bulk_out = frames.Outbound(nonce)
        self._messages: deque[list[Buffer]] = deque()
        self._message_bytes = 0
        self._logs: deque[tuple[Log, Sequence[Buffer]]] = deque()
        self._payloads: deque[Outgoing] = deque()
        self._next: list[Buffer] = []
        """The bulk message whose turn it is, with its number."""
        self._backlog = 0
        self._incoming = Incoming()
        self._early: list[tuple[Piece, memoryview]] = []
        self._events: list[SpokeEvent] = []
        self._busy = False
        self._lost = ""
        self._lost_by = 0.0
        self._told_lost = False

    def connect(self, timeout: float, first: str = "", give_up: Collection[int] = ()) -> None:
        """Get through to the supervisor within ``timeout`` seconds, by whichever way gets through first.

        ``first`` is the numeric address by which it is most likely to be reached, where one is known: it has a head
        start. The invitation's tunnel is the last resort; its sockets are gone from the file system afterwards.
        A descriptor of ``give_up`` that becomes readable, or is hung up, ends the attempt.

        Raises:
            LinkError: none did; says which were tried, and why each failed. Also for another version's invitation.
        """
        invitation = self._invitation
        if invitation.protocol != PROTOCOL:
            remove_tunnel(invitation)
            raise LinkError(str(VersionMismatch(invitation.protocol, invitation.version)))
        self._pair = dial(
            self._context,
            invitation,
            timeout,
            first,
            heartbeat=self._heartbeat,
            silence=self._silence,
            give_up=give_up,
        )
        self._way = self._pair.control.endpoint
        control, bulk = self._pair.lines
        self._waiter = wires.Waiter([control.socket, bulk.socket, control.monitor.socket, bulk.monitor.socket])
        bulk.socket.send(self._bulk_out.encode(None))

    @property
    def way(self) -> str:
        """The endpoint by which it got through: ``tcp://10.0.0.1:4711``; ``ipc://…`` is the tunnel. Empty before."""
        return self._way

    # --- sending ----------------------------------------------------------------------------------------------------

    def send(self, message: ToSupervisor, payload: Buffer | None = None) -> None:
        """Say something on control; it is sent now or as soon as the supervisor takes it.

        Raises:
            Malformed: the message or its payload is too large for any peer, or the payload is not what it says.
        """
        view = None if payload is None else as_bytes(payload)
        frames.check_control(message, [] if view is None else [len(view)])
        if self._lost:
            return
        header = self._control_out.encode(message)
        parts: list[Buffer] = [header] if view is None else [header, view]
        self._messages.append(parts)
        self._message_bytes += sum(map(len, parts))
        self._send_messages()
        if self._message_bytes > OUTBOX:
            self._lose(f"the supervisor has not taken {self._message_bytes >> 20} MiB of messages")

    def send_payload(self, payload_id: int, view: memoryview) -> None:
        """Send a payload on bulk, after the message that announces it. ``view`` must stay as it is until it is sent."""
        flat = as_bytes(view)
        if len(flat) and not self._lost:
            self._payloads.append(Outgoing(payload_id, flat))
            self._backlog += len(flat)
            self._send_bulk()

    def send_log(self, log: Log, data: Sequence[Buffer]) -> None:
        """Send lines on bulk, before any payload that waits. The buffers must stay as they are until they are sent.

        Raises:
            Malformed: a buffer is larger than a frame may be, there are too many, or ``log.size`` is not their sum.
        """
        views: Sequence[Buffer] = data if all(type(part) is bytes for part in data) else list(map(as_bytes, data))
        if len(views) > 1 and log.size <= ATTACH_LIMIT:
            views = [b"".join(views)]  # a frame costs more than a copy of a few lines
        frames.check_bulk(log, [len(view) for view in views])
        if not self._lost:
            self._logs.append((log, views))
            self._backlog += log.size
            self._send_bulk()

    def backlog(self) -> int:
        """Bytes that wait on bulk, and were not taken by ZeroMQ yet."""
        return self._backlog

    def _send_messages(self) -> None:
        while self._messages and self._pair is not None:
            if not wires.send(self._pair.control.socket, self._messages[0]):
                return
            self._message_bytes -= sum(map(len, self._messages.popleft()))

    def _send_bulk(self) -> None:
        """Feed the bulk socket until its pipe is full: lines first, they are few and somebody looks at them."""
        while self._pair is not None:
            if not self._next and not self._pick():
                return
            if not wires.send(self._pair.bulk.socket, self._next):
                return
            self._backlog -= sum(map(len, self._next[1:]))
            self._next = []

    def _pick(self) -> bool:
        """Make the next bulk message; False where nothing waits."""
        if self._logs:
            log, data = self._logs.popleft()
            self._next = [self._bulk_out.encode(log), *data]
            return True
        if not self._payloads:
            return False
        piece, part = self._payloads[0].next()
        self._next = [self._bulk_out.encode(piece), part]
        if self._payloads[0].advance():
            self._payloads.popleft()
        return True

    def _waiting(self) -> bool:
        return bool(self._messages or self._next or self._logs or self._payloads)

    def flush(self, timeout: float) -> bool:
        """Wait until ZeroMQ has taken all that waits, ``timeout`` seconds at most; whether it has."""
        deadline = time.monotonic() + timeout
        while True:
            self._send_messages()
            self._send_bulk()
            left = deadline - time.monotonic()
            if not self._waiting():
                return True
            if left <= 0 or self._lost or self._pair is None or any(line.ended for line in self._pair.lines):
                return False
            for line in self._pair.lines:
                line.watch()
            self._waiter.readable()
            self._waiter.wait(min(left, 0.005), ())

    # --- receiving --------------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None, extra: Collection[int] = ()) -> tuple[list[SpokeEvent], set[int]]:
        """Wait until there is something to tell, or ``timeout`` seconds have passed (``None``: for ever).

        Returns the events in order, and which descriptors of ``extra`` are readable, hung up or closed. Works without
        a connection too: then only ``extra`` is waited for.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._turn()
            events, self._events = self._events, []
            ready = self._waiter.wait(self._patience(bool(events), deadline), extra)
            if events or ready or (deadline is not None and time.monotonic() >= deadline):
                return events, ready

    def _patience(self, something: bool, deadline: float | None) -> float | None:
        if something or self._busy or (not self._told_lost and self._waiter.readable()):
            return 0.0
        limits = [deadline - time.monotonic()] if deadline is not None else []
        limits += [0.001] if self._lost and not self._told_lost else []
        limits += [0.005] if not self._lost and self._waiting() else []
        return min(limits, default=None)

    def _turn(self) -> None:
        if self._pair is None or self._told_lost:
            self._busy = False
            return
        for line in self._pair.lines:
            line.watch()
        broken = next((line for line in self._pair.lines if line.ended), None)
        if broken is not None and not self._lost:
            self._lose(broken.reason or "the connection to the supervisor broke")
        exhausted = all(line.exhausted for line in self._pair.lines) or time.monotonic() >= self._lost_by
        drained = all([self._drain(bulk=False), self._drain(bulk=True)])
        self._busy = not drained
        if not self._lost:
            self._send_messages()
            self._send_bulk()
        elif drained and exhausted:
            self._told_lost = True
            self._waiter = wires.Waiter(())
            self._events.append(Lost(self._lost))

    def _lose(self, reason: str) -> None:
        self._lost = reason
        self._lost_by = time.monotonic() + _LAST_WORDS
        self._messages.clear()
        self._logs.clear()
        self._payloads.clear()
        self._next = []
        self._backlog = 0

    def _drain(self, *, bulk: bool) -> bool:
        """Read messages, but not for ever; True when there are no more."""
        assert self._pair is not None
        socket = self._pair.lines[bulk].socket
        if not wires.readable(socket):
            return True
        for _ in range(TURN_PIECES if bulk else TURN_MESSAGES):
            parts = wires.receive(socket)
            if parts is None:
                return True
            try:
                if bulk:
                    self._take_bulk(parts)
                else:
                    self._take_control(parts)
            except Malformed as error:
                self._events.append(Refused(error.kind, f"the supervisor sent {error.reason}"))
            except VersionMismatch as error:
                self._events.append(Refused("version", str(error)))
        return False

    def _take_control(self, parts: list[zmq.Frame]) -> None:
        message = self._control_in.decode(parts[0].buffer)
        if isinstance(message, str):
            self._events.append(Refused("version", message))
            return
        frames.check_control(message, [len(part) for part in parts[1:]])
        self._events.append(Told(message, parts[1].buffer if len(parts) > 1 else None))
        if self._incoming.announce(message) and self._early:
            early, self._early = self._early, []
            for piece, data in early:
                self._piece(piece, data)

    def _take_bulk(self, parts: list[zmq.Frame]) -> None:
        message = self._bulk_in.decode(parts[0].buffer)
        frames.check_bulk(message, [len(part) for part in parts[1:]])
        if not isinstance(message, Piece):
            raise Malformed("something on bulk that is no piece of a payload")
        self._piece(message, parts[1].buffer)

    def _piece(self, piece: Piece, data: memoryview) -> None:
        if self._incoming.accept(piece, len(data)):
            self._events.append(PieceCame(piece.id, piece.offset, data))
        elif len(self._early) < HELD_PIECES:
            self._early.append((piece, data))
        else:
            raise Malformed(f"a piece of payload {piece.id}, which nothing has announced", "unknown")

    def close(self) -> None:
        """Hang up. What was said last still gets out, for a second at most; nothing waits where the end is known."""
        if self._pair is not None:
            ended = any(line.ended for line in self._pair.lines)
            self._pair.close(0.0 if ended or self._lost else _LINGER)
            self._pair = None
        self._context.destroy(linger=0)  # the sockets that are closed already keep their linger
