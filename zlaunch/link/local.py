"""Level 3: messages and descriptors between agent, fork template and rank, on SEQPACKET socketpairs, without zmq.

A SEQPACKET socket keeps the bounds of messages and tells when the other end is gone. Its ends are passed on by
inheritance only, so that there is nothing to guard; a header that cannot be decoded is an error all the same.
"""

from __future__ import annotations

import socket
from array import array
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from ..protocol.local import Answer, FromTemplate, ToTemplate

LARGEST = 192 * 1024
"""Bytes of one message: below the default SO_SNDBUF (212,992 with the kernel's own share)."""
_RIGHTS_SIZE = socket.CMSG_LEN(8 * array("i").itemsize)
"""Room for the descriptors of one message."""
_SEND, _RECEIVE = int(socket.MSG_NOSIGNAL), int(socket.MSG_CMSG_CLOEXEC)
_SEND_NOW, _RECEIVE_NOW = (flags | int(socket.MSG_DONTWAIT) for flags in (_SEND, _RECEIVE))

_T = TypeVar("_T")


class Wire(Generic[_T]):
    """One end of a socketpair; ``_T`` is what is said to it. It owns the socket, and is used from one thread."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[_T]) -> None:
        self._socket = sock
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, message: Struct, fds: Sequence[int] = (), *, wait: bool = True) -> None:
        """Send a message, and descriptors with it. The descriptors stay open here.

        Raises:
            BlockingIOError: with ``wait`` false, the socket is full.
            BrokenPipeError: the other end is closed.
            ValueError: the message is larger than ``LARGEST``.
        """
        header = self._encoder.encode(message)
        if len(header) > LARGEST:
            raise ValueError(f"a message of {len(header)} bytes, where {LARGEST} is the most")
        # Not socket.send_fds and recv_fds: Python 3.11's take flags and forget them.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self._socket.sendmsg([header], rights, _SEND if wait else _SEND_NOW)

    def receive(self, *, wait: bool = True) -> tuple[_T, list[int]] | None:
        """The next message and its descriptors, which are now the caller's to close; ``None`` at the end.

        Raises:
            BlockingIOError: with ``wait`` false, there is none.
            msgspec.ValidationError, msgspec.DecodeError: what came is no message.
        """
        try:
            header, rights, _, _ = self._socket.recvmsg(LARGEST, _RIGHTS_SIZE, _RECEIVE if wait else _RECEIVE_NOW)
        except ConnectionResetError:  # the other end closed with messages of ours unread
            return None
        if not header:
            return None
        fds = _descriptors(rights)
        try:
            return self._decoder.decode(header), fds
        except msgspec.DecodeError:
            for fd in fds:
                socket.close(fd)
            raise

    def fileno(self) -> int:
        """The socket's descriptor, for a poller; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()


def _descriptors(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two joined sockets; both close on exec until somebody says otherwise."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def template_end(sock: socket.socket) -> Wire[ToTemplate]:
    """The template's end of the agent's line to it."""
    return Wire(sock, msgspec.msgpack.Decoder(ToTemplate))


def agent_end(sock: socket.socket) -> Wire[FromTemplate]:
    """The agent's end of its line to a template."""
    return Wire(sock, msgspec.msgpack.Decoder(FromTemplate))


def answer_end(sock: socket.socket) -> Wire[Answer]:
    """Either end of the line on which a rank gives its answer: the agent only listens, the rank only speaks."""
    return Wire(sock, msgspec.msgpack.Decoder(Answer))
