"""``bsub``, ``bjobs`` and ``bkill`` of the simulated LSF.

After IBM Spectrum LSF's command reference. Where ``bsub`` talks while it waits, it does so on stderr, as LSF does. A
``bsub -I`` that dies takes its job with it, and passes signals on.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from . import lsf_answers, lsf_words
from .core import Call
from .grammar import Refusal
from .lsf_jobs import ENDED, Job
from .lsf_words import STATUS, Request, no_job

if TYPE_CHECKING:
    from .lsf import Lsf


async def bsub(site: Lsf, call: Call) -> int:
    options, script = lsf_words.command_line(call.argv, coral=site.coral, quoted=site.ways.quoted_words)
    if not script:
        script = (await call.read_all()).decode(errors="surrogateescape")
        options = lsf_words.with_directives(options, script, coral=site.coral)
    request = lsf_words.request(options, script)
    job = _submit(site, call, request)
    for notice in site.ways.notices:
        call.say(notice)
    which = "queue" if "-q" in options else "default queue"
    call.say(f"Job <{job.number}> is submitted to {which} <{job.queue}>.")
    life = site.lives[job.number] = site.spawn(job.live())
    if request.mode == "batch":
        return 0
    try:
        return await _follow(site, call, job)
    except asyncio.CancelledError:  # it has died
        if request.mode != "wait" or site.ways.wait_holds_job:
            end(job, life)
        raise


def _submit(site: Lsf, call: Call, request: Request) -> Job:
    options = request.options
    queue = options.get("-q", next(iter(site.queues)))
    if site.ways.esub_aborts:
        raise Refusal("Request aborted by esub. Job not submitted.", STATUS)
    if queue not in site.queues:
        raise no_job(f"{queue}: No such queue")
    if "-x" in options and not site.queues[queue].exclusive:
        raise no_job(f"{queue}: Queue does not accept EXCLUSIVE jobs")
    limit = site.queues[queue].limit
    if limit and request.minutes and request.minutes > limit:
        raise no_job("RUNLIMIT: Cannot exceed queue's hard limit(s)")
    if request.nodes is None and site.coral:
        raise no_job("-nnodes is missing")
    for number in request.depends.jobs if request.depends else ():
        if number not in site.jobs:
            raise no_job(f"{number}: No matching job found")
    environ = lsf_words.environment(options.get("-env", "all"), lsf_answers.passed_on(call.environ))
    number = next(site.numbers)
    job = site.jobs[number] = Job(site, number, request, queue, call, environ)
    return job


async def _follow(site: Lsf, call: Call, job: Job) -> int:
    """What ``-K``, ``-I`` and ``-Is`` say while they wait; the job's exit status."""
    if job.request.mode != "wait":
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
        call.trap({number: lambda number=number: _interrupt(site, job, number) for number in numbers})  # type: ignore[misc]
    call.complain("<<Waiting for dispatch ...>>")
    await job.until(lambda: job.state != "PEND")
    if not job.hosts:
        call.complain("<<Terminated while pending>>")
        return 126
    call.complain(f"<<Starting on {job.hosts[0][0]}>>")
    if job.request.mode == "terminal" and call.tty[0]:
        call.tell(raw=True)
    await job.until(lambda: job.state in ENDED)
    if job.request.mode == "wait":
        call.complain("<<Job is finished>>")
    return job.exit_code or 0


def _interrupt(site: Lsf, job: Job, number: int) -> None:
    if job.state == "PEND":
        end(job, site.lives[job.number])
    else:
        job.signal(number)


def end(job: Job, life: asyncio.Task[None]) -> None:
    if job.state == "PEND":
        life.cancel()
    elif job.state not in ENDED:
        job.kill()


async def bjobs(site: Lsf, call: Call) -> int:
    out, err, status = lsf_answers.bjobs(call.argv, site.jobs.get, site.ways.counted_hosts, site.ways.unknown_status)
    call.say(out.encode(errors="surrogateescape"))
    call.say(err.encode(errors="surrogateescape"), 2)
    return status


async def bkill(site: Lsf, call: Call) -> int:
    options, ids = lsf_words.read("bkill", lsf_words.BKILL, call.argv)
    if not ids:
        raise Refusal("bkill: Job ID must be specified", STATUS)
    number = lsf_words.signal_number(options["-s"]) if "-s" in options else None
    status = 0
    for wanted in [lsf_answers.job_id("bkill", text) for text in ids]:
        said, wrong = _bkill_one(site, wanted, number)
        call.say(f"Job <{wanted}> {said}") if not wrong else call.complain(f"Job <{wanted}>: {wrong}")
        status = STATUS if wrong else status
    return status


def _bkill_one(site: Lsf, wanted: int, number: int | None) -> tuple[str, str]:
    """What is done, or what is wrong."""
    job = site.jobs.get(wanted)
    if job is None:
        return "", "No matching job found"
    if job.state in ENDED:
        return "", "Job has already finished"
    if number is None or number == signal.SIGKILL:
        job.reason = job.reason or "TERM_OWNER"
        end(job, site.lives[wanted])
        return "is being terminated", ""
    if job.state == "PEND":
        return "", "Job has not started yet"
    job.signal(number)
    return "is being signaled", ""
