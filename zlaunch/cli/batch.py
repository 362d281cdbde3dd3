"""Level 6: batch jobs are submitted, or shown. What they say was decided before (``papers``)."""

from __future__ import annotations

import os
import shlex
import sys

from ..asking import call
from ..backends import schedulers
from ..backends.scheduler import Refused
from ..errors import LaunchError
from ..surroundings import say
from .attended import command
from .grammar import UsageError
from .job import Job
from .papers import Papers
from .remember import remember
from .scripts import SURROGATES, script, write

PATIENCE = 60.0
"""Seconds that sbatch may take."""
FAILED = 125


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
    """Print the script that would be written, under its name, and what would run it, where we wait for that."""
    if papers.attended:
        asked = command(job, papers, "<folder>")
        texts = {f"<folder>/{name}": text for name, text in asked.files.items()}
        *words, last = asked.argv
        if "\n" in last:
            texts["SCRIPT"], last = last, "SCRIPT"
        _print(f"all this in a job, by: {shlex.join([*words, last])}\n\n")
        for name, text in texts.items():
            _print(f"{name}:\n\n{text}\n")
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


def _failed(why: str) -> int:
    say(why)
    return FAILED


def _print(text: str) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors=SURROGATES))
    sys.stdout.buffer.flush()
