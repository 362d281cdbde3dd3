"""Level 6: zlaunch runs within a job, and this one before its door: it waits for the nodes, passes on what is said
there, and ends as it does.

So are ranks of an MPI world run from a login node, where the scheduler starts MPI processes within its jobs only.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import threading
import time
from contextlib import suppress

from ..allocation import private_folder, write_files
from ..asking import Holder, send
from ..backends import schedulers
from ..backends.scheduler import GRANTED, Command, Refused, Scheduler
from ..errors import LaunchError
from ..model import signal_name
from ..surroundings import say
from .doorbell import Doorbell, Interrupted, reader_to_watch
from .grammar import UsageError
from .job import Job
from .papers import Papers
from .scripts import script, write

ECHO = 1.0
"""Seconds within which a second SIGTERM or SIGHUP is the first one."""
LAUNCH_FAILED = 125


def command(job: Job, papers: Papers, folder: str) -> Command:
    """What runs the job's script, which tells of itself first, as a job, and waits for it. Raises UsageError."""
    scheduler = schedulers.of(job.scheduler)
    shell, _, text = script(job, papers).removeprefix("#!").partition("\n")
    if "{{" not in (papers.setup or ""):  # elsewhere it is within single quotes, or in a comment
        text = re.sub(r"{(?={)", "{''", text)
    try:
        place = scheduler.place_options(os.getcwd(), None, None)
        options = [*scheduler.options(job.request, os.environ), *place]
        words = scheduler.flat(scheduler.merged(options, job.request.extra))
        told = f"echo; echo {GRANTED} {scheduler.inside}\n"
        return scheduler.attended(words, os.path.basename(shell), told + text, folder)
    except Refused as refused:
        raise UsageError(refused.message, refused.hint) from None


def attended(job: Job, papers: Papers) -> int:
    """Run the job; returns its exit status. Raises UsageError."""
    write(job, papers)
    folder, scheduler = private_folder(os.environ), schedulers.of(job.scheduler)
    asked = command(job, papers, folder)
    holder = Holder(scheduler, asked, say)
    status = None
    with Doorbell() as bell:
        try:
            write_files(asked, folder)
            with bell.impatient():
                nodes = holder.wait()
            status = _Passage(scheduler, holder, nodes.job, bell).wait()
            return status
        except LaunchError as error:
            say(str(error))
            return LAUNCH_FAILED
        except Interrupted as interrupted:
            say(f"{_named(interrupted.number)}: no rank had started")
            return 128 + interrupted.number
        finally:
            holder.end(by_itself=status is not None)
            shutil.rmtree(folder, ignore_errors=True)


class _Passage:
    """Its words are ours until it ends, and our signals its."""

    def __init__(self, scheduler: Scheduler, holder: Holder, job: str, bell: Doorbell) -> None:
        assert holder.process is not None
        self._scheduler, self._job, self._bell, self._process = scheduler, job, bell, holder.process
        _, told, rest = holder.printed.partition(f"{GRANTED} ".encode())
        self._pass_on(1, rest.partition(b"\n")[2] if told else b"")
        early = scheduler.tidy(holder.said.decode(errors="replace"))
        self._pass_on(2, f"{early}\n".encode() if early else b"")
        threading.Thread(target=self._follow, name="zlaunch-passage", daemon=True).start()

    def wait(self) -> int:
        """Until its end; returns its status, or that of the signal by which we asked for it."""
        reader, asked, presses, last = reader_to_watch(1), 0, 0, (0, 0.0)
        while (ring := self._bell.wait(reader)).kind != "done":
            if ring.kind == "broken":
                reader, asked = None, asked or signal.SIGPIPE
                send(self._scheduler, self._scheduler.warn_argv(self._job))
            elif ring.signal == signal.SIGTSTP:
                say("Ctrl-Z is ignored; Ctrl-C ends the run")
            elif ring.signal == signal.SIGINT or last[0] != ring.signal or time.monotonic() > last[1] + ECHO:
                asked, presses, last = asked or ring.signal, presses + 1, (ring.signal, time.monotonic())
                self._end(presses, _named(ring.signal))
        status = self._process.wait()
        status = 128 - status if status < 0 else status
        return 128 + asked if asked and status else status

    def _end(self, presses: int, what: str) -> None:
        """Once: zlaunch ends its ranks there. Twice: the scheduler ends the job."""
        title = self._scheduler.title
        if presses == 1:
            say(f"{what}: ending the ranks in {title}'s job {self._job}; once more to have {title} end it now")
            send(self._scheduler, self._scheduler.warn_argv(self._job))
        else:
            say(f"{what}: ending {title}'s job {self._job}")
            send(self._scheduler, self._scheduler.cancel_argv(self._job))

    def _follow(self) -> None:
        """In a thread: pass on what it says, to its end."""
        streams = {
            stream.fileno(): to for stream, to in ((self._process.stdout, 1), (self._process.stderr, 2)) if stream
        }
        while streams:
            for fd in select.select(list(streams), (), ())[0]:
                data = os.read(fd, 65536)
                self._pass_on(streams[fd], data)
                if not data:
                    del streams[fd]
        self._process.wait()
        self._bell.done()

    def _pass_on(self, to: int, data: bytes) -> None:
        with suppress(OSError):  # whoever has closed it does not want to hear it
            while data:
                data = data[os.write(to, data) :]


def _named(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal_name(number)
