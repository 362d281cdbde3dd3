"""``flux jobs``, ``hostlist``, ``resource``, ``getattr`` and ``exec`` of the simulator."""

from __future__ import annotations

import json
import re
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from .core import Call
from .crew import Crew, Hooks, Task, exit_status
from .flux_instance import Instance, free_and_held
from .flux_jobs import NEVER_RAN, Job
from .flux_submit import job_number_or_refuse
from .flux_words import ascii_only, compact, expand, f58, idset, job_number
from .grammar import Parsed, Refusal

if TYPE_CHECKING:
    from .flux import Flux

_NO_HOST = 68  # EHOSTUNREACH of a broker that is gone, as an exit status
_JOB_FORMAT = "{id.f58} {name} {status} {ntasks} {nnodes} {nodelist}"
_NODES_FORMAT = "{state} {nnodes} {ncores} {ngpus} {nodelist}"


def show(call: Call, parsed: Parsed, default: str, rows: list[dict[str, Any]], fields: list[str]) -> None:
    """The rows in the format that is asked for, after a line of titles. Raises ``Refusal`` for unknown fields."""
    chosen = parsed.get("format", default)
    for name in re.findall(r"\{([\w.]*)", chosen):
        if name not in fields:
            raise Refusal(f"flux-{call.argv[0]}: ERROR: Unknown format field: {name!r}")
    if "no-header" not in parsed:
        rows = [{name: name.upper() for name in fields}, *rows]
    for row in rows:
        call.say(re.sub(r"\{([\w.]+)(:[^}]*)?\}", lambda m: format(str(row[m[1]]), (m[2] or ":")[1:]), chosen))


def _facts(call: Call, job: Job) -> dict[str, Any]:
    over = not job.active
    status = job.status if job.status is not None else NEVER_RAN
    return {
        "id": f58(job.number, ascii_only(call.environ)),
        "id.f58": f58(job.number, ascii_only(call.environ)),
        "id.f58plain": f58(job.number, plain=True),
        "id.dec": job.number,
        "state": job.state,
        "status": job.result if over else job.state,
        "result": job.result,
        "returncode": status if over else "",
        "nodelist": compact(job.placement),
        "name": job.spec.name,
        "nnodes": len(job.placement) or job.spec.shape.nodes or "",
        "ntasks": job.spec.shape.tasks,
        "queue": job.spec.queue,
        "exception.type": job.exception.name if job.exception else "",
        "exception.note": job.exception.note if job.exception else "",
    }


_JOB_FIELDS = [
    *("id", "id.f58", "id.f58plain", "id.dec", "state", "status", "result", "returncode", "nodelist", "name"),
    *("nnodes", "ntasks", "queue", "exception.type", "exception.note"),
]


async def jobs(flux: Flux, call: Call, parsed: Parsed) -> int:
    """Those that are active, or all with ``-a``, the youngest first; or those that are named."""
    instance = flux.instance(call)
    if parsed.rest:
        chosen = [instance.job(job_number_or_refuse(word)) for word in parsed.rest]
    else:
        chosen = [job for job in reversed(instance.jobs.values()) if job.active or "a" in parsed]
    rows = [_facts(call, job) for job in chosen]
    if "json" in parsed:
        found = [{key: value for key, value in row.items() if "." not in key and value != ""} for row in rows]
        for row, job in zip(found, chosen, strict=True):
            row["id"] = job.number
        call.say(json.dumps(found[0] if len(parsed.rest) == 1 else {"jobs": found}))
        return 0
    show(call, parsed, _JOB_FORMAT, rows, _JOB_FIELDS)
    return 0


async def hostlist(flux: Flux, call: Call, parsed: Parsed) -> int:
    """``local``: of the job or the instance that we are in; ``avail``: those that are up; others are lists.

    ``instance``, which is not on the page, is in flux-hostlist(1): all hosts of the instance, up or not.
    """
    instance = flux.instance(call)
    hosts: list[str] = []
    for word in parsed.rest or ["local"]:
        if word == "avail":
            hosts += instance.pool.up()
        elif word == "local" and (inside := call.environ.get("FLUX_JOB_ID")):
            hosts += instance.job(job_number_or_refuse(inside)).placement
        elif word in ("local", "instance"):
            hosts += instance.hosts
        elif re.fullmatch(r"[fƒ][1-9A-Za-z]+", word) and (job := instance.jobs.get(job_number(word))):
            hosts += job.placement
        else:
            hosts += expand(word)
    call.say(" ".join(hosts) if "expand" in parsed else compact(hosts))
    return 0


async def resource_list(flux: Flux, call: Call, parsed: Parsed) -> int:
    rows = []
    for state, nodes in free_and_held(flux.instance(call).pool).items():
        cores, gpus = ([len(getattr(share, what)) for share in nodes.values()] for what in ("cores", "gpus"))
        facts = {"state": state, "nnodes": len(nodes), "ncores": sum(cores), "ngpus": sum(gpus)}
        rows.append({**facts, "nodelist": compact(nodes)})
    show(call, parsed, _NODES_FORMAT, rows, ["state", "nnodes", "ncores", "ngpus", "nodelist"])
    return 0


async def resource_info(flux: Flux, call: Call, parsed: Parsed) -> int:
    shares = flux.instance(call).pool.nodes.values()
    numbers = {"Node": len(shares), "Core": sum(len(share.cores) for share in shares)}
    numbers["GPU"] = sum(len(share.gpus) for share in shares)
    call.say(", ".join(f"{number} {what}{'' if number == 1 else 's'}" for what, number in numbers.items()))
    return 0


def _attributes(call: Call, instance: Instance) -> dict[str, str]:
    parent = instance.parent
    known = {"size": str(len(instance.hosts)), "instance-level": str(instance.level), "local-uri": instance.uri}
    known["hostlist"] = compact(instance.hosts)
    if parent is not None:
        known |= {"jobid": f58(parent.number, ascii_only(call.environ)), "parent-uri": parent.instance.uri}
    return known


async def get_attribute(flux: Flux, call: Call, parsed: Parsed) -> int:
    known = _attributes(call, flux.instance(call))
    if len(parsed.rest) != 1 or parsed.rest[0] not in known:
        raise Refusal(f"flux-getattr: {' '.join(parsed.rest)}: No such file or directory")
    call.say(known[parsed.rest[0]])
    return 0


async def execute(flux: Flux, call: Call, parsed: Parsed) -> int:
    """A command on hosts of the instance, at once, whatever runs there; killed when we are."""
    instance = flux.instance(call)
    if not parsed.rest:
        raise Refusal("flux-exec: ERROR: a command is missing")
    try:
        ranks = idset(parsed.get("rank", "all"), len(instance.hosts))
        left_out = idset(parsed["exclude"], len(instance.hosts)) if "exclude" in parsed else []
    except ValueError as error:
        raise Refusal(f"flux-exec: ERROR: --rank: {error}") from None
    ranks = [rank for rank in ranks if rank not in left_out]
    if not ranks or max(ranks) >= len(instance.hosts):
        raise Refusal(f"flux-exec: ERROR: --rank: there is no such rank: {parsed.get('rank')}")
    environ = {**call.environ, "FLUX_URI": instance.uri}
    cwd = parsed.get("dir", call.cwd)
    down = [rank for rank in ranks if instance.hosts[rank] in instance.pool.down]
    tasks = [
        Task(rank, instance.hosts[rank], parsed.rest, environ, cwd, umask=call.umask)
        for rank in ranks
        if rank not in down
    ]
    status = _NO_HOST if down else 0

    def complain(rank: int, text: str) -> None:
        call.complain(f"flux-exec: Error: rank {rank}: {text}")

    for rank in down:
        complain(rank, "No route to host")

    async def output(rank: int, stream: int, data: bytes) -> None:
        if "label-io" in parsed:
            data = b"".join(b"%d: %s" % (rank, line) for line in data.splitlines(keepends=True))
        call.say(data, stream)
        await call.drain()

    def lost(host: str) -> None:
        nonlocal status
        status = max(status, _NO_HOST)
        instance.look()
        complain(instance.hosts.index(host), "No route to host")

    crew = Crew(flux, tasks, Hooks(output, failed=lambda rank, _: complain(rank, "command not found"), lost=lost))
    call.trap({number: partial(crew.signal, number) for number in (signal.SIGINT, signal.SIGTERM)})
    if "noinput" in parsed:
        crew.feed(b"")
    else:
        call.read(crew.feed)
    await crew.run()
    return max([status, *map(exit_status, crew.status.values())])


COMMANDS = {
    "jobs": jobs,
    "hostlist": hostlist,
    "resource list": resource_list,
    "resource info": resource_info,
    "getattr": get_attribute,
    "exec": execute,
}
