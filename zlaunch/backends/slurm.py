"""Level 4: the launch back end of Slurm: one srun starts the agents of all nodes of a job, salloc asks for one.

srun's words and variables are those of its manual page (srun(1), salloc(1), sbatch(1)) and of a Slurm 22.05.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from ..model import AllocationRequest
from .counts import one_by_one, sorted_and_even
from .dependency import slurms
from .scheduler import GRANTED, Command, Job, Launch, Nodes, Option, Scheduler, State, spelled

_SAFE = re.compile(r"[\w@%+=:,./~?\[\]-]*", re.ASCII)
_OVER = re.compile(
    "BOOT_FAIL|CANCELLED|COMPLETED|DEADLINE|FAILED|LAUNCH_FAILED|NODE_FAIL|OUT_OF_MEMORY|PREEMPTED|RECONFIG_FAIL|"
    "REVOKED|TIMEOUT"
)
_MPI = {"openmpi": "pmix", "mpich": "pmi2"}  # of one that nobody knows Slurm has a default
_COUNT, _NODELIST = '"$SLURM_JOB_NUM_NODES"', '"$SLURM_JOB_NODELIST"'
"""As a shell in the job has them."""


class Slurm(Scheduler):
    """Slurm."""

    name, title, submitter, mark = "slurm", "Slurm", "sbatch", "#SBATCH"
    asked = "squeue -t all -j {}"
    aliases: ClassVar[Mapping[str, str]] = spelled(
        "-A=--account -d=--dependency -J=--job-name -n=--ntasks -N=--nodes -p=--partition -t=--time"
    )
    outputs = frozenset(("-o", "--output", "-e", "--error"))
    of_steps = frozenset(("--mpi", "--cpu-bind", "--kill-on-bad-exit", "--overlap", "--label", "--mpibind", "--exact"))
    unset = (
        *("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU"),  # of both kinds: a fatal error
        *("SLURM_CPU_BIND", "SLURM_CPU_BIND_LIST", "SLURM_CPU_BIND_TYPE", "SLURM_CPU_BIND_VERBOSE", "SLURM_GPU_BIND"),
        *(f"SLURM_NTASKS{of}" for of in ("", *map("_PER_{}".format, ("NODE", "CORE", "SOCKET", "GPU", "TRES")))),
        *("SLURM_NPROCS", "SLURM_TASKS_PER_NODE", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"),
        *("SLURM_DISTRIBUTION", "SLURM_EXPORT_ENV"),  # an export of few variables leaves agents without a PATH
        *("SLURM_EXCLUSIVE", "SLURM_STDINMODE", "SLURM_STDOUTMODE", "SLURM_STDERRMODE"),
    )
    patterns: ClassVar[Mapping[str, str]] = {
        "Requested node configuration is not available": "Slurm does not start anything there",
        "Invalid node name": "Slurm does not start anything there",
        "Invalid MPI type": "srun --mpi=list says which MPI this Slurm can start, and -x --mpi=NAME chooses one",
    }
    chatter = re.compile(
        r"salloc: (Granted|Pending|Waiting|Nodes|job \d+ (queued|has been allocated)|Relinquish)|srun: cluster config"
    )

    unknown = re.compile(r"invalid job ?id")
    away = re.compile(r"-M|--clusters?$")

    def job_in(self, environ: Mapping[str, str]) -> Job | None:
        job, nodes = environ.get("SLURM_JOB_ID"), environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
        count = environ.get("SLURM_JOB_NUM_NODES", "")
        return Job(job, nodes, int(count) if count.isdecimal() else 0) if job and nodes else None

    def is_configured(self, environ: Mapping[str, str]) -> bool:
        there = environ.get("SLURM_CONF") or os.path.exists("/etc/slurm/slurm.conf")
        return bool(there) and shutil.which("sbatch", path=environ.get("PATH")) is not None

    def nodes_argv(self, job: Job) -> tuple[str, ...]:
        return ("scontrol", "show", "hostnames", job.nodes)

    def nodes(self, job: Job, answer: str, environ: Mapping[str, str]) -> Nodes:
        return Nodes(job.id, tuple(answer.split()))

    # --- starting agents --------------------------------------------------------------------------------------------

    def agents(self, nodes: Nodes, launch: Launch, step: Sequence[Option], environ: Mapping[str, str]) -> Command:
        options = _step(str(len(nodes.names)), ",".join(nodes.names), _gpus(environ))
        words = self.flat(self.merged([("--jobid", nodes.job), *options], step))
        return Command(("srun", *words, launch.shell, "-c", launch.line(self.name)))

    def hold(self, request: AllocationRequest, launch: Launch, environ: Mapping[str, str]) -> Command:
        options = self.merged(_step(_COUNT, _NODELIST, None), request.step)
        words = [f"{o}={v}" if v in (_COUNT, _NODELIST) else shlex.join(self.flat([(o, v)])) for o, v in options]
        script = (
            f'echo; echo {GRANTED} "$SLURM_JOB_ID" $(scontrol show hostnames "$SLURM_JOB_NODELIST"); '
            f"unset {' '.join(self.unset)}; "
            f"exec srun {' '.join(words)} {launch.shell} -c {shlex.quote(launch.line(self.name))} >/dev/null"
        )
        return Command(("salloc", *self.words(request, environ), launch.shell, "-c", script))

    def ranks(
        self, nodes: Nodes, counts: Sequence[int], program: Sequence[str], step: Sequence[Option], flavour: str
    ) -> Command:
        each = str(counts[0]) if sorted_and_even(nodes, counts) else None
        names = ",".join(nodes.names if each else one_by_one(nodes, counts))
        options = [("--jobid", nodes.job), *_beside(str(len(nodes.names)), str(sum(counts)), names)]
        options += [("--ntasks-per-node", each), ("--distribution", "block" if each else "arbitrary")][not each :]
        options += [("--overcommit", None), ("--cpu-bind", "none"), *([("--mpi", _MPI[flavour])] if flavour else [])]
        return Command(("srun", *self.flat(self.merged(options, step)), *program))

    def job_of(self, said: str) -> str | None:
        found = re.findall(r"salloc: (?:Pending job|Granted job|job) (?:allocation )?(\d+)", said)
        return found[-1] if found else None

    def state_argv(self, job: str) -> tuple[str, ...]:
        return ("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r")

    def state(self, answer: str) -> State | None:
        word, _, why = answer.strip().partition("|")
        why = "" if why == "None" else why
        return State(word, why, word == "RUNNING", bool(_OVER.fullmatch(word))) if word else None

    def left_argv(self, job: str) -> tuple[str, ...]:
        return ("squeue", "--noheader", f"--jobs={job}", "--format=%A|%L")

    def left(self, job: str, answer: str) -> float | None:
        """Of an array, or a heterogeneous job, there are several lines."""
        rest = next((line.partition("|")[2] for line in answer.splitlines() if line.startswith(f"{job}|")), "")
        found = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", rest.strip())  # D-HH:MM:SS
        if found is None:
            return None  # UNLIMITED, for one
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds

    def cancel_argv(self, job: str) -> tuple[str, ...]:
        return ("scancel", job)

    def cluster(self, environ: Mapping[str, str], ask: Callable[[tuple[str, ...]], str]) -> str:
        named = environ.get("SLURM_CLUSTER_NAME")
        found = None if named else re.search(r"^ClusterName\s*=\s*(\S+)", ask(("scontrol", "show", "config")), re.M)
        return named or (found[1] if found else "")

    def sent_to(self, answer: str) -> str:
        return answer.strip().rsplit("\n", 1)[-1].partition(";")[2]

    def warn_argv(self, job: str) -> tuple[str, ...]:
        return ("scancel", "--batch", "--signal=TERM", job)

    # --- what is asked for ------------------------------------------------------------------------------------------

    def options(self, request: AllocationRequest, environ: Mapping[str, str], *, own: bool = False) -> list[Option]:
        ranks = request.ranks_per_node or (None if own else 1)
        found: dict[str, object] = {
            "--nodes": request.nodes or (None if own else 1),
            "--ntasks-per-node": ranks,
            "--job-name": request.name or None,
            "--partition": request.queue,
            "--account": request.account,
            "--reservation": request.reservation,
            "--dependency": slurms(request.dependency),
            "--time": request.minutes,
        }
        options: list[Option] = [(name, str(value)) for name, value in found.items() if value is not None]
        options += [("--exclusive", None)] if request.exclusive else []
        options += [] if own else [("--no-kill", None)]  # a node that is lost takes none of the others along
        options += [("--gpus-per-node", str(request.gpus_per_node))] if request.gpus_per_node else []
        return options

    # --- batch jobs -------------------------------------------------------------------------------------------------

    def place_options(self, folder: str, out: str | None, err: str | None) -> list[Option]:
        files = {"--output": out, "--error": err}
        return [("--chdir", folder), *((k, v.replace("%", "%%")) for k, v in files.items() if v is not None)]

    def directive(self, option: Option) -> str:
        name, value = option
        if value is None:
            return name
        if not _SAFE.fullmatch(value):  # quotes hold a word together, a backslash takes the next character as it is
            value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"{name}{'=' if name.startswith('--') else ' '}{value}"

    def submit_argv(self, path: str, words: Sequence[str] = (), arguments: Sequence[str] = ()) -> tuple[str, ...]:
        return ("sbatch", "--parsable", *words, path, *arguments)

    def job_id(self, answer: str) -> str | None:
        last = answer.strip().rsplit("\n", 1)[-1].partition(";")[0]  # a cluster's name may stand behind
        return last if last.isdecimal() else None


def _beside(nodes: str, tasks: str, nodelist: str) -> list[Option]:
    """srun's arguments for tasks beside others of the job; a node, or task, that is lost takes none of them along."""
    alone: list[Option] = [("--overlap", None), ("--no-kill", None), ("--kill-on-bad-exit", "0"), ("--wait", "0")]
    return [*alone, ("--nodes", nodes), ("--ntasks", tasks), ("--nodelist", nodelist)]


def _step(count: str, nodelist: str, gpus: str | None) -> list[Option]:
    """For one agent on each node."""
    options = [*_beside(count, count, nodelist), ("--ntasks-per-node", "1"), ("--cpu-bind", "none"), ("--mpi", "none")]
    return options + ([("--gres", f"gpu:{gpus}")] if gpus else [])


def _gpus(environ: Mapping[str, str]) -> str | None:
    """A node's GPUs in a job that shares them out to its tasks: else an agent, which is one task, would see one's."""
    each, tasks = environ.get("SLURM_GPUS_PER_TASK", ""), environ.get("SLURM_NTASKS_PER_NODE", "1")
    if not each.isdecimal() or not tasks.isdecimal():
        return None
    return environ.get("SLURM_GPUS_ON_NODE") or str(int(each) * int(tasks))  # salloc does not set the former
