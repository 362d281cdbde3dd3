"""``flux run``, ``submit``, ``batch``, ``alloc`` and ``job attach`` of the simulator."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import Call
from .flux_jobs import Job, Spec
from .flux_shapes import Shape, of_slots, of_tasks
from .flux_words import GRAMMARS, ascii_only, f58, fill, filtered, job_number
from .grammar import Parsed, Refusal

if TYPE_CHECKING:
    from .flux import Flux

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2)
_TWICE = 2.0  # s: a second Ctrl-C within this time cancels


def shown(call: Call, job: Job) -> str:
    """A job's id as this caller's locale has it."""
    return f58(job.number, ascii_only(call.environ))


def _options(parsed: Parsed) -> dict[str, str]:
    found = {}
    for word in parsed.get("setopt", []):
        name, equals, value = word.partition("=")
        found[name] = value if equals else "1"
    return found


def _spec(call: Call, parsed: Parsed, command: Sequence[str], shape: Shape, **more: Any) -> Spec:
    attributes = dict(word.partition("=")[::2] for word in parsed.get("setattr", []))
    name = attributes.get("system.job.name", os.path.basename(command[0]))
    taskmap = parsed.get("taskmap", "block")
    if taskmap not in ("block", "cyclic"):
        raise Refusal(f"flux-{call.argv[0]}: ERROR: unknown taskmap {taskmap}")
    known: dict[str, Any] = {
        "environ": filtered(call.environ, parsed.get("env", [])),
        "cwd": parsed.get("cwd") or attributes.get("system.cwd") or attributes.get("cwd") or call.cwd,
        "name": parsed.get("job-name") or name,
        "limit": parsed.get("time-limit") or None,
        "queue": parsed.get("queue", ""),
        "dependencies": parsed.get("dependency", []),
        "output": parsed.get("output", ""),
        "error": parsed.get("error", ""),
        "input": parsed.get("input", ""),
        "label": "label-io" in parsed,
        "warning": parsed.get("signal"),
        "options": _options(parsed),
        "taskmap": taskmap,
        "umask": call.umask,
    }
    return Spec(tuple(command), shape, **{**known, **more})


def _jobspec(spec: Spec) -> str:
    """What ``--dry-run`` prints, in as far as anybody looks at it."""
    slot = {"type": "slot", "count": spec.shape.tasks, "label": "task", "with": [{"type": "core", "count": 1}]}
    resources = {"type": "node", "count": spec.shape.nodes, "with": [slot]} if spec.shape.nodes else slot
    command = ["flux", "broker", *spec.command] if spec.child else list(spec.command)
    system: dict[str, Any] = {"duration": spec.limit or 0, "environment": spec.environ, "cwd": spec.cwd}
    system |= {"job": {"name": spec.name}, "shell": {"options": spec.options}}
    tasks = [{"command": command, "slot": "task", "count": {"per_slot": 1}}]
    return json.dumps({"version": 1, "resources": [resources], "tasks": tasks, "attributes": {"system": system}})


def _feed_file(job: Job) -> None:
    """``--input``: the file, as the simulator's machine sees it."""
    if job.spec.input:
        path = Path(job.spec.cwd, job.spec.input)
        if path != Path("/dev/null"):
            job.feed(path.read_bytes())
        job.feed(b"")


async def run(flux: Flux, call: Call, parsed: Parsed) -> int:
    job = _submit_tasks(flux, call, parsed)
    return 0 if job is None else await attach(call, job, label="label-io" in parsed)


async def submit(flux: Flux, call: Call, parsed: Parsed) -> int:
    job = _submit_tasks(flux, call, parsed)
    if job is not None:
        call.say(shown(call, job))
    return 0


def _submit_tasks(flux: Flux, call: Call, parsed: Parsed) -> Job | None:
    program = f"flux-{call.argv[0]}"
    if not parsed.rest:
        raise Refusal(f"{program}: ERROR: job command and arguments are missing")
    return _submit(flux, call, parsed, _spec(call, parsed, parsed.rest, of_tasks(program, parsed)))


def _submit(flux: Flux, call: Call, parsed: Parsed, spec: Spec) -> Job | None:
    if "dry-run" in parsed:
        call.say(_jobspec(spec))
        return None
    job = flux.instance(call).submit(spec)
    _feed_file(job)
    return job


async def batch(flux: Flux, call: Call, parsed: Parsed) -> int:
    """The script is read now, with its directives; the command line wins over these (not observed, documented)."""
    words = parsed.rest
    if "wrap" in parsed:
        text = f"#!/bin/sh\n{' '.join(words) if words else (await call.read_all()).decode()}\n"
    elif words:
        try:
            text = Path("/", call.cwd, words[0]).read_text()
        except (OSError, UnicodeError) as error:
            raise Refusal(f"flux-batch: ERROR: {words[0]}: {error}") from None
    else:
        text = (await call.read_all()).decode()
    if not text.startswith("#!"):
        raise Refusal(f"flux-batch: ERROR: {words[0] if words else 'stdin'} does not appear to be a script")
    parsed = GRAMMARS["batch"].parse([*_directives(text), *call.argv[1:]])
    folder = flux.folder / "scripts"
    folder.mkdir(exist_ok=True)
    script = folder / f"script-{len(list(folder.iterdir()))}"
    script.write_text(text)
    script.chmod(0o700)
    name = parsed.get("job-name") or ("sh" if "wrap" in parsed else words[0] if words else "batch")
    rest = [] if "wrap" in parsed else words[1:]
    output = parsed.get("output") or "flux-{{id}}.out"
    shape = of_slots("flux-batch", parsed)
    spec = _spec(call, parsed, [str(script), *rest], shape, name=name, child=True, batch=True, output=output)
    job = _submit(flux, call, parsed, spec)
    if job is not None:
        if not spec.input:
            job.feed(b"")
        call.say(shown(call, job))
    return 0


def _directives(script: str) -> list[str]:
    words = []
    for number, line in enumerate(script.splitlines(), 1):
        found = re.fullmatch(r"\W*flux:\s*(.*)", line) if line.startswith("#") else None
        if found:
            try:
                words += shlex.split(found[1], comments=True)
            except ValueError as error:
                raise Refusal(f"flux-batch: ERROR: line {number}: {error}") from None
    grammar = GRAMMARS["batch"]
    if grammar.parse(words).rest:
        raise Refusal(f"flux-batch: ERROR: directives: unrecognized arguments: {words}", 2)
    return words


async def alloc(flux: Flux, call: Call, parsed: Parsed) -> int:
    """The command is the initial program: on the first host, with a terminal if the caller's stdin is one.

    So documented; without a command it is the caller's shell, and with ``--bg`` none at all.
    """
    background, terminal = "bg" in parsed, call.tty[0]
    shell = call.environ.get("SHELL", "/bin/sh")
    command = parsed.rest or (["sleep", "infinity"] if background else [shell])
    if not parsed.rest and not background and not terminal:
        raise Refusal("flux-alloc: ERROR: an interactive shell needs a terminal")
    shape = of_slots("flux-alloc", parsed)
    name = parsed.get("job-name") or (os.path.basename(command[0]) if parsed.rest else "flux")
    pty = terminal and not background
    job = _submit(flux, call, parsed, _spec(call, parsed, command, shape, name=name, child=True, pty=pty))
    if job is None:
        return 0
    if not background:
        if "verbose" in parsed:
            call.complain(f"jobid: {shown(call, job)}")
        if pty:
            call.tell(raw=True)
        return await attach(call, job)
    call.trap({signal.SIGINT: lambda: job.throw("cancel", "interrupted by ctrl-C")})
    job.feed(b"")
    await job.until(lambda: job.has("start") or not job.active)
    if not job.has("start"):
        note = job.exception.note if job.exception else ""
        raise Refusal(f"flux-alloc: ERROR: {shown(call, job)}: unexpectedly exited {note}")
    call.say(shown(call, job))
    return 0


# -- attaching


async def job_attach(flux: Flux, call: Call, parsed: Parsed) -> int:
    if len(parsed.rest) != 1:
        raise Refusal("flux-job: ERROR: usage: flux job attach [OPTIONS] id")
    job = flux.instance(call).job(job_number_or_refuse(parsed.rest[0]))
    return await attach(call, job, label="label-io" in parsed, read_only="read-only" in parsed)


def job_number_or_refuse(text: str) -> int:
    try:
        return job_number(text)
    except ValueError:
        raise Refusal(f"flux: ERROR: invalid JobID value: {text!r}") from None


async def attach(call: Call, job: Job, *, label: bool = False, read_only: bool = False) -> int:
    """Everything that the job has said and says, its stdin and signals; ends as it does. Dies alone."""
    if not read_only:
        _forward(call, job)
        if not job.spec.input:
            call.read(job.feed)
    said = 0
    for what, name in (("stdout", job.spec.output), ("stderr", job.spec.error or job.spec.output)):
        if name not in ("", "kvs"):
            call.complain(f"0: {what} redirected to {fill(name, job.instance.tags(job))}")
    while True:
        await job.until(lambda: len(job.output) > said or job.has("finish") or not job.active)
        for rank, stream, data in job.output[said:]:
            said += 1
            kind = (job.spec.error or job.spec.output) if stream == 2 else job.spec.output
            if kind in ("", "kvs"):
                call.say(_labelled(rank, data) if label else data, stream)
        await call.drain()
        if said == len(job.output) and (job.has("finish") or not job.active):
            break
    if job.exception:
        call.complain(f"{job.exception.at - job.events[0].at:.3f}s: job.exception {job.exception.note}")
    if job.status is None:
        return 1
    if job.status:
        call.complain(f"flux-job: task(s) exited with exit code {job.status}")
    return max(job.status, 1) if job.exception else job.status


def _labelled(rank: int, data: bytes) -> bytes:
    return b"".join(b"%d: %s" % (rank, line) for line in data.splitlines(keepends=True))


def _forward(call: Call, job: Job) -> None:
    last = [-_TWICE]

    def interrupt() -> None:
        now = time.monotonic()
        if now - last[0] > _TWICE:
            call.complain("flux-job: one more ctrl-C within 2s to cancel or ctrl-Z to detach")
            last[0] = now
        else:
            job.throw("cancel", "interrupted by ctrl-C")

    call.trap({signal.SIGINT: interrupt, **{number: partial(job.send, number) for number in _FORWARDED}})


async def proxy(flux: Flux, call: Call, parsed: Parsed) -> int:
    """A command here, that talks to the instance of a job; its words are joined for a shell."""
    if not parsed.rest:
        raise Refusal("flux-proxy: ERROR: usage: flux proxy JOB [COMMAND...]")
    target, *words = parsed.rest
    job = flux.instance(call).job(job_number_or_refuse(target))
    if job.child is None or not job.active:
        raise Refusal(f"flux-proxy: ERROR: {target}: not a running instance of Flux")
    shell = call.environ.get("SHELL", "/bin/sh")
    argv = ["/bin/sh", "-c", " ".join(words)] if words else [shell]
    call.tell(exec=argv, environ={**call.environ, "FLUX_URI": job.child.uri})
    await asyncio.Event().wait()
    return 0


COMMANDS = {"run": run, "submit": submit, "batch": batch, "alloc": alloc, "job attach": job_attach, "proxy": proxy}
