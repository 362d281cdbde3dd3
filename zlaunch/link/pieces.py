"""Level 3: payloads in pieces, on their way out and in; for both ends of the wire. No I/O."""

from __future__ import annotations

from ..protocol.frames import PIECE, Malformed
from ..protocol.messages import Piece
from .words import announced

HELD_PIECES = 64
"""Pieces that may come before the message that announces them: control and bulk are two connections."""


class Outgoing:
    """A payload on its way out, one piece after the other."""

    __slots__ = ("id", "offset", "view")

    def __init__(self, payload_id: int, view: memoryview) -> None:
        self.id = payload_id
        self.view = view
        self.offset = 0

    @property
    def left(self) -> int:
        """Bytes that have not been sent."""
        return len(self.view) - self.offset

    def next(self) -> tuple[Piece, memoryview]:
        """The next piece; ``advance`` when it was taken."""
        return Piece(self.id, self.offset), self.view[self.offset : self.offset + PIECE]

    def advance(self) -> bool:
        """The piece was taken; True when it was the last."""
        self.offset = min(self.offset + PIECE, len(self.view))
        return self.offset == len(self.view)


class Incoming:
    """The payloads that were announced by control messages, so that pieces are told only after their announcement."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._received: dict[int, int] = {}

    def announce(self, message: object) -> bool:
        """Note what a control message announces; True when it announces something."""
        payload = announced(message)
        if payload is None or payload.size <= 0:
            return False
        self._sizes[payload.id], self._received[payload.id] = payload.size, 0
        return True

    def accept(self, piece: Piece, size: int) -> bool:
        """Whether a piece may be told now. False: not announced yet. Raises ``Malformed`` for one out of its place."""
        total = self._sizes.get(piece.id)
        if total is None:
            return False
        if piece.offset != self._received[piece.id] or piece.offset + size > total:
            raise Malformed(
                f"a piece of payload {piece.id} at {piece.offset} with {size} bytes, "
                f"where {self._received[piece.id]} of {total} had come"
            )
        self._received[piece.id] += size
        if self._received[piece.id] == total:
            del self._sizes[piece.id], self._received[piece.id]
        return True
