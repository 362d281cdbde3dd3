"""Level 2, pure: many frames in one run of bytes, so that they can lie in one memfd and be mapped.

Layout, little-endian: magic, number of frames, the size of each frame; then the frames. The header and every frame
begin at a multiple of 64 bytes (a cache line, and what vector code wants), counted from the first byte: a mapping is
page-aligned, so an array or tensor can use its frame where it lies. What is in a frame is nobody's business here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pickle import PickleBuffer

Buffer: TypeAlias = "bytes | bytearray | memoryview | PickleBuffer"

MAGIC = b"zlaunch1"
ALIGNMENT = 64
_HEAD = struct.Struct("<8sQ")


def pack(frames: Sequence[Buffer]) -> list[Buffer]:
    """The buffers to be written one after the other: header, frames and padding. No frame is copied."""
    sizes = [_size(frame) for frame in frames]
    header = _HEAD.pack(MAGIC, len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    parts: list[Buffer] = [header]
    gap = _padding(len(header))
    for frame, size in zip(frames, sizes, strict=True):
        if gap:
            parts.append(bytes(gap))
        if size:
            parts.append(frame)
        gap = _padding(size)
    return parts


def packed_size(frames: Sequence[Buffer]) -> int:
    """Bytes that ``pack`` of these frames fills."""
    return sum(_size(part) for part in pack(frames))


def unpack(view: memoryview) -> list[memoryview]:
    """The frames of an envelope, as slices of ``view``.

    Raises:
        ValueError: it is not an envelope, or it has been cut.
    """
    view = view.cast("B")
    if len(view) < _HEAD.size:
        raise ValueError(f"an envelope of {len(view)} bytes is shorter than its header")
    magic, count = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise ValueError("not an envelope: it does not begin with the magic word")
    start = _HEAD.size + 8 * count
    if start > len(view):
        raise ValueError(f"an envelope of {len(view)} bytes cannot hold {count} frames")
    sizes = struct.unpack_from(f"<{count}Q", view, _HEAD.size)
    frames: list[memoryview] = []
    for number, size in enumerate(sizes):
        start += _padding(start) if size or number + 1 < count else 0
        if start + size > len(view):
            raise ValueError(f"frame {number} of {size} bytes goes beyond the end of its envelope")
        frames.append(view[start : start + size])
        start += size
    return frames


def _padding(size: int) -> int:
    return -size % ALIGNMENT


def _size(buffer: Buffer) -> int:
    return memoryview(buffer).nbytes
