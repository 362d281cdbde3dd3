"""The words of LSF's own commands: ``bsub`` and its directives, ``bjobs``, ``bkill``, ``blaunch``. Pure functions.

A row of a table is an option as IBM Spectrum LSF's command reference writes it; an option and its value are two words.
What a launcher has no use for, among it all that has to do with arrays of jobs, is refused as if LSF had never heard of
it, and so is what LSF would take, but not as was meant: an option given twice, a directive that is misspelt or comes
after a command. The messages about queues, processors and jobs, and the status 255, are those that LSF 10 is known for;
other messages are ours.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .grammar import Refusal
from .lsf_depend import DependencyError, Expression, parse

FLAG = None
BSUB = {
    "-nnodes": "NODES",
    "-n": "SLOTS",
    "-R": "span[ptile=SLOTS]",
    "-W": "[HOURS:]MINUTES",
    "-q": "QUEUE",
    "-J": "NAME",
    "-P": "PROJECT",
    "-G": "USER_GROUP",
    "-U": "RESERVATION",
    "-o": "FILE",
    "-oo": "FILE",
    "-e": "FILE",
    "-eo": "FILE",
    "-cwd": "FOLDER",
    "-env": "none | all,NAME=VALUE | NAME=VALUE",
    "-gpu": "num=N:mode=shared|exclusive_process:j_exclusive=yes|no",
    "-w": "CONDITIONS",
    "-ti": FLAG,
    "-x": FLAG,
    "-I": FLAG,
    "-Is": FLAG,
    "-K": FLAG,
}
BJOBS = {"-noheader": FLAG, "-json": FLAG, "-o": "FIELDS"}
BKILL = {"-s": "SIGNAL"}
BLAUNCH = {"-n": FLAG, "-z": "HOSTS", "-u": "FILE"}

_INSTEAD = (("-I", "-Is", "-K"), ("-o", "-oo"), ("-e", "-eo"))
_ONE_OF = (*_INSTEAD, ("-z", "-u"))
_DIRECTIVE = re.compile(r"#BSUB\s+(?P<words>\S.*)")
_LOOKS_LIKE_ONE = re.compile(r"\s*#\s*BSUB", re.IGNORECASE)
_ENV_LIMIT = 4094
_NAME = re.compile(r"""[^,~='"\s]+""")


STATUS = 255
"""Of a command that is refused."""


def no_job(text: str) -> Refusal:
    return Refusal(f"{text}. Job not submitted.", STATUS)


def read(command: str, table: Mapping[str, str | None], words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options (a flag's value is ``""``) and the words after them."""
    options: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in table:
            raise _wrong(command, table, f"illegal option -- {name}")
        if name in options:
            raise _wrong(command, table, f"{name} is given twice")
        if table[name] is FLAG:
            options[name] = ""
        elif not rest or not rest[0]:
            raise _wrong(command, table, f"option requires an argument -- {name}")
        else:
            options[name] = rest.pop(0)
    for group in _ONE_OF:
        if len(given := [name for name in group if name in options]) > 1:
            raise _wrong(command, table, f"{' and '.join(given)} exclude each other")
    return options, rest


def _wrong(command: str, table: Mapping[str, str | None], text: str) -> Refusal:
    usage = " ".join(f"[{name} {value}]" if value else f"[{name}]" for name, value in table.items())
    return Refusal(f"{command}: {text}\nUsage: {command} {usage}", STATUS)


def directives(script: str) -> list[str]:
    """The words of a script's ``#BSUB`` lines, which nothing expands.

    Raises:
        Refusal: a line is none, but looks like one; or LSF would take it, though a command has come before.
    """
    words: list[str] = []
    begun = False
    for line in script.splitlines():
        if match := _DIRECTIVE.fullmatch(line):
            if begun:
                raise no_job(f"{line}: a directive after a command")
            try:
                words += shlex.split(match["words"])
            except ValueError as error:
                raise no_job(f"{line}: {error}") from None
        elif _LOOKS_LIKE_ONE.match(line):
            raise no_job(f"{line}: no directive, though it looks like one")
        elif line.strip() and not line.lstrip().startswith("#"):
            begun = True
    return words


@dataclass(frozen=True)
class Output:
    path: str
    overwrite: bool


@dataclass(frozen=True)
class Request:
    """A job as ``bsub`` was asked for it."""

    options: Mapping[str, str] = field(repr=False)
    slots: int
    per_host: int | None
    nodes: int | None
    gpus: int
    minutes: int | None
    out: Output | None
    err: Output | None
    depends: Expression | None
    script: str

    @property
    def mode(self) -> str:
        """``batch``, ``wait`` (-K), ``plain`` (-I) or ``terminal`` (-Is)."""
        modes = {"-K": "wait", "-I": "plain", "-Is": "terminal"}
        return next((mode for name, mode in modes.items() if name in self.options), "batch")


def bsub_table(coral: bool) -> dict[str, str | None]:
    """The options of ``bsub``: where whole nodes are asked for there is ``-nnodes``, elsewhere ``-n``."""
    return {name: value for name, value in BSUB.items() if name != ("-n" if coral else "-nnodes")}


def command_line(words: Sequence[str], *, coral: bool, quoted: bool) -> tuple[dict[str, str], str]:
    """Options, and the command, ``""`` where the job's script comes on stdin.

    Args:
        words: those after ``bsub``.
        coral: see ``bsub_table``.
        quoted: words of a command after the first are quoted for the shell, not just joined.

    Raises:
        Refusal: they are none.
    """
    options, command = read("bsub", bsub_table(coral), words)
    return options, " ".join([*command[:1], *map(shlex.quote, command[1:])] if quoted else command)


def with_directives(options: Mapping[str, str], script: str, *, coral: bool) -> dict[str, str]:
    """The script's options besides these, which take the place of the same and of those that they exclude."""
    given, rest = read("bsub", bsub_table(coral), directives(script))
    if rest:
        raise no_job(f"{rest[0]}: a directive has options only")
    for name in options:
        for other in (name, *(other for group in _INSTEAD if name in group for other in group)):
            given.pop(other, None)
    return given | dict(options)


def request(options: Mapping[str, str], script: str) -> Request:
    """The job of these options. Raises ``Refusal``."""
    if not script.strip():
        raise no_job("No command is specified")
    if "-nnodes" in options and "-R" in options:
        raise no_job("-nnodes and -R exclude each other")
    if "-ti" in options and "-w" not in options:
        raise no_job("-ti goes with -w")
    if any(name in options for name in ("-I", "-Is")) and any(name in options for name in ("-o", "-oo", "-e", "-eo")):
        raise no_job("the simulator has no output file for an interactive job")
    if set(name := options.get("-J", "")) & set("[]"):
        raise no_job(f"{name}: Bad job name; the simulator has no arrays")
    if any("%I" in options.get(name, "") for name in ("-o", "-oo", "-e", "-eo")):
        raise no_job("%I: the simulator has no arrays")
    return Request(
        options,
        count(options.get("-n", "1"), "-n"),
        _per_host(options["-R"]) if "-R" in options else None,
        count(options["-nnodes"], "-nnodes") if "-nnodes" in options else None,
        _gpus(options["-gpu"]) if "-gpu" in options else 0,
        run_limit(options["-W"]) if "-W" in options else None,
        _output(options, "-o"),
        _output(options, "-e"),
        _depends(options["-w"]) if "-w" in options else None,
        script,
    )


def count(text: str, name: str) -> int:
    if not re.fullmatch("[1-9][0-9]*", text):
        raise no_job(f"{name} {text}: Bad argument")
    return int(text)


def run_limit(text: str) -> int:
    """Minutes of ``-W``: ``90``, ``1:30``, ``0:90``."""
    match = re.fullmatch("(?:([0-9]+):)?([0-9]+)", text)
    minutes = int(match[1] or 0) * 60 + int(match[2]) if match else 0
    if not minutes:
        raise no_job(f"{text}: Bad RUNLIMIT specification")
    return minutes


def _per_host(text: str) -> int:
    match = re.fullmatch(r"span\[ptile=([1-9][0-9]*)\]", text)
    if match is None:
        raise no_job(f'Error near "{text}" : the simulator knows span[ptile=N] only')
    return int(match[1])


def _gpus(text: str) -> int:
    known = {"num": "[1-9][0-9]*", "mode": "shared|exclusive_process", "j_exclusive": "yes|no"}
    given: dict[str, str] = {}
    for part in text.split(":"):
        name, _, value = part.partition("=")
        if name not in known or name in given or not re.fullmatch(known[name], value):
            raise no_job(f'Error in GPU requirement section near "{part}"')
        given[name] = value
    return int(given.get("num", "1"))


def _output(options: Mapping[str, str], name: str) -> Output | None:
    overwrite = f"{name}o" in options
    return Output(options[f"{name}o"], True) if overwrite else Output(options[name], False) if name in options else None


def _depends(text: str) -> Expression:
    try:
        return parse(text)
    except DependencyError:
        raise no_job(f"{text}: Dependency condition syntax error") from None


def environment(text: str, own: Mapping[str, str]) -> dict[str, str]:
    """The variables that ``-env`` lets through, and those that it sets."""
    if len(text) > _ENV_LIMIT:
        raise no_job(f"-env: more than {_ENV_LIMIT} characters")
    first, *rest = _split(text)
    if first == "none":
        if rest:
            raise no_job("-env: none stands alone")
        return {}
    chosen = dict(own) if first == "all" else {}
    for item in rest if first == "all" else [first, *rest]:
        name, equals, value = item.partition("=")
        bare = name.removeprefix("~") if first == "all" and not equals else name
        if not _NAME.fullmatch(bare) or bare in ("all", "none"):
            raise no_job(f"-env: {item}: Bad variable name")
        if bare != name:
            chosen.pop(bare, None)
        elif equals:
            chosen[name] = value[1:-1] if len(value) > 1 and value[0] == value[-1] == "'" else value
        elif name in own:
            chosen[name] = own[name]
        else:
            raise no_job(f"-env: {name} is not set")
    return chosen


def _split(text: str) -> list[str]:
    """At commas outside of single quotes."""
    items, quoted = [""], False
    for character in text:
        quoted ^= character == "'"
        if character == "," and not quoted:
            items.append("")
        else:
            items[-1] += character
    if quoted:
        raise no_job("-env: ' without another")
    return [item.strip() for item in items]


def signal_number(text: str) -> int:
    """``TERM``, ``SIGTERM`` or ``15``."""
    known = signal.Signals.__members__
    name = text if text.startswith("SIG") else f"SIG{text}"
    if name in known:
        return known[name]
    if text.isdigit() and int(text) in known.values():
        return int(text)
    raise Refusal(f"bkill: {text}: Illegal signal value", STATUS)
