"""Level 6: a job's script as text, and written to its place. What it says was decided before (``papers``)."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from .._version import __version__
from ..backends import batch_script, schedulers
from ..backends.scheduler import Refused
from .grammar import UsageError
from .job import Job
from .papers import Papers

BASH = "/bin/bash"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What may end a line for somebody who reads a script's directives."""
SURROGATES = "surrogateescape"
"""Names need not be UTF-8."""


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
        if not papers.attended or papers.script:
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
