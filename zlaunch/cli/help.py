"""Level 6: the help, drawn from the option table: grouped, as wide as the terminal, in colour if it can."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TextIO

from .options import GROUPS, Option

_USAGE = "zlaunch run [OPTIONS] [--] COMMAND [ARGS...]"

_RUN = (
    "Start COMMAND on every rank of this machine, of other hosts over ssh, or of nodes of Slurm's, and keep watch "
    "over it. COMMAND is a .py file, with -m a module, or any program. Options end at COMMAND; all words after it are "
    "its own. Ranks have nothing to read on stdin."
)

_EXAMPLES = (
    ("zlaunch run -n 4 train.py --lr 0.1", "four ranks, --lr is train.py's"),
    ("zlaunch run -n gpu -m mypackage.train", "a module, one rank per GPU"),
    ("zlaunch run --hosts a,b -n 8 train.py", "eight on each of two hosts, over ssh"),
    ("zlaunch run -N 4 -n 8 -q debug train.py", "on four nodes of Slurm's"),
    ("zlaunch run --bg -N 4 -n 8 train.py", "as a batch job"),
    ("zlaunch run -n 2 --dry-run ./a.out", "what would run"),
)

_STATUS = (
    "The exit status is that of the rank that failed first (128+N for signal N); 2 for a wrong command line, "
    "124 after the time limit, 125 where zlaunch itself failed, 130 after Ctrl-C."
)

_COMMANDS = (
    ("run", "start a script, module or program on every rank"),
    ("ps", "your runs and batch jobs, and where they stand (-a, --json)"),
    ("attach", "watch a run that was started elsewhere (--view, --ranks)"),
    ("logs", "what a run or a batch job has printed, and goes on to (--rank R, -f)"),
    ("stop", "end a run or a batch job, its ranks first"),
    ("info", "what this machine is: cores, memory, GPUs, scheduler, versions (--json)"),
    ("completion", 'print the completion of bash or zsh: eval "$(zlaunch completion bash)"'),
)


class Paint:
    """Words in colour, or as they are where the stream is no terminal or the user wants none (NO_COLOR)."""

    def __init__(self, stream: TextIO) -> None:
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.on = stream.isatty() and not plain

    def heading(self, text: str) -> str:
        """Bold."""
        return f"\x1b[1m{text}\x1b[0m" if self.on else text

    def name(self, text: str) -> str:
        """What is typed as it stands."""
        return f"\x1b[36m{text}\x1b[0m" if self.on else text

    def error(self, text: str) -> str:
        """Red."""
        return f"\x1b[31m{text}\x1b[0m" if self.on else text


def overview(paint: Paint) -> str:
    """What ``zlaunch`` and ``zlaunch --help`` print."""
    lines = [paint.heading("zlaunch") + " starts distributed PyTorch and keeps watch over it.", ""]
    lines += [f"{paint.heading('usage:')} {_USAGE}", ""]
    lines += [paint.heading("commands")]
    lines += [f"  {paint.name(name.ljust(10))}  {says}" for name, says in _COMMANDS]
    lines += ["", f"zlaunch run --help lists the options; {paint.name('--version')} prints the version."]
    return "\n".join(lines) + "\n"


def run_help(paint: Paint, width: int | None = None) -> str:
    """What ``zlaunch run --help`` prints, at most ``width`` columns wide (default: the terminal's)."""
    columns = min(width or terminal_width(), 110)
    lines = [f"{paint.heading('usage:')} {_USAGE}", "", *textwrap.wrap(_RUN, columns), ""]
    for title, options in GROUPS:
        lines.append(paint.heading(title))
        for option in options:
            lines += _entry(option, paint, columns)
        lines.append("")
    lines.append(paint.heading("examples"))
    room = max(len(command) for command, _ in _EXAMPLES)
    lines += [f"  {paint.name(command.ljust(room))}  {says}" for command, says in _EXAMPLES]
    lines += ["", *textwrap.wrap(_STATUS, columns)]
    return "\n".join(lines) + "\n"


def command_help(usage: str, says: str, options: Sequence[Option], paint: Paint) -> str:
    """What ``zlaunch COMMAND --help`` prints for a command of few options."""
    columns = min(terminal_width(), 110)
    lines = [f"{paint.heading('usage:')} {usage}", "", *textwrap.wrap(says, columns - 1), ""]
    for option in options:
        lines += _entry(option, paint, columns - 1, indent=24)
    return "\n".join(lines) + "\n"


def _entry(option: Option, paint: Paint, columns: int, indent: int = 32) -> Iterator[str]:
    names = ", ".join(option.names[:2])
    left = f"{names} {option.metavar}".rstrip()
    says = option.help
    if len(option.names) > 2:
        says += f" (also {', '.join(option.names[2:])})"
    head = f"  {paint.name(names)}{left[len(names) :]}"
    text = textwrap.wrap(says, max(columns - indent, 30), break_on_hyphens=False)
    if len(left) + 4 <= indent:
        yield head + " " * (indent - len(left) - 2) + text.pop(0)
    else:
        yield head
    for line in text:
        yield " " * indent + line


def terminal_width() -> int:
    """Columns of the terminal of stdout; 80 where it is none. (shutil knows too, and imports for 8 ms.)"""
    if os.environ.get("COLUMNS", "").isdigit():
        return max(int(os.environ["COLUMNS"]), 40)
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, 40)
    except (OSError, ValueError, AttributeError):
        return 80
