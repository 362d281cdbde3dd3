"""Level 6: the options of ``zlaunch run``, as one table. The grammar, the help and shell completion read it.

It says how options are spelled and what they take, never what they mean: that is ``job``'s. Only light
modules may be imported here, since ``--help`` waits for them.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ..backends import SCHEDULERS


class Takes(Enum):
    """How many words an option takes."""

    NOTHING = 0
    ONE = 1
    PAIRS = 2
    """One word, whatever it looks like, and then every ``KEY=VALUE`` that follows."""
    MAYBE = 3
    """The next word, unless it begins with a dash or there is none."""


class Option(NamedTuple):
    """One option: all its spellings, the first long one being its name in the help."""

    names: tuple[str, ...]
    metavar: str
    help: str
    takes: Takes = Takes.ONE
    choices: tuple[str, ...] = ()
    repeated: bool = False
    """Whether it may be given more than once; else the last one counts."""

    @property
    def key(self) -> str:
        """The name under which its values are kept: ``procs-per-node``."""
        return next((name[2:] for name in self.names if name.startswith("--")), self.names[0].lstrip("-"))


_SCHEDULERS = tuple(
    word for name in SCHEDULERS for word in (name, f"{name.upper() if len(name) == 3 else name.capitalize()}Scheduler")
)


def flag(*names: str, says: str) -> Option:
    """An option without a value."""
    return Option(names, "", says, Takes.NOTHING)


GROUPS: tuple[tuple[str, tuple[Option, ...]], ...] = (
    (
        "general",
        (
            flag("-h", "--help", says="show this help and leave"),
            flag("-v", "--verbose", says="say what is done, and save the host list as --save-hostlist does"),
            flag("--version", says="print zlaunch's version and leave"),
            flag("--dry-run", says="print what would run on which host, and touch nothing"),
        ),
    ),
    (
        "what to run",
        (
            flag("-m", "--module", says="COMMAND is a Python module, run as by python -m"),
            Option(("-J", "--job-name"), "NAME", "the run's name"),
        ),
    ),
    (
        "size",
        (
            Option(
                ("-N", "--nodes", "--nnodes"),
                "N",
                "hosts: the first N of --hosts or of the job that we are in (default all); else so many are asked for "
                "(default 1)",
            ),
            Option(
                ("-n", "--procs-per-node", "--nproc-per-node"),
                "N",
                "ranks per host: a number; gpu, one per GPU; cpu, one per usable core; auto (default), one per "
                "GPU, or per NUMA domain where no host has any",
            ),
            Option(("--gpus-per-proc",), "K", "GPUs of each rank (default 1)"),
            Option(("-g", "--gpus-at-least"), "G", "as many hosts as have G GPUs; not with -N or -n"),
            Option(("--gpumem-at-least",), "GB", "as many GPUs as have so much memory together"),
            Option(
                ("-p", "--system-params"),
                "K=V",
                "what a node is, where zlaunch does not know it (or knows better): cores_per_node, gpus_per_node, "
                "gpu_arch, mem_per_gpu, numa_domains, scheduler; may be repeated",
                Takes.PAIRS,
                repeated=True,
            ),
        ),
    ),
    (
        "where",
        (
            Option(
                ("--hosts",),
                "A,B:4,U@C",
                "these hosts, over ssh; a number is a host's ranks; [ADDR]:4 with an IPv6 address",
            ),
            Option(("--hostfile",), "FILE", "the hosts of a file, a line each: NAME [slots=N]; # begins a comment"),
            Option(("--ssh-config",), "FILE", "ssh's configuration (default: what ssh reads by itself)"),
            Option(("--python",), "PATH", "the interpreter on other hosts (default: the path of the one here)"),
            Option(("--setup",), "COMMAND", "what their shell does first: 'module load cuda'"),
            Option(("--host-timeout",), "SECONDS", "of silence, after which a host is lost (default 4.5)"),
            Option(("--agent-timeout",), "SECONDS", "the longest wait for hosts to start (default 60)"),
            flag("--local", says="this machine, no scheduler"),
            Option(
                ("--scheduler",),
                "NAME",
                "slurm, flux, lsf (or SlurmScheduler, ...): nodes of its; None, local or LocalScheduler: this machine. "
                "Default: the nodes of the job that we are in; outside of one this machine, unless more is asked for "
                "and a scheduler is configured here",
                choices=("None", "local", "LocalScheduler", *_SCHEDULERS),
            ),
            flag("--standalone", says="as torchrun's: this machine (nothing else is needed)"),
            flag("--save-hostlist", says="write the hosts to hpc_launcher_hostlist.txt"),
        ),
    ),
    (
        "what the scheduler is asked for",
        (
            Option(("-q", "--queue"), "NAME", "the queue, or partition"),
            Option(("--account",), "NAME", "whose time it is"),
            Option(("--reservation",), "NAME", "nodes that are reserved"),
            Option(("--dependency",), "FORM", "wait for other jobs: afterok:ID, afterany:ID,afterok:ID"),
            flag("--exclusive", says="whole nodes, with nobody else's jobs on them"),
            Option(
                ("-x", "--xargs"),
                "K=V",
                "an argument as the scheduler spells it (-x --mem=0), in place of ours of that name; ~ before it takes "
                "it away (-x~--no-kill); a bare NAME=VALUE in capitals is a variable for the ranks; may be repeated",
                Takes.PAIRS,
                repeated=True,
            ),
        ),
    ),
    (
        "batch jobs",
        (
            flag("--bg", says="submit a batch job and return; stdout has its id, and nothing else"),
            Option(("--batch-script",), "FILE", "submit this script of your own; COMMAND and ARGS are its arguments"),
            Option(
                ("-l", "--launch-dir"),
                "[DIR]",
                "where the job's script and its logs go (no DIR: a new one named by the time; ends by -- before "
                "COMMAND). Default: no script, with --bg a new one",
                Takes.MAYBE,
            ),
            Option(("-o", "--output-script"), "FILE", "write the job's script to FILE"),
            flag("--setup-only", says="write the job's script, and print where it is; nothing is started"),
        ),
    ),
    (
        "environment of the ranks",
        (
            Option(
                ("--env",),
                "K=V",
                "set a variable; K alone passes ours on; may be repeated",
                Takes.PAIRS,
                repeated=True,
            ),
            Option(("--env-file",), "FILE", "set the variables of a .env file (--env wins)"),
        ),
    ),
    (
        "PyTorch",
        (
            Option(
                ("-r", "--rdv"),
                "tcp|mpi",
                "how the ranks find each other; mpi: as processes of an MPI world, which the site's MPI starts "
                "(it needs mpi4py)",
                choices=("tcp", "mpi"),
            ),
            Option(
                ("--comm-backend",),
                "NAME",
                "MPI, NCCL, RCCL, or *CCL for whichever the hosts have: sets what the system needs for it",
            ),
            Option(("--fraction-max-gpu-mem",), "F", "let a rank use at most this share of its GPU's memory"),
            flag(
                "-u",
                "--unswap-rocr-hip-vis-dev",
                says="leave ROCR_VISIBLE_DEVICES where it is, out of HIP_VISIBLE_DEVICES",
            ),
        ),
    ),
    (
        "processes",
        (
            Option(
                ("-t", "--time-limit"),
                "MINUTES",
                "end the run after so long, with status 124 (1.5 is fine); the scheduler is asked for a minute more",
            ),
            Option(("--grace",), "SECONDS", "from SIGTERM to SIGKILL (default 30)"),
            flag(
                "--detach",
                says="return when the ranks have started, and print the run's id; it outlives the terminal "
                "(zlaunch ps, attach, logs, stop)",
            ),
            Option(
                ("--bind",),
                "HOW",
                "cores of each rank: core (a share of its own, near its GPU), numa (all of that domain), none or auto "
                "(the default: as core on hosts of several domains)",
                choices=("auto", "core", "numa", "none"),
            ),
            Option(("--max-restarts",), "N", "start a failed run again as a whole, up to N times (default 0)"),
            Option(("--preload",), "A,B", "modules imported once, before the ranks are forked (default torch)"),
            Option(
                ("--start-method",),
                "HOW",
                "fork (the default), or spawn: a new interpreter per rank",
                choices=("fork", "spawn"),
            ),
        ),
    ),
    (
        "output",
        (
            Option(("--out",), "FILE", "the ranks' raw stdout to FILE as well"),
            Option(("--err",), "FILE", "the ranks' raw stderr to FILE as well (may be the same)"),
            flag("--color-stderr", says="stderr in red, on the console only"),
            Option(("--log-dir",), "DIR", "where each rank gets a log file (default zlaunch_logs), or none"),
            Option(("--ranks",), "LIST", "whose lines the console shows: 0,4-7, all or none"),
            Option(
                ("--view",),
                "HOW",
                "auto (live on a terminal, else plain), live, plain, json (an event a line) or none",
                choices=("auto", "live", "plain", "json", "none"),
            ),
        ),
    ),
)

OPTIONS: tuple[Option, ...] = tuple(option for _, options in GROUPS for option in options)

NOT_NEEDED = ("--node-rank", "--master-addr", "--master-port")
"""torchrun's, each with a value, and so is whatever begins with ``--rdzv-``: accepted, with a note."""

_OUTPUT = "not needed here: every rank's output is on the console, and whole in a file of its own (--log-dir)"
_NOTHING = "it is torchrun's, and there is nothing here that needs it: leave it out"
TORCHRUN = {
    "--duplicate-stderr-filters": "--err FILE writes what ranks say on stderr to a file here",
    "--duplicate-stdout-filters": "--out FILE writes what ranks say on stdout to a file here",
    "--event-log-handler": _NOTHING,
    "--local-addr": _NOTHING,
    "--local-ranks-filter": "--ranks chooses whose lines are shown here",
    "--logs-specs": _OUTPUT,
    "--monitor-interval": _NOTHING,
    "--no-python": "not needed here: a COMMAND that does not end in .py is a program",
    "--numa-binding": "it is --bind here: node is numa, exclusive is core",
    "--redirects": _OUTPUT,
    "--role": _NOTHING,
    "--run-path": "not needed here: a COMMAND that ends in .py is a script",
    "--shutdown-timeout": "it is --grace here",
    "--signals-to-handle": "SIGINT, SIGTERM and SIGHUP end a run here, always",
    "--tee": _OUTPUT,
    "--virtual-local-rank": "there is no such thing here: LOCAL_RANK is the rank's number, and its GPU's",
}
"""What to do without torchrun's other options."""


def find(name: str) -> Option | None:
    """The option of this spelling; long ones may have ``_`` for ``-``, as torchrun's have."""
    return _BY_NAME.get(canonical(name))


def canonical(name: str) -> str:
    """``--nproc_per_node`` is ``--nproc-per-node``."""
    return name.replace("_", "-") if name.startswith("--") else name


_BY_NAME = {name: option for option in OPTIONS for name in option.names}
