"""Level 1: what can go wrong, and whose fault it is.

A worker's own exception is raised as its own type, with a ``RemoteTraceback`` as its cause. Everything else that
zlaunch raises is below ``ZlaunchError``. ``str()`` of each holds the remote text; each says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .failure import advice, last_words, others, what, who, without_our_frames
from .model import Fate, FateKind, Survivor, signal_name


class RemoteTraceback(Exception):
    """The ``__cause__`` of a worker's exception: where it was raised, in the remote traceback's own text.

    Attributes:
        rank, local_rank, hostname, pid: the rank that failed first.
        traceback: its traceback's text, without the frames by which zlaunch called the user's code.
        failures: every rank's fate, in the order of time.
    """

    def __init__(self, fate: Fate, failures: Sequence[Fate] = ()) -> None:
        self.rank = fate.rank
        self.local_rank = fate.local_rank
        self.hostname = fate.hostname
        self.pid = fate.pid
        self.traceback = "".join(f"{line}\n" for line in without_our_frames(fate.text.splitlines()))
        self.failures = list(failures)
        super().__init__(fate, failures)

    def __str__(self) -> str:
        return f"on rank {self.rank} ({self.hostname}, pid {self.pid})\n\n{self.traceback.rstrip()}\n"


class ZlaunchError(RuntimeError):
    """The base of zlaunch's errors.

    Attributes:
        survivors: processes of the step that would not die; empty but for the worst of days.
        unasked: hosts that could not be asked whether anything is alive there, because they were lost.
    """

    survivors: list[Survivor]
    unasked: list[str]

    def __init__(self, message: str = "", *, survivors: Sequence[Survivor] = ()) -> None:
        self.survivors, self.unasked = list(survivors), []
        super().__init__(message)

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.survivors:
            alive = ", ".join(f"pid {s.pid} on {s.hostname} ({s.command})" for s in self.survivors)
            lines.append(f"Still alive, and not to be killed: {alive}")
        if self.unasked:
            lines.append(
                f"Not to be asked what is alive there: {', '.join(self.unasked)}. An agent that does not hear of us "
                "ends its ranks and itself within 15 s."
            )
        return "\n".join(lines)


class WorkerFailedError(ZlaunchError):
    """A worker died, or its exception could not be brought back as itself.

    Attributes:
        rank, local_rank, hostname, pid: which.
        exit_code: its exit status; ``None`` after a signal.
        signal: the signal's number, or ``None``.
        out_of_memory: the kernel killed it for want of memory.
        last_output: the last lines of its stdout and stderr.
        log_file: the path of its log file, or ``None``.
        failures: every rank's fate, in the order of time.
        unraised: why an exception of a function is this and not its own type; empty where there was none.
    """

    def __init__(
        self,
        fate: Fate,
        *,
        failures: Sequence[Fate] = (),
        last_output: Sequence[str] = (),
        log_file: str | None = None,
        survivors: Sequence[Survivor] = (),
        unraised: str = "",
    ) -> None:
        self.rank = fate.rank
        self.local_rank = fate.local_rank
        self.hostname = fate.hostname
        self.pid = fate.pid
        self.exit_code = fate.exit_code
        self.signal = fate.signal
        self.out_of_memory = fate.out_of_memory
        self.last_output = list(last_output)
        self.log_file = log_file
        self.failures = list(failures)
        self.fate = fate
        self.unraised = unraised
        lines = [_describe_worker(fate, self.failures, self.last_output, log_file), unraised]
        super().__init__("\n".join(filter(None, lines)), survivors=survivors)

    def __reduce__(self) -> tuple[object, ...]:
        names = ("failures", "last_output", "log_file", "survivors", "unraised")
        return _rebuild_worker_error, (self.fate, {name: getattr(self, name) for name in names})


def _rebuild_worker_error(fate: Fate, rest: dict[str, Any]) -> WorkerFailedError:
    return WorkerFailedError(fate, **rest)


def _describe_worker(fate: Fate, failures: Sequence[Fate], last_output: Sequence[str], log_file: str | None) -> str:
    """The words of the command line's report, but for what only that knows."""
    lines = [f"{who(fate)} {what(fate)}"]
    if last := last_words(fate, last_output):
        lines += ["its last lines:", *(f"  {line}" for line in last)]
    elif fate.text and fate.kind is not FateKind.LOST:
        lines.append(fate.text.rstrip())
    lines += others(fate, failures)
    if next_step := advice(fate, last_output):
        lines.append(next_step)
    if log_file:
        lines.append(f"its whole output: {log_file}")
    return "\n".join(lines)


class SerializationError(ZlaunchError, TypeError):
    """A function, an argument or a result cannot be pickled; the message says what, and whose."""


class AgentFailedError(ZlaunchError):
    """A host or its agent was lost.

    Attributes:
        hostname: which.
        reason: how it was noticed.
    """

    def __init__(self, hostname: str, reason: str, *, survivors: Sequence[Survivor] = ()) -> None:
        self.hostname = hostname
        self.reason = reason
        super().__init__(f"{hostname}: {reason}", survivors=survivors)

    def __reduce__(self) -> tuple[object, ...]:
        return AgentFailedError, (self.hostname, self.reason)


class LaunchError(ZlaunchError):
    """Nothing ran: which host, what was said there, and what to do."""


class TimeLimitExceeded(ZlaunchError):
    """A step ran longer than its ``time_limit``."""


class RunCancelled(ZlaunchError):
    """The run was cancelled before it had ended."""


def exit_words(fate: Fate) -> str:
    """``exit status 3`` or ``SIGKILL``: the fate in a table's cell."""
    if fate.signal is not None:
        return signal_name(fate.signal)
    return "-" if fate.exit_code is None else f"exit status {fate.exit_code}"
