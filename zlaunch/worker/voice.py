"""Level 4, worker: a rank's answer, given at most once and by the rank's own process only."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from ..link.local import Wire
from ..link.memory import write_memfd
from ..protocol.envelope import Buffer
from ..protocol.local import Answer

_LONGEST_TEXT = 40_000
"""Characters of a traceback that are sent; UTF-8 makes at most four bytes of one, and the message must fit."""


class Voice:
    """A rank's end of its answer socket. In a child that the user's code forks, it is closed and mute."""

    def __init__(self, wire: Wire[Answer]) -> None:
        self._wire = wire
        self._pid = os.getpid()
        self._spoken = False
        os.register_at_fork(after_in_child=wire.close)

    @property
    def ours(self) -> bool:
        """Whether this process is the rank, and not a child that it forked."""
        return os.getpid() == self._pid

    def say(
        self,
        kind: Literal["value", "exception", "unpicklable"],
        text: str = "",
        *,
        symptom: bool = False,
        payload: Sequence[Buffer] | None = None,
    ) -> None:
        """Give the answer, if it has not been given. An agent that is gone is not told.

        Raises:
            OSError: there is no memory for the payload; nothing has been said.
        """
        if self._spoken or not self.ours:
            return
        fds = [] if payload is None else [write_memfd(payload, "answer")]
        self._spoken = True
        answer = Answer(kind=kind, at=time.monotonic(), text=shorten(text), symptom=symptom)
        with suppress(BrokenPipeError, ConnectionResetError):
            self._wire.send(answer, fds)
        for fd in fds:
            os.close(fd)


def shorten(text: str) -> str:
    """The text, without its middle where it is too long, and in characters that UTF-8 has."""
    if len(text) > _LONGEST_TEXT:
        half = _LONGEST_TEXT // 2
        left_out = len(text) - 2 * half
        text = f"{text[:half]}\n... {left_out} characters left out ...\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()
