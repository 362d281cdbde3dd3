"""Level 2, pure: the parameters by which a system is described, as words of ``-p`` or as values of a TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from .nearest import nearest

Value: TypeAlias = int | float | str


class DescriptionError(ValueError):
    """A system, or a size on it, that cannot be meant.

    Attributes:
        hint: what may help; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(f"{message}; {hint}" if hint else message)


_MOST = 10**12
"""No number here is larger, and a mistaken one must not overflow anything."""


class Parameter(NamedTuple):
    """What one parameter takes."""

    kind: type[int] | type[float] | type[str]
    least: float
    """The least number; of a number of GB, it is more than that."""
    words: str


PARAMETERS: dict[str, Parameter] = {
    "cores_per_node": Parameter(int, 1, "a whole number, 1 at least"),
    "gpus_per_node": Parameter(int, 0, "a whole number, 0 at least"),
    "gpu_arch": Parameter(str, 0, "a name such as sm_90 or gfx942"),
    "mem_per_gpu": Parameter(float, 0, "a number of GB above 0"),
    "numa_domains": Parameter(int, 1, "a whole number, 1 at least"),
    "scheduler": Parameter(str, 0, "slurm, flux, lsf, pbs or none"),
}

SCHEDULERS: dict[str, str] = {
    "none": "none",
    "local": "none",
    "localscheduler": "none",
    "slurm": "slurm",
    "slurmscheduler": "slurm",
    "flux": "flux",
    "fluxscheduler": "flux",
    "lsf": "lsf",
    "lsfscheduler": "lsf",
    "pbs": "pbs",
}
"""All spellings of a scheduler, in lower case, and the name that it has here."""


def parse_params(words: Sequence[str]) -> dict[str, Value]:
    """``["gpus_per_node=8", "mem_per_gpu=80"]``, the words of ``-p``, as values; of a key given twice the last counts.

    Raises:
        DescriptionError: for a key that there is not, with the nearest one, or a value that the key does not take.
    """
    found: dict[str, Value] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise DescriptionError(f"-p {word}: expected KEY=VALUE", _no_such_key(key, PARAMETERS))
        if key not in PARAMETERS:
            raise DescriptionError(f"-p {word}: there is no {key or 'empty'} parameter", _no_such_key(key, PARAMETERS))
        try:
            found[key] = check(key, _number(text) if PARAMETERS[key].kind is not str else text)
        except ValueError as error:
            raise DescriptionError(f"-p {word}: {error}") from None
    return found


def check(key: str, value: object) -> Value:
    """``value`` as the parameter ``key`` keeps it.

    Raises:
        ValueError: ``expected a whole number, 1 at least, not 'many'``.
    """
    kind, least, words = PARAMETERS[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)  # TOML's true is not 1
    wrong = ValueError(f"expected {words}, not {value!r}")
    if kind is str:
        if not isinstance(value, str) or not value.strip():
            raise wrong
        value = value.strip()
        if key != "scheduler":
            return value
        if value.lower() not in SCHEDULERS:
            raise ValueError(f"{wrong}; {hint}" if (hint := nearest(value.lower(), list(SCHEDULERS))) else str(wrong))
        return SCHEDULERS[value.lower()]
    if not number or not isinstance(value, int | float) or not 0 <= value < _MOST:  # not-a-number is not, either
        raise wrong
    if kind is int:
        if value != int(value) or value < least:
            raise wrong
        return int(value)
    if value <= least:
        raise wrong
    return float(value)


def _number(text: str) -> object:
    """The number that is written there; else the text itself, for the complaint."""
    try:
        return int(text) if text.isascii() and "_" not in text else text
    except ValueError:
        pass
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text


def _no_such_key(key: str, known: Mapping[str, object]) -> str:
    return nearest(key.lower().replace("-", "_"), list(known)) or f"there are {', '.join(known)}"
