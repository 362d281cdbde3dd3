"""Level 6: scripts are written, and batch jobs submitted. What they say was decided before (``papers``)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from .._version import __version__
from ..backends import slurm, slurm_batch
from ..surroundings import say
from .grammar import UsageError
from .job import Job
from .papers import Papers

PATIENCE = 60.0
"""Seconds that sbatch may take."""
FAILED = 125
SURROGATES = "surrogateescape"
"""Names need not be UTF-8."""


def batch(job: Job, papers: Papers) -> int:
    """Write the script, or submit it, or show what would be; returns the exit status.

    stdout has the job's id, or with ``--setup-only`` the script's path.
    """
    argv = submit_argv(job, papers)
    if job.dry_run:
        show(job, papers)
        if not papers.only:
            _print(f"{shlex.join(argv)}\n")
        return 0
    write(job, papers)
    if papers.only:
        _print(f"{papers.script}\n")
        return 0
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            env=slurm.without_unwanted(os.environ),
        )
    except OSError as error:
        return _failed(f"{argv[0]} could not be started: {error.strerror}; is this a login node?")
    except subprocess.TimeoutExpired:
        return _failed(f"{argv[0]} has not answered for {PATIENCE:g} s: is Slurm's controller there?")
    said, number = done.stderr.strip(), slurm_batch.job_id(done.stdout)
    if done.returncode:
        return _failed(f"Slurm takes no such job ({argv[0]} ended with status {done.returncode}):\n{said}")
    if number is None:
        return _failed(f"{argv[0]} did not answer with a job's id: {done.stdout.strip()!r}\n{said}".rstrip())
    if said:
        say(said)
    _print(f"{number}\n")
    if papers.folder is not None:
        say(f"job {number} is submitted; its script and output are in {papers.folder}")
    return 0


def show(job: Job, papers: Papers) -> None:
    """Print the script that would be written, under its name."""
    if papers.script is not None:
        _print(f"{papers.script}:\n\n{script(job, papers)}\n")


def submit_argv(job: Job, papers: Papers) -> tuple[str, ...]:
    """What submits the job."""
    if papers.own is not None:
        return slurm_batch.submit_own_argv(os.path.abspath(papers.own), job.argv, job.request)
    return slurm_batch.submit_argv(os.path.abspath(papers.script or ""))


def script(job: Job, papers: Papers) -> str:
    """The text of the job's script."""
    words = slurm_batch.job_words(job.request, os.getcwd(), *papers.outputs()) if job.scheduler else []
    return slurm_batch.script(
        words, version=__version__, typed=papers.typed, setup=papers.setup, command=papers.command
    )


def write(job: Job, papers: Papers) -> None:
    """Make the launch directory, and write the script.

    Raises:
        UsageError: a file that is not ours is in its place.
        OSError: it cannot be written.
    """
    if papers.folder is not None:
        Path(papers.folder).mkdir(parents=True, exist_ok=not papers.is_new)
    if papers.script is None:
        return
    path = Path(papers.script)
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError), path.open("rb") as there:
        if slurm_batch.MARK.encode() not in there.read(200):
            raise UsageError(f"{path} is there, and not of zlaunch's making: it is left alone", "name another file")
    path.write_bytes(script(job, papers).encode(errors=SURROGATES))
    path.chmod(0o755)


def _failed(why: str) -> int:
    say(why)
    return FAILED


def _print(text: str) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors=SURROGATES))
    sys.stdout.buffer.flush()
