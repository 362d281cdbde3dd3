"""Level 3: what it takes to watch a run, as a value. No sockets here: who only lists runs loads this too."""

from __future__ import annotations

from msgspec import Struct


class Ticket(Struct, frozen=True):
    """All that it takes to watch one run, and a secret: it lies in files of mode 0600 only."""

    endpoints: tuple[str, ...]
    """Where its gallery listens, this machine's own loopback first."""
    server_key: str
    public_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"<Ticket to {', '.join(self.endpoints)}>"
