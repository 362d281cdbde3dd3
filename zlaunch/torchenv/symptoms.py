"""Level 3, pure: which errors only say that a peer is gone?

When a rank dies, the others find their sockets closed, and each fails with an error about that. Those errors are true
and of no use: the cause is elsewhere. The words below are those of torch 2.13 and of NCCL's documentation, gloo's and
TCPStore's seen by killing a peer in the middle of an all-reduce, a barrier and a rendezvous.
"""

from __future__ import annotations

from collections.abc import Sequence

_TYPES = frozenset({"DistNetworkError", "DistStoreError"})
"""What torch.distributed raises about sockets and the store; a port that is taken is told apart by its words."""
_OWN_FAULT = ("address already in use", "eaddrinuse", "errno: 98", "failed to listen", "permission denied")
_FROM_TORCH = frozenset({"RuntimeError", "DistBackendError", "DistError", "BrokenPipeError", "ConnectionResetError"})
_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "connection timed out",
    "broken pipe",
    "socket closed",
    "no route to host",
    "timed out waiting",  # gloo: Timed out waiting 1800000ms for recv operation to complete
    "connectfullmesh failed",  # gloo: a peer went while the group was made
    "application timeout caused pair closure",
    "remote process exited",  # NCCL: ncclRemoteError
    "ncclremoteerror",
    "nccl communicator was aborted",
    "watchdog caught collective operation timeout",
    "collective operation timeout",
    "recvvalue failed",
    "sendbytes failed",
    "recvbytes failed",
    "failed to recv, got 0 bytes",
    "wait timeout after",  # TCPStore
    "store.get",
    "unable to perform store",
)


def is_symptom(exc_type_names: Sequence[str], text: str) -> bool:
    """Whether an error only says that a peer is gone, or does not answer.

    Args:
        exc_type_names: the names of the exception's class and of its bases.
        text: ``str()`` of the exception, without its traceback.
    """
    names = set(exc_type_names)
    words = text.lower()
    if names & _TYPES:
        return not any(word in words for word in _OWN_FAULT)
    return bool(names & _FROM_TORCH) and any(word in words for word in _WORDS)
