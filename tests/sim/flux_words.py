"""Flux's ways of writing: job ids, durations, lists of hosts, ``{{tags}}``, signals, and the options of its commands.

After flux-core 0.88 as observed; where that was not seen, after its manual pages: which of ``-c -g -n`` mean slots (in
``batch`` and ``alloc``, which know no ``--tasks-per-node``), ``--wrap``, ``--bg``, options of ``flux exec`` and
``flux job attach``. Everything else that the real commands may know is refused.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence

from .grammar import Grammar, Refusal, natural, one_of

_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
SCHEMES = ("afterok", "afternotok", "afterany", "afterstart")


def ascii_only(environ: Mapping[str, str]) -> bool:
    """Whether job ids are written with ``f`` where this is the environment."""
    if environ.get("FLUX_F58_FORCE_ASCII"):
        return True
    locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or "C"
    return not re.search("utf-?8", locale, re.IGNORECASE)


def f58(number: int, plain: bool = False) -> str:
    text = ""
    while number or not text:
        number, digit = divmod(number, 58)
        text = _DIGITS[digit] + text
    return ("f" if plain else "ƒ") + text


def job_number(text: str) -> int:
    """The id in any of its forms. Raises ``ValueError``."""
    if re.fullmatch("0x[0-9a-f]+", text):
        return int(text, 16)
    if text.isdecimal():
        return int(text)
    if not re.fullmatch(f"[fƒ][{_DIGITS}]+", text):
        raise ValueError("not a job id")
    number = 0
    for digit in text[1:]:
        number = number * 58 + _DIGITS.index(digit)
    return number


def duration(text: str, unit: float = 1.0) -> float:
    """Seconds; a number without a letter counts ``unit`` seconds. Raises ``ValueError``."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|d)?", text)
    if not found:
        raise ValueError("not a duration")
    return float(found[1]) * {None: unit, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def signal_number(text: str) -> int:
    """``15``, ``TERM`` or ``SIGTERM``. Raises ``ValueError``."""
    try:
        return int(text) if text.isdecimal() else signal.Signals[f"SIG{text.upper().removeprefix('SIG')}"].value
    except KeyError:
        raise ValueError("not a signal") from None


def compact(hosts: Iterable[str]) -> str:
    """``node[1-3]``, in the order given."""
    parts: list[tuple[str, list[int]]] = []
    for host in hosts:
        stem, number = re.fullmatch(r"(.*?)(\d*)", host).groups()  # type: ignore[union-attr]
        if number and parts and parts[-1][0] == stem and parts[-1][1]:
            parts[-1][1].append(int(number))
        else:
            parts.append((stem, [int(number)] if number else []))
    return ",".join(stem + _ranges(numbers) for stem, numbers in parts)


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return texts[0] if len(numbers) == 1 else f"[{','.join(texts)}]" if numbers else ""


def expand(text: str) -> list[str]:
    """The hosts of ``node[1-2,5],other``."""
    hosts = []
    for stem, numbers in re.findall(r"([^,\[\]]+)(?:\[([\d,-]+)\])?", text):
        for part in numbers.split(",") if numbers else ():
            first, _, last = part.partition("-")
            hosts += [f"{stem}{number}" for number in range(int(first), int(last or first) + 1)]
        if not numbers:
            hosts.append(stem)
    return hosts


def idset(text: str, size: int) -> list[int]:
    """``all``, or ``0,2-3``. Raises ``ValueError``."""
    if text == "all":
        return list(range(size))
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise ValueError("not a set of ranks")
    return [int(name[1:]) for name in expand(f"r[{text}]")]


def fill(text: str, tags: Mapping[str, object]) -> str:
    """Replace ``{{tags}}``; those that nobody knows stay."""
    return re.sub(r"\{\{([\w.]+)\}\}", lambda found: str(tags.get(found[1], found[0])), text)


def filtered(environ: Mapping[str, str], rules: Sequence[str]) -> dict[str, str]:
    """What ``--env`` makes of an environment: ``-PATTERN`` removes, ``NAME=VALUE`` adds."""
    import fnmatch

    chosen = dict(environ)
    for rule in rules:
        if rule.startswith("-"):
            chosen = {key: value for key, value in chosen.items() if not fnmatch.fnmatchcase(key, rule[1:])}
        elif "=" in rule:
            key, _, value = rule.partition("=")
            chosen[key] = re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: environ.get(m[1] or m[2], ""), value)
        elif rule in environ:
            chosen[rule] = environ[rule]
    return chosen


def _warning(text: str) -> tuple[int, float]:
    """``USR1@60s``: the signal, and how long before the end."""
    name, at, before = text.partition("@")
    return signal_number(name or "USR1"), duration(before) if at else 60.0


def _dependency(text: str) -> tuple[str, int]:
    scheme, _, job = text.partition(":")
    if scheme not in SCHEMES:
        raise ValueError(f"dependency scheme {scheme!r} is not supported")
    return scheme, job_number(job)


def _constraint(text: str) -> tuple[bool, list[str]]:
    found = re.fullmatch(r"(-?)host:(\S+)", text)
    if not found:
        raise ValueError("not a constraint")
    return not found[1], expand(found[2])


def late(kind: Callable[[str], object]) -> Callable[[str], object]:
    """A value that the real command looks at after all options: status 1."""

    def check(text: str) -> object:
        try:
            return kind(text)
        except ValueError as error:
            raise Refusal(f"flux: ERROR: {text}: {error}", 1) from None

    return check


KINDS = {
    "minutes": late(lambda text: duration(text, 60.0)),
    "dependency": late(_dependency),
    "constraint": late(_constraint),
    "warning": late(_warning),
    "id": late(job_number),
    "seconds": duration,
    "number": late(natural),
    "signal": late(signal_number),
    "form": one_of("dec", "hex", "f58", "f58plain"),
}

_COMMON = """
    --output=str
    --error=str
    --input=str
    -t --time-limit=minutes
    --job-name=str
    -q --queue=str
    -B --bank=str
    --dependency=dependency *
    -x --exclusive
    --cwd=str
    --env=str *
    --setattr=str *
    -l --label-io
    --requires=constraint *
    --signal=warning
    --dry-run
    -u --unbuffered
    -o --setopt=str *
"""
_TASKS = """
    -N --nodes=number
    -n --ntasks=number
    -c --cores-per-task=number
    -g --gpus-per-task=number
    --tasks-per-node=number
    --gpus-per-node=number
    --taskmap=str
"""
_SLOTS = """
    -N --nodes=int
    -n --nslots=int
    -c --cores-per-slot=int
    -g --gpus-per-slot=int
"""


def _grammar(command: str, rows: str, *, mixed: bool = False, status: int = 2) -> Grammar:
    return Grammar(f"flux-{command}", rows, kinds=KINDS, mixed=mixed, status=status)


GRAMMARS = {
    "run": _grammar("run", _COMMON + _TASKS),
    "submit": _grammar("submit", _COMMON + _TASKS),
    "batch": _grammar("batch", _COMMON + _SLOTS + "--wrap"),
    "alloc": _grammar("alloc", _COMMON + _SLOTS + "--bg\n-v --verbose"),
    "exec": _grammar("exec", "-r --rank=str\n-x --exclude=str\n-n --noinput\n-l --label-io\n-d --dir=str", status=1),
    "cancel": _grammar("cancel", "", mixed=True),
    "jobs": _grammar("jobs", "-a\n-n --no-header\n-o --format=str\n--json", mixed=True),
    "hostlist": _grammar("hostlist", "-e --expand", mixed=True),
    "resource list": _grammar("resource", "-n --no-header\n-o --format=str"),
    "resource info": _grammar("resource", ""),
    "getattr": _grammar("getattr", "", status=1),
    "proxy": _grammar("proxy", "", status=1),
    "job attach": _grammar("job", "--read-only\n-l --label-io\n-u --unbuffered", status=1, mixed=True),
    "job status": _grammar("job", "", status=1, mixed=True),
    "job kill": _grammar("job", "-s --signal=signal", status=1, mixed=True),
    "job wait-event": _grammar("job", "-t --timeout=seconds", status=1, mixed=True),
    "job timeleft": _grammar("job", "", status=1, mixed=True),
    "job id": _grammar("job", "--to=form", status=1, mixed=True),
}


def core_of_machine(core: int) -> int:
    """A core that there is, for one of a simulated host, which may have more than this machine."""
    return core % (os.cpu_count() or 1)
