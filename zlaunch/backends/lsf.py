"""Level 4: the launch back end of LSF: blaunch, or jsrun on CORAL systems, starts the agents of a job's hosts.

Both are known by IBM's documentation only. Where it does not say how they pass stdin and arguments on, nothing depends
on it: the agents' line, and the commands, go through files in a folder that the hosts share.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..model import AllocationRequest
from .counts import even, mpirun
from .dependency import lsfs
from .scheduler import GRANTED, KEYS, Command, Job, Launch, Nodes, Option, Refused, Scheduler, State

_JSRUN = ("env", "-u", "TMPDIR", "jsrun")  # which ends at once in an environment with a TMPDIR
_EACH = (("--rs_per_host", "1"), ("--tasks_per_rs", "1"), ("--bind", "none"), ("--exit_on_error", "0"))
_AGENT = (("--cpu_per_rs", "ALL_CPUS"), ("--gpu_per_rs", "ALL_GPUS"), ("--smpiargs", "off"))
"""One agent on each host, with all of it; one that ends takes none of the others along."""
_NO_NODE = "*batch*|*login*"
"""Names of hosts that have a slot and are no compute nodes, as CORAL's jobs have one first."""


class Lsf(Scheduler):
    """LSF."""

    name, title, submitter, mark = "lsf", "LSF", "bsub", "#BSUB"
    asked = "bjobs {}"
    outputs = frozenset(("-o", "-oo", "-e", "-eo"))
    of_steps = frozenset(("--bind", "--smpiargs"))
    inside, of_ranks = '"$LSB_JOBID" $LSB_MCPU_HOSTS', re.compile("--")  # bsub has no long options
    reads_script, stdin_is_link = True, False
    sets: ClassVar[Mapping[str, str]] = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # mpirun
    chatter = re.compile(r"<<(Waiting for dispatch|Starting on)|Job <\d+> is submitted")

    unknown = re.compile(r"is not found")

    def job_in(self, environ: Mapping[str, str]) -> Job | None:
        job, hosts = environ.get("LSB_JOBID"), _hosts(environ)
        return Job(job, " ".join(hosts), len(hosts)) if job and hosts else None

    def is_configured(self, environ: Mapping[str, str]) -> bool:
        return shutil.which("bsub", path=environ.get("PATH")) is not None

    def nodes_argv(self, job: Job) -> tuple[str, ...]:
        return ()

    def nodes(self, job: Job, answer: str, environ: Mapping[str, str]) -> Nodes:
        return Nodes(job.id, tuple(job.nodes.split()))

    # --- starting agents --------------------------------------------------------------------------------------------

    def agents(self, nodes: Nodes, launch: Launch, step: Sequence[Option], environ: Mapping[str, str]) -> Command:
        start = self._start(launch, step, environ, str(len(nodes.names)), shlex.quote(" ".join(nodes.names)))
        return Command(("sh", "-c", start), _agent_script(launch))

    def hold(self, request: AllocationRequest, launch: Launch, environ: Mapping[str, str]) -> Command:
        start = self._start(launch, request.step, environ, "$#", '"$*"')
        script = (
            "#!/bin/sh\n"
            'nodes=\nset -- $LSB_MCPU_HOSTS\n[ -z "$CSM_ALLOCATION_ID" ] || shift 2\n'
            f'while [ $# -gt 1 ]; do\n    case $1 in {_NO_NODE}) ;; *) nodes="$nodes $1" ;; esac\n    shift 2\ndone\n'
            f'set -- $nodes\necho\necho {GRANTED} "$LSB_JOBID" "$@"\n{start}\n'
        )
        argv = ("bsub", "-I", *self.words(request, environ), f"{launch.folder}/job.sh")
        return Command(argv, {"job.sh": script, **_agent_script(launch)})

    def ranks(
        self, nodes: Nodes, counts: Sequence[int], program: Sequence[str], step: Sequence[Option], flavour: str
    ) -> Command:
        if _is_coral(os.environ):
            if len(nodes.names) != (len(_hosts(os.environ)) or len(nodes.names)):
                raise Refused("rdv mpi", "jsrun chooses the hosts of MPI processes itself", "use all hosts of the job")
            size = [("--nrs", str(len(nodes.names))), ("--tasks_per_rs", str(even("jsrun", counts)))]
            options = self.merged(self.merged([*_EACH, ("--cpu_per_rs", "1")], size), step)
            return Command((*_JSRUN, *self.flat(options), *program))
        more = [word for option in step if option[0] not in self.of_steps for word in option if word]
        return Command((*mpirun(nodes, counts, flavour, hydra="lsf", rsh="blaunch"), *more, *program))

    def attended(self, words: Sequence[str], shell: str, script: str, folder: str) -> Command:
        argv = ("bsub", "-I", *words, "exec", f"{folder}/job.sh")  # else a signal for it would end a shell before it
        return Command(argv, {"job.sh": f"#!/usr/bin/env {shell}\n{script}"})

    def _start(self, launch: Launch, step: Sequence[Option], environ: Mapping[str, str], count: str, hosts: str) -> str:
        """In a shell: keep the line in a file, and start the agents; ``count`` and ``hosts`` as the shell has them."""
        folder = launch.folder
        if not re.fullmatch(r"[\w./+-]+|<folder>", folder):
            why = f"{folder}: nobody says how bsub and blaunch pass such a name on"
            raise Refused("the folder for LSF's files", why, "set XDG_CACHE_HOME to one without odd characters")
        if _is_coral(environ):
            rest: list[Option] = [("--cpu_per_rs", str(min(_slots(environ)) - 1))] if launch.mpi else []  # for callers
            options = self.merged(self.merged([*_EACH, *_AGENT], rest), step)
            argv = f"{' '.join(_JSRUN)} --nrs={count} {shlex.join(self.flat(options))}"
        else:
            argv = f"blaunch {shlex.join(self.flat(self.merged([('-n', None)], step)))} -z {hosts}"
        # LSF's warning of a time limit is for zlaunch: it would end blaunch, and that all agents, before their ranks.
        return f"trap '' USR2; (umask 077; head -n 1 >{folder}/{KEYS}) && exec {argv} {folder}/agent.sh >/dev/null"

    # --- a job's life -----------------------------------------------------------------------------------------------

    def job_of(self, said: str) -> str | None:
        found = re.findall(r"Job <(\d+)> is submitted", said)
        return found[-1] if found else None

    def state_argv(self, job: str) -> tuple[str, ...]:
        return ("bjobs", "-noheader", "-o", "stat exit_code pend_reason delimiter='^'", job)

    def state(self, answer: str) -> State | None:
        word, code, why = (*answer.strip().split("^", 2), "", "")[:3]
        if not re.fullmatch(r"[A-Z]+", word):
            return None  # Job <1> is not found
        why = f"status {code}" if code.isdecimal() else why.strip("-; ")
        return State(word, why, word == "RUN", word in ("DONE", "EXIT", "ZOMBI"))

    def left_argv(self, job: str) -> tuple[str, ...]:
        return ("bjobs", "-noheader", "-o", "time_left", job)

    def left(self, job: str, answer: str) -> float | None:
        found = re.match(r"(\d+):(\d+) L", answer.strip())  # E is an estimate, and no limit
        return (int(found[1]) * 60 + int(found[2])) * 60.0 if found else None

    def cancel_argv(self, job: str) -> tuple[str, ...]:
        return ("bkill", job)

    def warn_argv(self, job: str) -> tuple[str, ...]:
        return ("bkill", "-s", "TERM", job)

    # --- what is asked for ------------------------------------------------------------------------------------------

    def options(self, request: AllocationRequest, environ: Mapping[str, str], *, own: bool = False) -> list[Option]:
        coral = _is_coral(environ)
        options: list[Option] = []
        if request.nodes or not own:
            nodes, slots = request.nodes or 1, request.ranks_per_node or 1
            options += (
                [("-nnodes", str(nodes))] if coral else [("-n", str(nodes * slots)), ("-R", f"span[ptile={slots}]")]
            )
        if request.gpus_per_node and not coral:
            options += [("-gpu", f"num={request.gpus_per_node}:mode=shared:j_exclusive=yes")]
        found = {
            "-J": re.sub(r"[][]", "_", request.name) or None,  # brackets would make an array of jobs of it
            "-q": request.queue,
            "-G" if coral else "-P": request.account,
            "-U": request.reservation,
            "-w": lsfs(request.dependency),
            "-W": None if request.minutes is None else str(request.minutes),
        }
        options += [(name, value) for name, value in found.items() if value is not None]
        return options + ([("-x", None)] if request.exclusive else [])

    # --- batch jobs -------------------------------------------------------------------------------------------------

    def place_options(self, folder: str, out: str | None, err: str | None) -> list[Option]:
        files = {"-oo": out, "-eo": err}  # these overwrite, where -o and -e append
        if re.search("%[JI]", f"{out} {err}"):
            raise Refused("launch-dir", f"{out}: LSF puts numbers in place of %J and %I", "name another folder")
        return [("-cwd", folder), *((name, path) for name, path in files.items() if path is not None)]

    def directive(self, option: Option) -> str:
        return shlex.join(self.flat([option]))

    def submit_argv(self, path: str, words: Sequence[str] = (), arguments: Sequence[str] = ()) -> tuple[str, ...]:
        if arguments:
            raise Refused(
                "batch-script", "LSF reads its #BSUB lines on stdin, and then it takes no arguments", "leave them out"
            )
        return ("bsub", *words)

    def job_id(self, answer: str) -> str | None:
        return self.job_of(answer)


def _agent_script(launch: Launch) -> dict[str, str]:
    return {"agent.sh": f"#!/usr/bin/env {launch.shell}\nexec <{launch.folder}/{KEYS}\n{launch.line('lsf')}\n"}


def _is_coral(environ: Mapping[str, str]) -> bool:
    """Whether jsrun starts programs here: then jobs are of whole nodes, and begin on a node that is not one of them."""
    return "CSM_ALLOCATION_ID" in environ or shutil.which("jsrun", path=environ.get("PATH")) is not None


def _hosts(environ: Mapping[str, str]) -> list[str]:
    """Of the job that we are in, from ``LSB_MCPU_HOSTS``: ``a 4 b 4``."""
    names = environ.get("LSB_MCPU_HOSTS", "").split()[::2]
    if environ.get("CSM_ALLOCATION_ID"):
        names = names[1:]
    return [name for name in dict.fromkeys(names) if "batch" not in name and "login" not in name]


def _slots(environ: Mapping[str, str]) -> list[int]:
    """Of each of these hosts; on CORAL systems, its cores."""
    words = environ.get("LSB_MCPU_HOSTS", "").split()
    names = _hosts(environ)
    return [int(n) for name, n in zip(words[::2], words[1::2], strict=False) if name in names] or [2]
