"""Level 2, pure: what the ``*_VISIBLE_DEVICES`` variables leave of a machine's GPUs; the words for what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from ..model import Gpu

Folder: TypeAlias = str | os.PathLike[str]

_LONGEST = 300
"""Characters of what a driver's library says."""


class Sight(NamedTuple):
    """What is seen of GPUs."""

    gpus: tuple[Gpu, ...] = ()
    trouble: str = ""
    """Why there are fewer than the machine, or the environment, says; it begins with whose GPUs are meant."""


def select(gpus: Sequence[Gpu], wanted: str | None) -> tuple[Gpu, ...]:
    """What a ``*_VISIBLE_DEVICES`` value leaves of ``gpus``, in its order; ``None`` (unset) leaves all.

    A word is an index into ``gpus`` or the beginning of a uuid that only one of them has. As in the CUDA
    driver, the first word that names none ends the list, and a device named twice leaves nothing of it. ROCm writes
    ``GPU-`` before an AMD GPU's serial number, which is our uuid of it.
    """
    if wanted is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for word in wanted.split(","):
        found = _named(gpus, word.strip())
        if found is None:
            break
        if found in chosen:
            return ()
        chosen.append(found)
    return tuple(chosen)


def _named(gpus: Sequence[Gpu], word: str) -> Gpu | None:
    if word.isdecimal():
        return gpus[int(word)] if int(word) < len(gpus) else None
    alike = [gpu for gpu in gpus if word and _spelled(gpu).startswith(word.lower())]
    return alike[0] if len(alike) == 1 else None


def _spelled(gpu: Gpu) -> str:
    return (f"GPU-{gpu.uuid}" if is_amds(gpu) else gpu.uuid).lower()


def is_amds(gpu: Gpu) -> bool:
    """Whether it is AMD's: NVML's uuids begin with what they are of."""
    return bool(gpu.uuid) and not gpu.uuid.startswith(("GPU-", "MIG-"))


def unnamed(gpus: Sequence[Gpu], name: str, env: Mapping[str, str]) -> str:
    """The words for a device that a variable names and nobody has; ``-1``, ``none`` and the like hide all."""
    wanted = env.get(name)
    words = [word.strip() for word in (wanted or "").split(",")]
    for word in words:
        if _named(gpus, word) is None:
            if not word.isdecimal() and not word.upper().startswith(("GPU-", "MIG-")):
                return ""
            count = len(gpus)
            has = {0: "there is none", 1: "there is only GPU 0"}.get(count, f"there are GPUs 0 to {count - 1}")
            return f"{name}={wanted} names {word}, and {has}"
    return ""


def broken(whose: str, package: str, error: Exception) -> str:
    """A driver, or its library, that does not even begin."""
    if isinstance(error, ModuleNotFoundError):
        return f"{whose}: there is a GPU, and the Python package that asks for it, {package}, is not installed"
    return f"{whose}: there is a GPU, and its driver cannot be asked: {words_of(error)}"


def words_of(error: Exception) -> str:
    """What a driver's library says, on one line, and not too much of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
