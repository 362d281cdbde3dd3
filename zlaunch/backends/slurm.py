"""Level 4: the launch back end of Slurm: one srun starts the agents of all nodes of an allocation.

Where we are in no job, salloc asks for one. It runs a command for as long as the allocation is wanted: one that says
which nodes were given, and then reads its stdin to the end, which comes when we let go, however we do.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..model import AgentCommand, AllocationRequest, HostPlan
from ..systems.interpreter import remote_code

UNWANTED = (
    "SLURM_MEM_PER_*",
    "SLURM_CPU_BIND*",
    "SLURM_GPU_BIND",
    "SLURM_TRES_PER_TASK",
    "SLURM_NTASKS*",
    "SLURM_NPROCS",
    "SLURM_TASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_PER_TASK",
    "SLURM_DISTRIBUTION",
    "SLURM_EXPORT_ENV",
)
"""What a job's own environment says to every srun in it, and would bend ours: memory of both kinds is a fatal error,
counts of tasks are taken for the step's, and an export of few variables would leave agents without a PATH (srun(1))."""

GRANTED = 'echo "$SLURM_JOB_ID $SLURM_JOB_NODELIST"; exec cat >/dev/null'
"""What salloc runs: it tells, and stays until its stdin ends."""


class Job(NamedTuple):
    """A job that we are in."""

    id: str
    nodes: str
    """As Slurm writes them: ``node[1-3,7]``."""
    size: int
    """How many these are; 0 where Slurm does not say."""


def job_in(environ: Mapping[str, str]) -> Job | None:
    """The job that we are in; ``None`` where we are in none."""
    job, nodes = environ.get("SLURM_JOB_ID"), environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    count = environ.get("SLURM_JOB_NUM_NODES", "")
    return Job(job, nodes, int(count) if count.isdecimal() else 0) if job and nodes else None


def names_argv(nodes: str) -> tuple[str, ...]:
    """What prints the names in ``node[1-3,7]``, one a line."""
    return ("scontrol", "show", "hostnames", nodes)


def state_argv(job: str) -> tuple[str, ...]:
    """What prints a job's state and why it is not another one: ``PENDING (Resources)``."""
    return ("squeue", "--noheader", "--jobs", job, "--format=%T (%r)")


def cancel_argv(job: str) -> tuple[str, ...]:
    """What ends a job."""
    return ("scancel", job)


def allocate_argv(request: AllocationRequest) -> tuple[str, ...]:
    """What asks for nodes, and gives them back when its stdin ends."""
    return ("salloc", *allocation_words(request), "sh", "-c", GRANTED)


def allocation_words(request: AllocationRequest, *, defaults: bool = True, extra: bool = True) -> list[str]:
    """The arguments of salloc and sbatch that say what is asked for.

    Args:
        request: what is.
        defaults: whether what was not said is said, too: one node, a task on each, and a job that goes on without a
            node that is lost.
        extra: whether the user's own arguments come behind, and in place of ours.
    """
    options: dict[str, str | None] = {
        "--nodes": str(request.nodes or 1) if defaults or request.nodes else None,
        "--ntasks-per-node": "1" if defaults else None,
        "--job-name": request.name or None,
        "--partition": request.queue,
        "--account": request.account,
        "--reservation": request.reservation,
        "--dependency": request.dependency,
        "--time": None if request.minutes is None else str(request.minutes),
    }
    words = [f"{name}={value}" for name, value in options.items() if value is not None]
    words += ["--exclusive"] if request.exclusive else []
    words += ["--no-kill"] if defaults else []
    return overridden(words, request.extra) if extra else words


def agents_command(
    hosts: Sequence[HostPlan], job: str, environ: Mapping[str, str], *, python: str, setup: str | None
) -> AgentCommand:
    """How the agents of a job's nodes are started, all at once; a node that is lost takes none of the others along."""
    code = ["exec", python, "-c", remote_code("zlaunch.agent.main:main"), "zlaunch-agent:slurm"]
    line = " ".join([code[0], *map(shlex.quote, code[1:])])
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    argv = [
        "srun",
        f"--jobid={job}",
        "--overlap",
        "--no-kill",
        "--kill-on-bad-exit=0",
        "--wait=0",
        f"--nodes={len(hosts)}",
        f"--ntasks={len(hosts)}",
        "--ntasks-per-node=1",
        f"--nodelist={_nodelist(hosts, environ)}",
        "--cpu-bind=none",
        "--mpi=none",
        *([f"--gres=gpu:{gpus}"] if gpus.isdecimal() and int(gpus) > 0 else []),
        *("sh", "-c", f"{setup} && {line}" if setup else line),
    ]
    return AgentCommand(
        hosts=tuple(host.index for host in hosts),
        argv=tuple(argv),
        env=without_unwanted(environ),
        cwd=None,
        stdin_is_link=True,
    )


def _nodelist(hosts: Sequence[HostPlan], environ: Mapping[str, str]) -> str:
    """Their names; of nodes that are only shown, and have none yet, as Slurm writes those of the job that we are in."""
    if not any(host.name.startswith("<") for host in hosts):
        return ",".join(host.name for host in hosts)
    found = job_in(environ)
    if found is None:
        return "<its nodes>"
    return found.nodes if found.size == len(hosts) else f"<the first {len(hosts)} of {found.nodes}>"


def without_unwanted(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which srun does as its arguments say."""
    starts = tuple(name[:-1] for name in UNWANTED if name.endswith("*"))
    return {key: value for key, value in environ.items() if key not in UNWANTED and not key.startswith(starts)}


def explain(status: int | None, said: str) -> str:
    """Why the agents of a job did not come, in srun's own words."""
    words = f"; srun said:\n{said}" if said else ""
    if status is None:
        return f"its agent has not come in time{words}"
    if "Requested node configuration is not available" in said or "Invalid node name" in said:
        return f"Slurm does not start anything there{words}"
    if "ModuleNotFoundError" in said or "there is no zlaunch" in said:
        return f"zlaunch is not installed there: pip install it for the same Python, or name another by --python{words}"
    return f"srun ended with status {status} before its agent had connected{words}"


def overridden(words: Sequence[str], extra: Sequence[tuple[str, str | None]]) -> list[str]:
    """The user's own arguments win over ours of the same name, and one with ``~`` before it only removes.

    Each stands where that of its name stood; a new one comes last.
    """
    kept = list(words)
    for name, value in extra:
        long = _LONG.get(name.lstrip("~"), name.lstrip("~"))
        word = long if value is None else f"{long}={value}" if long.startswith("--") else f"{long}{value}"
        places = [i for i, other in enumerate(kept) if other.partition("=")[0] == long]
        at = places[0] if places else len(kept)
        kept[at : at + len(places)] = [] if name.startswith("~") else [word]
    return kept


_LONG = {
    "-A": "--account",
    "-c": "--cpus-per-task",
    "-d": "--dependency",
    "-G": "--gpus",
    "-J": "--job-name",
    "-n": "--ntasks",
    "-N": "--nodes",
    "-p": "--partition",
    "-t": "--time",
}
"""So that ``-x -N=2`` takes the place of our ``--nodes``; the value of any other letter follows it directly."""
