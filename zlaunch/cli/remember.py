"""Level 6: what is written down of a job that was submitted."""

from __future__ import annotations

import os
import time

from ..backends import schedulers
from ..registry import submitted
from ..surroundings import say
from .job import Job
from .papers import Papers
from .queues import cluster


def remember(job: Job, papers: Papers, number: str, answer: str) -> None:
    """For ``zlaunch ps``, ``logs`` and ``stop``. The job is submitted, and no disk can change that.

    Args:
        job: what was submitted.
        papers: and by which script.
        number: the job's id.
        answer: all that was said to the submission: a script's own lines, or our environment, may have sent it to
            another cluster.
    """
    table = schedulers.of(job.scheduler)
    own = papers.own is not None
    elsewhere = own or any(name.lstrip("~") in table.outputs for name, _ in job.request.extra)
    out, err = (None, None) if elsewhere else papers.outputs()
    try:
        submitted.add(
            submitted.BatchJob(
                scheduler=job.scheduler,
                cluster=table.sent_to(answer) or cluster(job.scheduler),
                job=submitted.same_id(number),
                name=job.request.name or job.name,
                folder=os.path.abspath(papers.folder or ""),
                out=out,
                err=err,
                log_dir=os.path.abspath(job.log_dir) if job.log_dir and not own else None,
                nodes=job.request.nodes if own else job.request.nodes or 1,
                ranks=None if own or isinstance(job.workers, tuple) else job.workers,
                grace=job.grace,
                own=own,
                argv=papers.typed,
                submitted=time.time(),
                hostname=os.uname().nodename,
            )
        )
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        say(f"zlaunch ps will not know of job {number}: {why}")
