"""Level 4: what a batch scheduler is to us: a table of its own names, over one way of working that all of them share.

*Inside of a job* one command starts the agents of all its nodes. *Outside* one command asks for nodes, and does the
same on them as soon as it has them: it says ``GRANTED``, the job's id and the nodes' names in a line on its stdout, and
then reads the agents' line on its stdin. *As a batch job* a script that runs zlaunch is submitted.

A new scheduler is one more module with a subclass of ``Scheduler``, and one more word in ``backends.SCHEDULERS``.
"""

from __future__ import annotations

import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, TypeAlias

from ..model import AllocationRequest
from ..systems.interpreter import remote_code

GRANTED = "zlaunch-nodes"
"""The first word of the line with which nodes are told of."""
KEYS = "keys"
"""The file in ``Launch.folder`` with the agents' line, where stdin does not reach them; of mode 0600."""

Option: TypeAlias = tuple[str, str | None]
"""An argument as the scheduler spells it, with its value or none; a ``~`` before the name takes it away."""


class Job(NamedTuple):
    """A job that we are in."""

    id: str
    nodes: str = ""
    """As the scheduler writes them, where it does: ``node[1-3,7]``."""
    size: int = 0
    """How many these are; 0 where the environment does not say."""


class Nodes(NamedTuple):
    """The nodes of a job, in its order."""

    job: str
    names: tuple[str, ...]
    ids: tuple[str, ...] = ()
    """What the scheduler calls them, where that is not their name."""


class State(NamedTuple):
    """Where a job stands."""

    word: str
    """The scheduler's own."""
    why: str = ""
    """Why it is not another one, where that is told."""
    runs: bool = False
    over: bool = False

    def __str__(self) -> str:
        return f"{self.word} ({self.why})" if self.why else self.word


class Launch(NamedTuple):
    """How an agent is started on a node."""

    python: str
    setup: str | None = None
    folder: str = "<folder>"
    """That all nodes see, and only we may read: for files that a command needs. Without any it is not made."""
    mpi: bool = False
    """Whether MPI processes are to be started beside it, by ``Scheduler.ranks``."""

    @property
    def shell(self) -> str:
        """Which shell runs it: what sites have users type, ``module load``, is a function of bash's as a rule."""
        return "bash" if self.setup else "sh"

    def line(self, scheduler: str) -> str:
        """What that runs; ``scheduler`` is for people who look at processes."""
        code = [self.python, "-c", remote_code("zlaunch.agent.main:main"), f"zlaunch-agent:{scheduler}"]
        line = f"exec {shlex.join(code)}"
        return f"{{ {self.setup}\n}} </dev/null && {line}" if self.setup else line


class Command(NamedTuple):
    """What starts agents."""

    argv: tuple[str, ...]
    files: Mapping[str, str] = {}
    """Scripts that it needs, by their names in ``Launch.folder``."""


class Refused(ValueError):
    """The scheduler has no such thing.

    Attributes:
        about: the option of ours that asks for it: ``dependency``.
        message: what is wrong with its value.
        hint: what to do.
    """

    def __init__(self, about: str, message: str, hint: str) -> None:
        super().__init__(f"{about}: {message}; {hint}")
        self.about, self.message, self.hint = about, message, hint


class Scheduler(ABC):
    """One of them."""

    name: ClassVar[str]
    """As users write it: ``slurm``."""
    title: ClassVar[str]
    """As it is written: ``Slurm``."""
    submitter: ClassVar[str]
    """The program that submits a batch job: who has it has the scheduler."""
    mark: ClassVar[str]
    """What a directive in a script begins with."""
    asked: ClassVar[str]
    """What a person types to see where a job stands, with ``{}`` for its id."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings of arguments that we set ourselves, and the ones that we write."""
    outputs: ClassVar[frozenset[str]]
    """Arguments by which a batch job's output goes elsewhere."""
    of_steps: ClassVar[frozenset[str]] = frozenset()
    """Arguments that only the command which starts programs within a job understands."""
    inside: ClassVar[str] = ""
    """The id and the nodes of a job, as a shell in it has them, where MPI processes are started from inside only."""
    of_ranks: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    """Arguments that only the command understands which starts MPI processes."""
    stdin_is_link: ClassVar[bool] = True
    """Whether agents read the stdin of the command that starts them, to its end."""
    reads_script: ClassVar[bool] = False
    """Whether the submitter reads the script on its stdin."""
    unset: ClassVar[tuple[str, ...]] = ()
    """Variables that would bend what our commands say."""
    sets: ClassVar[Mapping[str, str]] = {}
    """Variables with which its commands answer as we expect."""
    patterns: ClassVar[Mapping[str, str]] = {}
    """What may be found in the last words of a command that failed, and what it means."""
    chatter: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    """Lines on a command's stderr that say nothing of a failure."""
    unknown: ClassVar[re.Pattern[str]]
    """What a command says that does not know a job, whatever the case of its letters."""
    away: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    """Arguments that put a batch job to another cluster than the one that we are on."""

    # --- where we are -----------------------------------------------------------------------------------------------

    @abstractmethod
    def job_in(self, environ: Mapping[str, str]) -> Job | None:
        """The job that we are in; ``None`` where we are in none."""

    @abstractmethod
    def is_configured(self, environ: Mapping[str, str]) -> bool:
        """Whether its commands would find a cluster here. Looks, and asks nobody."""

    @abstractmethod
    def nodes_argv(self, job: Job) -> tuple[str, ...]:
        """What prints the nodes of the job that we are in; empty where the environment tells."""

    @abstractmethod
    def nodes(self, job: Job, answer: str, environ: Mapping[str, str]) -> Nodes:
        """They, from what that printed."""

    # --- starting agents --------------------------------------------------------------------------------------------

    @abstractmethod
    def agents(self, nodes: Nodes, launch: Launch, step: Sequence[Option], environ: Mapping[str, str]) -> Command:
        """What starts an agent on each of these nodes of the job that we are in."""

    @abstractmethod
    def hold(self, request: AllocationRequest, launch: Launch, environ: Mapping[str, str]) -> Command:
        """What asks for nodes, and starts an agent on each."""

    def ranks(
        self, nodes: Nodes, counts: Sequence[int], program: Sequence[str], step: Sequence[Option], flavour: str
    ) -> Command:
        """What starts MPI processes beside the agents, in block order: so many of ``program`` on each of these nodes.

        They are not bound to cores, one that fails takes none of the others along, and no time of silence ends them.

        Args:
            nodes: of the job, in the order of the ranks.
            counts: of each of them, 1 at least.
            program: what a process runs; more words may be put behind the command.
            step: arguments for the command, which win over ours.
            flavour: whose MPI the processes have: ``openmpi``, ``mpich``, or empty where that is unknown.

        Raises:
            Refused: that cannot be had.
        """
        raise self._no_mpi()

    def attended(self, words: Sequence[str], shell: str, script: str, folder: str) -> Command:
        """What runs a script as a job, says what the script says, and ends as it does: a way ``inside``.

        Args:
            words: what is asked for.
            shell: what runs it: ``sh``.
            script: its text.
            folder: as ``Launch`` has it.

        Raises:
            Refused: that cannot be had.
        """
        raise self._no_mpi()

    def _no_mpi(self) -> Refused:
        why = f"zlaunch knows no way to start MPI processes in {self.title}'s jobs"
        return Refused("rdv mpi", why, "use --rdv tcp")

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """In which its commands do as their arguments say."""
        starts = tuple(name[:-1] for name in self.unset if name.endswith("*"))
        kept = {k: v for k, v in environ.items() if k not in self.unset and not k.startswith(starts)}
        return kept | dict(self.sets)

    def tidy(self, said: str) -> str:
        """What a command said, without what it always says."""
        return "\n".join(line for line in said.splitlines() if not self.chatter.match(line)).strip()

    def explain(self, status: int | None, said: str) -> str:
        """Why agents did not come, in the words, as ``tidy`` has them, of the command that was to start them."""
        words = f"; {self.title} said:\n{said}" if said else ""
        if status is None:
            return f"its agent has not come in time{words}"
        for pattern, meaning in self.patterns.items():
            if pattern in said:
                return f"{meaning}{words}"
        if "ModuleNotFoundError" in said or "there is no zlaunch" in said:
            how = "pip install it for the same Python, or name another by --python"
            return f"zlaunch is not installed there: {how}{words}"
        return f"what starts it ended with status {status} before its agent had connected{words}"

    # --- a job's life -----------------------------------------------------------------------------------------------

    @abstractmethod
    def job_of(self, said: str) -> str | None:
        """The id of the job that a command of ``hold`` has asked for, from all that it has said."""

    @abstractmethod
    def state_argv(self, job: str) -> tuple[str, ...]:
        """What tells where a job stands."""

    @abstractmethod
    def state(self, answer: str) -> State | None:
        """That, from the answer; ``None``: it knows no such job any more."""

    def left_argv(self, job: str) -> tuple[str, ...]:
        """What tells how long a job may still run; empty where nothing does."""
        return ()

    def left(self, job: str, answer: str) -> float | None:
        """That, in seconds, from the answer; ``None``: as long as it likes."""
        return None

    @abstractmethod
    def cancel_argv(self, job: str) -> tuple[str, ...]:
        """What ends a job."""

    @abstractmethod
    def warn_argv(self, job: str) -> tuple[str, ...]:
        """What sends SIGTERM to the zlaunch of a batch job."""

    def cluster(self, environ: Mapping[str, str], ask: Callable[[tuple[str, ...]], str]) -> str:
        """What it calls the machine that we are on, where two may share a home; empty where it does not say.

        ``ask`` runs a command, and is what that prints; nothing where it fails.
        """
        return ""

    def sent_to(self, answer: str) -> str:
        """The other cluster that a job was submitted to after all, from what the submission printed; else empty."""
        return ""

    # --- what is asked for ------------------------------------------------------------------------------------------

    @abstractmethod
    def options(self, request: AllocationRequest, environ: Mapping[str, str], *, own: bool = False) -> list[Option]:
        """What says what is asked for, but for the user's own arguments.

        Args:
            request: what is.
            environ: ours.
            own: of a script of the user's, whose own directives hold but for what was said.

        Raises:
            Refused: the scheduler has nothing of the kind.
        """

    def words(self, request: AllocationRequest, environ: Mapping[str, str], *, own: bool = False) -> list[str]:
        """The same as arguments, with the user's own."""
        return self.flat(self.merged(self.options(request, environ, own=own), request.extra))

    def merged(self, options: Sequence[Option], extra: Sequence[Option]) -> list[Option]:
        """The user's own arguments win over ours of the same name, and one with ``~`` before it only removes.

        The first stands where ours of its name stood; a new one comes last, and so do more of one name: whether the
        last of them counts, or all do, is the scheduler's to say.
        """
        kept = list(options)
        theirs: set[str] = set()
        for name, value in extra:
            long = self.aliases.get(name.lstrip("~"), name.lstrip("~"))
            places = [i for i, (other, _) in enumerate(kept) if other == long and long not in theirs]
            at = places[0] if places else len(kept)
            if name.startswith("~"):
                kept = [option for option in kept if option[0] != long]
            else:
                kept = [option for i, option in enumerate(kept) if i not in places]
                kept.insert(at, (long, value))
                theirs.add(long)
        return kept

    def flat(self, options: Sequence[Option]) -> list[str]:
        """Options as the words of a command line."""
        words: list[str] = []
        for name, value in options:
            words += [name] if value is None else [f"{name}={value}"] if name.startswith("--") else [name, value]
        return words

    # --- batch jobs -------------------------------------------------------------------------------------------------

    @abstractmethod
    def place_options(self, folder: str, out: str | None, err: str | None) -> list[Option]:
        """For a batch job that starts in ``folder`` and writes to ``out`` and ``err``."""

    @abstractmethod
    def directive(self, option: Option) -> str:
        """An argument as a line of a script, behind ``mark``."""

    @abstractmethod
    def submit_argv(self, path: str, words: Sequence[str] = (), arguments: Sequence[str] = ()) -> tuple[str, ...]:
        """What submits a script, and prints the job's id. Raises Refused."""

    @abstractmethod
    def job_id(self, answer: str) -> str | None:
        """The id in what it prints."""


def spelled(text: str) -> dict[str, str]:
    """``-N=--nodes -t=--time`` as ``aliases``."""
    return dict(pair.split("=") for pair in text.split())


def granted(said: str) -> Nodes | None:
    """The nodes, once what asked for them has told of them; start-up files may have printed something before."""
    for line in said.splitlines(keepends=True):
        words = line.split()
        if line.endswith("\n") and len(words) > 1 and words[0] == GRANTED:
            return Nodes(words[1], tuple(words[2:]))
    return None
