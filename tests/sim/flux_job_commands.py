"""``flux cancel`` and ``flux job status|kill|wait-event|timeleft|id`` of the simulator."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

from .core import Call
from .flux_jobs import Job
from .flux_submit import job_number_or_refuse
from .flux_words import f58
from .grammar import Parsed, Refusal

if TYPE_CHECKING:
    from .flux import Flux

_NO_LIMIT = 4_294_967_295  # what ``timeleft`` says then, by its source


def _jobs(flux: Flux, call: Call, words: list[str]) -> list[Job]:
    if not words:
        raise Refusal(f"flux {' '.join(call.argv[:2])}: ERROR: a job id is missing")
    instance = flux.instance(call)
    return [instance.job(job_number_or_refuse(word)) for word in words]


async def cancel(flux: Flux, call: Call, parsed: Parsed) -> int:
    status = 0
    for job in _jobs(flux, call, parsed.rest):
        if job.active:
            job.throw("cancel", "")
        else:
            call.complain(f"flux-cancel: ERROR: {job}: job is inactive")
            status = 1
    return status


async def job_status(flux: Flux, call: Call, parsed: Parsed) -> int:
    """Waits for the end of all; the highest of their statuses."""
    highest = 0
    for job in _jobs(flux, call, parsed.rest):
        await job.until(lambda job=job: not job.active)  # type: ignore[misc]
        highest = max(highest, job.status or 0, 1 if job.exception else 0)
    return highest


async def job_kill(flux: Flux, call: Call, parsed: Parsed) -> int:
    for job in _jobs(flux, call, parsed.rest):
        if job.state != "RUN" or job.crew is None:
            raise Refusal(f"flux-job: ERROR: kill {job}: job is not running")
        job.send(parsed.get("signal", signal.SIGTERM))
    return 0


async def job_wait_event(flux: Flux, call: Call, parsed: Parsed) -> int:
    if len(parsed.rest) != 2:
        raise Refusal("flux-job: ERROR: usage: flux job wait-event [OPTIONS] id event")
    (job,), name = _jobs(flux, call, parsed.rest[:1]), parsed.rest[1]
    waiting = job.until(lambda: job.has(name) or not job.active)
    try:
        await asyncio.wait_for(waiting, parsed.get("timeout"))
    except TimeoutError:
        raise Refusal(f"flux-job: wait-event timeout on event '{name}'") from None
    for event in job.events:
        if event.name == name:
            call.say(f"{event.at:.6f} {event.name} {event.note}".rstrip())
            return 0
    raise Refusal(f"flux-job: event '{name}' never received")


async def job_timeleft(flux: Flux, call: Call, parsed: Parsed) -> int:
    """Whole seconds, of the job that is named, or of the one that we are in."""
    instance = flux.instance(call)
    inside = call.environ.get("FLUX_JOB_ID")
    if parsed.rest or inside:
        (job,) = _jobs(flux, call, parsed.rest or [inside or ""])
    elif instance.parent is not None:
        job = instance.parent
    else:
        raise Refusal("flux-job: ERROR: this process is not part of a job")
    if not job.active or job.state != "RUN":
        left = 0
    else:
        around = instance.parent.ends if instance.parent else None
        ends = job.ends or around  # a job without a limit has that of its instance
        left = _NO_LIMIT if ends is None else max(int(ends - time.time()), 1)
    call.say(str(left))
    return 0


async def job_id(flux: Flux, call: Call, parsed: Parsed) -> int:
    form = parsed.get("to", "dec")
    for word in parsed.rest:
        number = job_number_or_refuse(word)
        call.say({"dec": str(number), "hex": f"{number:#x}"}.get(form) or f58(number, form == "f58plain"))
    return 0


COMMANDS = {
    "cancel": cancel,
    "job status": job_status,
    "job kill": job_kill,
    "job wait-event": job_wait_event,
    "job timeleft": job_timeleft,
    "job id": job_id,
}
