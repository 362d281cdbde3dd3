"""What LSF says of a job: to the job, by its environment, to ``bjobs``, and in the report at its end. Pure functions.

After IBM Spectrum LSF's pages on the environment of jobs and on ``bjobs -o``; the report's lines are those that public
output files of LSF 10 have (without what it says of the use of memory).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .grammar import Refusal
from .lsf_words import BJOBS, STATUS, read

if TYPE_CHECKING:
    from .lsf_jobs import Job

REASONS = {
    "TERM_RUNLIMIT": "job killed after reaching LSF run time limit",
    "TERM_OWNER": "job killed by owner",
    "TERM_ORPHAN_SYSTEM": "the orphan job was automatically terminated by LSF",
    "TERM_ZOMBIE": "job exited while LSF is not available",
}
_WIDTHS = {
    "jobid": 7,
    "stat": 5,
    "exit_code": 10,
    "exec_host": 11,
    "queue": 10,
    "job_name": 10,
    "exit_reason": 50,
    "pend_reason": 11,
    "time_left": 11,
}
_LINE = "-" * 60

Hosts = Sequence[tuple[str, int]]
"""Hosts of a job, in their order, and the slots that it has on each."""


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """What of a submitter's environment a job may get; LSF sets the rest itself."""
    return {name: value for name, value in environ.items() if name != "HOME" and not name.startswith(("LSB_", "LS_"))}


def job_environment(job: Job, hostfile: str) -> dict[str, str]:
    """What LSF tells a job. ``hostfile`` is a file with ``slots``, one a line."""
    names = slots(job.hosts)
    told = {
        "LSB_JOBID": str(job.number),
        "LSB_JOBINDEX": "0",
        "LSB_JOBNAME": job.name,
        "LSB_QUEUE": job.queue,
        "LS_SUBCWD": job.submitted_in,
        "LSB_HOSTS": " ".join(names),
        "LSB_MCPU_HOSTS": "".join(f"{name} {count} " for name, count in job.hosts),
        "LSB_DJOB_HOSTFILE": hostfile,
        "LSB_DJOB_RANKFILE": hostfile,
        "LSB_DJOB_NUMPROC": str(len(names)),
    }
    if job.request.gpus:
        told["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, job.gpus))
    return told


def slots(hosts: Hosts) -> list[str]:
    return [name for name, count in hosts for _ in range(count)]


def exec_host(hosts: Hosts, counted: bool) -> str:
    """``a:a:b``, or ``2*a:b``."""
    if counted:
        return ":".join(f"{count}*{name}" if count > 1 else name for name, count in hosts)
    return ":".join(slots(hosts))


def bjobs(words: Sequence[str], find: Callable[[int], Job | None], counted: bool, unknown: int) -> tuple[str, str, int]:
    """stdout, stderr and the exit status.

    Args:
        words: those after ``bjobs``.
        find: a job by its id.
        counted: see ``exec_host``.
        unknown: the exit status where no job is known. Where one is, but not all, it is 255.

    Raises:
        Refusal: the words are not those of a question.
    """
    options, ids = read("bjobs", BJOBS, words)
    if "-o" not in options or not ids:
        raise Refusal("Usage: bjobs [-noheader] [-json] -o \"FIELD ... [delimiter='C']\" ID ...", STATUS)
    if "-json" in options and "-noheader" in options:
        raise Refusal("bjobs: -json and -noheader exclude each other", STATUS)
    fields, delimiter = _fields(options["-o"])
    numbers = [job_id("bjobs", text) for text in ids]
    jobs = {number: find(number) for number in numbers}
    records = [_record(job, fields, counted) for job in jobs.values() if job]
    lost = [f"Job <{number}> is not found" for number, job in jobs.items() if job is None]
    status = 0 if not lost else STATUS if records else unknown
    if "-json" in options:
        return _json(jobs, fields, records), "", status
    lines = [[field.upper() for field in fields]] if records and "-noheader" not in options else []
    lines += [[value or "-" for value in record] for record in records]
    text = "".join(f"{_row(fields, line, delimiter)}\n" for line in lines)
    return text, "".join(f"{line}\n" for line in lost), status


def job_id(command: str, text: str) -> int:
    if not re.fullmatch("[1-9][0-9]*", text):
        raise Refusal(f"{command}: {text}: Illegal job ID", STATUS)
    return int(text)


def _fields(text: str) -> tuple[list[str], str]:
    match = re.fullmatch(r"(?P<names>[a-z_ ]+?)(?: +delimiter='(?P<delimiter>[^']+)')? *", text)
    names = match["names"].split() if match else []
    if not names or len(set(names)) < len(names) or not set(names) <= set(_WIDTHS):
        raise Refusal(f"bjobs: {text}: Illegal output format", STATUS)
    return names, match["delimiter"] or "" if match else ""


def _record(job: Job, fields: Sequence[str], counted: bool) -> list[str]:
    facts = {
        "jobid": str(job.number),
        "stat": job.state,
        "exit_code": str(job.exit_code or "") if job.state == "EXIT" else "",
        "exec_host": exec_host(job.hosts, counted),
        "queue": job.queue,
        "job_name": job.name,
        "exit_reason": f"{job.reason}: {REASONS[job.reason]}" if job.reason and job.state == "EXIT" else "",
        "pend_reason": f"{job.waits_for};" if job.state == "PEND" else "",
        "time_left": _time_left(job),
    }
    return [facts[field] for field in fields]


def _time_left(job: Job) -> str:
    """Hours and minutes, and ``L`` for a limit, which is no estimate (the page on ``bjobs -WL``)."""
    if job.limit is None or job.state != "RUN":
        return ""
    minutes = max(0, round((job.limit - (time.time() - job.began)) / job.site.minute))
    return f"{minutes // 60}:{minutes % 60} L"


def _row(fields: Sequence[str], values: Sequence[str], delimiter: str) -> str:
    """Without a delimiter a value that is too long for its column loses its head."""
    if delimiter:
        return delimiter.join(values)
    columns = []
    for field, value in zip(fields, values, strict=True):
        width = _WIDTHS[field]
        columns.append((value if len(value) <= width else f"*{value[1 - width :]}").ljust(width))
    return " ".join(columns)


def _json(jobs: Mapping[int, Job | None], fields: Sequence[str], records: Sequence[Sequence[str]]) -> str:
    names = [field.upper() for field in fields]
    found = [dict(zip(names, record, strict=True)) for record in records]
    lost = [
        {"JOBID": str(number), "ERROR": f"Job <{number}> is not found"} for number, job in jobs.items() if job is None
    ]
    answer = {"COMMAND": "bjobs", "JOBS": len(jobs), "RECORDS": [*found, *lost]}
    return json.dumps(answer, indent=2) + "\n"


def report(job: Job, *, above: bool) -> str:
    """What is written to the file of ``-o`` at the end of a job; ``above``: after the output, not before it."""
    fate = "Exited" if job.exit_code else "Done"
    times = [time.ctime(moment) for moment in (job.submitted, job.began, job.ended)]
    end = [f"Exited with exit code {job.exit_code}."] if job.exit_code else ["Successfully completed."]
    if job.reason:
        end.insert(0, f"{job.reason}: {REASONS[job.reason]}.")
    lines = [
        *(["", _LINE] if above else []),
        "Sender: LSF System <lsfadmin@head>",
        f"Subject: Job {job.number}: <{job.name}> in cluster <bed> {fate}",
        "",
        f"Job <{job.name}> was submitted from host <{job.host}> by user <root> in cluster <bed> at {times[0]}",
        f"Job was executed on host(s) {_executed(job.hosts)}, in queue <{job.queue}>, as user <root> in cluster <bed> "
        f"at {times[1]}",
        "</root> was used as the home directory.",
        f"<{job.cwd}> was used as the working directory.",
        f"Started at {times[1]}",
        f"Terminated at {times[2]}",
        f"Results reported at {times[2]}",
        "",
        "Your job looked like:",
        "",
        _LINE,
        "# LSBATCH: User input",
        job.request.script.rstrip("\n"),
        _LINE,
        "",
        *end,
        "",
        "Resource usage summary:",
        "",
        f"    Run time :                                   {job.ended - job.began:.0f} sec.",
        f"    Turnaround time :                            {job.ended - job.submitted:.0f} sec.",
        "",
        "The output (if any) is above this job summary." if above else "The output (if any) follows:",
        "",
    ]
    return "\n".join(lines) + "\n"


def _executed(hosts: Hosts) -> str:
    first, *others = [f"<{count}*{name}>" if count > 1 else f"<{name}>" for name, count in hosts]
    return "".join([first, *(f"\n                            {other}" for other in others)])
