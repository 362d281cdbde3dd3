"""Level 6: scripts are written, and batch jobs submitted. What they say was decided before (``papers``)."""

from __future__ import annotations

import os
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from .._version import __version__
from ..asking import call
from ..backends import batch_script, schedulers
from ..backends.scheduler import Refused
from ..errors import LaunchError
from ..surroundings import say
from .grammar import UsageError
from .job import Job
from .papers import Papers
from .remember import remember

PATIENCE = 60.0
"""Seconds that sbatch may take."""
FAILED = 125
BASH = "/bin/bash"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What may end a line for somebody who reads a script's directives."""
SURROGATES = "surrogateescape"
"""Names need not be UTF-8."""


def batch(job: Job, papers: Papers) -> int:
    """Write the script, or submit it, or show what would be; returns the exit status.

    stdout has the job's id, or with ``--setup-only`` the script's path.
    """
    argv, stdin = _submission(job, papers)
    variables = dict(job.env) if papers.own is not None else {}
    if papers.left_aside:
        say(papers.left_aside)
    if job.dry_run:
        show(job, papers)
        if not papers.only:
            sets = "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())
            _print(f"{sets}{shlex.join(argv)}{f' <{shlex.quote(stdin)}' if stdin else ''}\n")
        return 0
    write(job, papers)
    if papers.only:
        _print(f"{papers.script}\n")
        return 0
    scheduler = schedulers.of(job.scheduler)
    try:
        # Schedulers give a job the environment that it is submitted from.
        done = call(scheduler, argv, PATIENCE, stdin=stdin, more=variables)
    except LaunchError as error:
        return _failed(str(error))
    said, number = done.stderr.strip(), scheduler.job_id(done.stdout)
    if done.returncode:
        return _failed(f"{scheduler.title} takes no such job ({argv[0]} ended with status {done.returncode}):\n{said}")
    if number is None:
        return _failed(f"{argv[0]} did not answer with a job's id: {done.stdout.strip()!r}\n{said}".rstrip())
    if said:
        say(said)
    try:
        _print(f"{number}\n")
    finally:
        remember(job, papers, number, done.stdout)
    if papers.folder is not None:
        say(f"job {number} is submitted; its script and output are in {papers.folder}")
    return 0


def show(job: Job, papers: Papers) -> None:
    """Print the script that would be written, under its name."""
    if papers.script is not None:
        _print(f"{papers.script}:\n\n{script(job, papers)}\n")


def _submission(job: Job, papers: Papers) -> tuple[tuple[str, ...], str | None]:
    """What submits the job, and the script that it reads on its stdin, if it does. Raises UsageError."""
    scheduler = schedulers.of(job.scheduler) if job.scheduler else None
    if scheduler is None:  # then a script is only written
        return (), None
    path = os.path.abspath(papers.own or papers.script or "")
    try:
        if papers.own is not None:
            words = scheduler.words(job.request, os.environ, own=True)
            argv = scheduler.submit_argv(path, words, job.argv)
        else:
            argv = scheduler.submit_argv(path)
    except Refused as refused:
        raise UsageError(refused.message, refused.hint) from None
    return argv, path if scheduler.reads_script else None


def script(job: Job, papers: Papers) -> str:
    """The text of the job's script. Raises UsageError."""
    directives: list[str] = []
    if job.scheduler:
        scheduler = schedulers.of(job.scheduler)
        try:
            place = scheduler.place_options(os.getcwd(), *papers.outputs())
            options = [*scheduler.options(job.request, os.environ), *place]
        except Refused as refused:
            raise UsageError(refused.message, refused.hint) from None
        words = scheduler.merged(options, job.request.extra)
        odd = next((value for _, value in words if value and _CONTROL.search(value)), None)
        if odd is not None:
            raise UsageError(f"{odd!r}: there is a control character in it", "no scheduler can be told of such a name")
        directives = [f"{scheduler.mark} {scheduler.directive(option)}" for option in words]
    # module and the like are functions of bash's in our environment, which the job gets, and sh may be another shell.
    # A login shell would have them, too, but may have a PATH of its own.
    shell = BASH if papers.setup and os.access(BASH, os.X_OK) else "/bin/sh"
    return batch_script.script(
        directives, version=__version__, typed=papers.typed, setup=papers.setup, command=papers.command, shell=shell
    )


def write(job: Job, papers: Papers) -> None:
    """Make the launch directory, and write the script.

    Raises:
        UsageError: a file that is not ours is in its place, or there can be no such script.
        OSError: it cannot be written.
    """
    text = script(job, papers) if papers.script is not None else ""
    if papers.folder is not None:
        Path(papers.folder).mkdir(parents=True, exist_ok=not papers.is_new)
    if papers.script is None:
        return
    path = Path(papers.script)
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError), path.open("rb") as there:
        if batch_script.MARK.encode() not in there.read(200):
            raise UsageError(f"{path} is there, and not of zlaunch's making: it is left alone", "name another file")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o700), "wb") as file:
        os.fchmod(file.fileno(), 0o700)  # what --env sets is in it, and may be nobody else's business
        file.truncate()
        file.write(text.encode(errors=SURROGATES))


def _failed(why: str) -> int:
    say(why)
    return FAILED


def _print(text: str) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors=SURROGATES))
    sys.stdout.buffer.flush()
