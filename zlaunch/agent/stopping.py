"""Level 4, pure: when a host's ranks that are to end get which signal, and when they are given up."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

LAST_STEPS = 1.0
"""Seconds that a rank which has given its answer may take to end by itself: its exit handlers run, and its last words
are written. Then it gets SIGTERM, as the others do at once."""

KILL_PATIENCE = 5.0
"""Seconds from SIGKILL to the moment when a rank that has not died (one that hangs in a driver) is given up."""


class Stopping(Struct):
    """The times of what comes next; ``None``: it does not come, or has been."""

    term_at: float | None = None
    kill_at: float | None = None
    give_up_at: float | None = None

    def deadline(self) -> float | None:
        """When the next of them is."""
        times = (self.term_at, self.kill_at, self.give_up_at)
        return min((t for t in times if t is not None), default=None)

    def begin(self, now: float, grace: float) -> bool:
        """SIGTERM is wanted now and SIGKILL ``grace`` seconds later; returns whether for the first time.

        Another time can only make SIGKILL come sooner.
        """
        if self.kill_at is not None:
            self.kill_at = min(now + grace, self.kill_at)
            return False
        self.term_at, self.kill_at = now + LAST_STEPS, now + grace
        return True

    def kill(self, now: float) -> None:
        """They get SIGKILL now."""
        self.term_at = self.kill_at = None
        self.give_up_at = self.give_up_at or now + KILL_PATIENCE

    def due(self, now: float) -> Literal["", "kill", "terminate", "give up"]:
        """What it is time for; it comes once."""
        if self.kill_at is not None and now >= self.kill_at:
            self.kill(now)
            return "kill"
        if self.term_at is not None and now >= self.term_at:
            self.term_at = None
            return "terminate"
        if self.give_up_at is not None and now >= self.give_up_at:
            self.give_up_at = None
            return "give up"
        return ""
