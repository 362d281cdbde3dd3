"""Level 4: the launch back end of Flux: ``flux exec`` starts agents in an instance, ``flux submit`` a job of them.

In an instance of ours ``flux exec`` is used, since it neither waits for other jobs nor binds what it starts. Outside,
the agents themselves are the job, one on each node: no instance has to come up for them. Words and behaviour are those
of flux-core's manual pages and of a flux-core 0.88.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from ..model import AllocationRequest
from .counts import even
from .dependency import fluxs
from .scheduler import GRANTED, Command, Job, Launch, Nodes, Option, Refused, Scheduler, State, spelled

_ID = r"[\wƒ.]+"
_SHELL: tuple[Option, ...] = (
    ("--unbuffered", None),
    ("-oexit-timeout", "none"),  # else all are killed half a minute after the first has ended
    ("-ocpu-affinity", "off"),  # else an agent, and its ranks, have one core
    ("-ogpu-affinity", "off"),  # else they have no GPU
)
_FOR_EVER = 2**32 - 1
"""Seconds that ``flux job timeleft`` prints for a job without a limit."""
_OF_JOBS = ("--exclusive", "--setattr", "-o")
"""Launch arguments that ``flux exec`` has not: it starts no job."""


class Flux(Scheduler):
    """Flux."""

    name, title, submitter, mark = "flux", "Flux", "flux", "# flux:"
    asked = "flux jobs -a {}"
    aliases: ClassVar[Mapping[str, str]] = spelled("-N=--nodes -q=--queue -B=--bank -t=--time-limit")
    outputs = frozenset(("--output", "--error"))
    inside, of_ranks = '"$(flux getattr jobid)" $(flux hostlist -e instance)', re.compile("-o|--taskmap$|--env")
    unset = ("SLURMD_NODENAME",)  # of a job of Slurm's that the instance is in: each agent would take itself for that
    sets: ClassVar[Mapping[str, str]] = {"FLUX_F58_FORCE_ASCII": "1"}
    patterns: ClassVar[Mapping[str, str]] = {
        "Operation not permitted": "only the owner of a Flux instance may start programs in it"
    }
    chatter = re.compile(r"zlaunch-job |jobid: |.*: (exception|job\.exception).*canceled")

    unknown = re.compile(r"unknown job|job ?id \S+ unknown|no such job")

    def job_in(self, environ: Mapping[str, str]) -> Job | None:
        uri = environ.get("FLUX_URI")
        return Job(environ.get("FLUX_JOB_ID") or uri) if uri else None

    def is_configured(self, environ: Mapping[str, str]) -> bool:
        listens = environ.get("FLUX_URI") or os.path.exists("/run/flux/local")  # many have flux, and another scheduler
        return bool(listens) and shutil.which("flux", path=environ.get("PATH")) is not None

    def nodes_argv(self, job: Job) -> tuple[str, ...]:
        return ("sh", "-c", "flux hostlist -e instance && flux hostlist -e avail")

    def nodes(self, job: Job, answer: str, environ: Mapping[str, str]) -> Nodes:
        """``flux exec`` knows nodes by their place in the instance; one that is down or drained has a place, too."""
        every, _, there = answer.partition("\n")
        up = set(there.split())
        places = [(name, str(rank)) for rank, name in enumerate(every.split()) if name in up]
        unique = dict(reversed(places))  # several brokers of a host: the first
        kept = [(name, rank) for name, rank in places if unique[name] == rank]
        return Nodes(job.id, tuple(name for name, _ in kept), tuple(rank for _, rank in kept))

    # --- starting agents --------------------------------------------------------------------------------------------

    def agents(self, nodes: Nodes, launch: Launch, step: Sequence[Option], environ: Mapping[str, str]) -> Command:
        ranks = ",".join(nodes.ids) or "<ranks>"
        words = self.flat(self.merged([("-r", ranks)], [one for one in step if not one[0].startswith(_OF_JOBS)]))
        return Command(("flux", "exec", *words, launch.shell, "-c", launch.line(self.name)))

    def hold(self, request: AllocationRequest, launch: Launch, environ: Mapping[str, str]) -> Command:
        options = [*self.options(request, environ), ("--tasks-per-node", "1"), *_SHELL]
        words = self.flat(self.merged(self.merged(options, request.extra), request.step))
        task = (
            f'if [ "$FLUX_TASK_RANK" = 0 ]; then echo; echo {GRANTED} "$FLUX_JOB_ID" $(flux hostlist -e local); fi; '
            f"exec >/dev/null; {launch.line(self.name)}"
        )
        _check_templates(task)
        script = (
            f"trap '' INT TERM; job=$(flux submit {shlex.join([*words, launch.shell, '-c', task])}) || exit; "
            'trap - INT TERM; echo "zlaunch-job $job" >&2; exec flux job attach "$job"'
        )
        return Command((launch.shell, "-c", script))

    def ranks(
        self, nodes: Nodes, counts: Sequence[int], program: Sequence[str], step: Sequence[Option], flavour: str
    ) -> Command:
        if list(nodes.ids) != sorted(nodes.ids, key=int):
            why = f"{', '.join(nodes.names)}: Flux numbers ranks in an order of its own"
            raise Refused("rdv mpi", why, "name hosts in the order of flux hostlist instance")
        _check_templates(*program)
        size = [("--nodes", str(len(nodes.names))), ("--tasks-per-node", str(even(self.title, counts)))]
        where = [("--exclusive", None), ("--requires", f"host:{','.join(nodes.names)}")]
        return Command(("flux", "run", *self.flat(self.merged([*size, *where, *_SHELL], step)), *program))

    def attended(self, words: Sequence[str], shell: str, script: str, folder: str) -> Command:
        _check_templates(script)
        return Command(("flux", "alloc", "--verbose", *words, shell, "-c", script))

    # --- a job's life -----------------------------------------------------------------------------------------------

    def job_of(self, said: str) -> str | None:
        found = re.findall(r"^(?:zlaunch-job|jobid:) (\S+)", said, re.M)
        return found[-1] if found else None

    def state_argv(self, job: str) -> tuple[str, ...]:
        return ("flux", "jobs", "-a", "-no", "{state} {result}", job)

    def state(self, answer: str) -> State | None:
        word, _, result = answer.strip().partition(" ")
        return State(word, result.strip(), word == "RUN", word == "INACTIVE") if word else None

    def left_argv(self, job: str) -> tuple[str, ...]:
        return ("flux", "job", "timeleft", *([job] if re.fullmatch(_ID, job) else []))

    def left(self, job: str, answer: str) -> float | None:
        seconds = answer.strip()
        return float(seconds) if seconds.isdecimal() and int(seconds) < _FOR_EVER else None

    def cancel_argv(self, job: str) -> tuple[str, ...]:
        return ("flux", "cancel", job)

    def cluster(self, environ: Mapping[str, str], ask: Callable[[tuple[str, ...]], str]) -> str:
        return environ.get("FLUX_URI", "")  # an instance is known by where it listens, but for the system's own

    def warn_argv(self, job: str) -> tuple[str, ...]:
        return ("flux", "job", "kill", "-s", "SIGTERM", job)

    # --- what is asked for ------------------------------------------------------------------------------------------

    def options(self, request: AllocationRequest, environ: Mapping[str, str], *, own: bool = False) -> list[Option]:
        """Whole nodes, with all their cores and GPUs: their agents share them out."""
        if request.reservation is not None:
            raise Refused("reservation", f"{request.reservation}: Flux has no reservations", "leave it out")
        found: dict[str, object] = {
            "--nodes": request.nodes or (None if own else 1),
            "--job-name": request.name or None,
            "--queue": request.queue,
            "--bank": request.account,
            "--time-limit": None if request.minutes is None else f"{request.minutes}m",
        }
        options: list[Option] = [(name, str(value)) for name, value in found.items() if value is not None]
        options += [("--dependency", words) for words in fluxs(request.dependency, _ID)]
        return options + ([] if own and not request.exclusive else [("--exclusive", None)])

    # --- batch jobs -------------------------------------------------------------------------------------------------

    def place_options(self, folder: str, out: str | None, err: str | None) -> list[Option]:
        files = {"--output": out, "--error": err}
        if "{{" in f"{out} {err}":
            raise Refused("launch-dir", f"{out}: Flux would take this for one of its templates", "name another folder")
        return [("--cwd", folder), *((name, path) for name, path in files.items() if path is not None)]

    def merged(self, options: Sequence[Option], extra: Sequence[Option]) -> list[Option]:
        return super().merged(options, [*map(_named, extra)])

    def flat(self, options: Sequence[Option]) -> list[str]:
        words: list[str] = []
        for name, value in options:  # -o exit-timeout=none
            is_shell = name.startswith("-o") and len(name) > 2
            words += ["-o", f"{name[2:]}={value}" if value else name[2:]] if is_shell else super().flat([(name, value)])
        return words

    def directive(self, option: Option) -> str:
        return shlex.join(self.flat([option]))

    def submit_argv(self, path: str, words: Sequence[str] = (), arguments: Sequence[str] = ()) -> tuple[str, ...]:
        return ("flux", "batch", *words, path, *arguments)

    def job_id(self, answer: str) -> str | None:
        last = answer.strip().rsplit("\n", 1)[-1]
        return last if re.fullmatch(_ID, last) else None


def _check_templates(*words: str) -> None:
    if any("{{" in word for word in words):
        raise Refused("setup", "Flux would take {{ for one of its templates", "say it otherwise")


def _named(option: Option) -> Option:
    """``-o cpu-affinity=on`` as an option of that name: there are many, and each is one of its own."""
    name, value = option
    if name.lstrip("~") != "-o" or not value:
        return option
    key, _, rest = value.partition("=")
    return f"{name}{key}", rest or None
