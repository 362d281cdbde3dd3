"""Level 5: what a caller gets: a run to wait for, results in rank order, or the error that says what happened."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

from .errors import (
    AgentFailedError,
    LaunchError,
    RemoteTraceback,
    RunCancelled,
    SerializationError,
    TimeLimitExceeded,
    WorkerFailedError,
    ZlaunchError,
)
from .events import RunEnded
from .failure import exit_status
from .model import Fate, FateKind, HostPlan
from .protocol.envelope import unpack
from .protocol.letter import load

R = TypeVar("R")


class Keeper(Protocol):
    """What a run needs of the cluster that it is in."""

    def cancel(self, run: str, grace: float | None) -> None:
        """Stop a run."""

    def state_of(self, run: str) -> str:
        """Where a run stands."""

    def limit_of(self, run: str) -> str:
        """A run's time limit, in words."""

    def last_output(self, run: str, rank: int) -> list[str]:
        """A rank's last lines."""

    def log_file(self, run: str, rank: int) -> str | None:
        """The path of a rank's log file."""

    def job(self) -> str:
        """Of a scheduler's job whose nodes the hosts are: how it is asked about. Empty where there is none."""

    def wait_closed(self) -> None:
        """Wait until the agents are gone."""

    def leave(self, run: str, console: str) -> None:
        """A run that nobody waits for."""

    def publish(self, run: str) -> str:
        """Have a run in the registry by now."""


class LaunchResult(Sequence[R]):
    """What every rank returned: a sequence in rank order.

    Attributes:
        results: the same by host: ``{"a": [first local rank's, ...], ...}``, with the names that the user gave.
    """

    def __init__(self, results: Mapping[str, Sequence[R]]) -> None:
        self.results: dict[str, list[R]] = {name: list(values) for name, values in results.items()}
        self._ranks = [value for values in self.results.values() for value in values]

    def rank(self, i: int) -> R:
        """What rank ``i`` returned. Raises IndexError where there is no such rank."""
        if not 0 <= i < len(self._ranks):
            raise IndexError(f"no rank {i}: there are {len(self._ranks)}")
        return self._ranks[i]

    def index(self, hostname: str, local_rank: int) -> R:  # type: ignore[override]  # the contract's, as torchrunx's
        """What a host's local rank returned. Raises KeyError or IndexError."""
        if hostname not in self.results:
            raise KeyError(f"no host {hostname!r}: there are {', '.join(self.results)}")
        return self.results[hostname][local_rank]

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[R]:
        return iter(self._ranks)

    @overload
    def __getitem__(self, i: int) -> R: ...
    @overload
    def __getitem__(self, i: slice) -> list[R]: ...
    def __getitem__(self, i: int | slice) -> R | list[R]:
        return self._ranks[i]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LaunchResult) and self.results == other.results

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __repr__(self) -> str:
        return f"LaunchResult({self.results!r})"


class Run(Generic[R]):
    """A step in progress.

    Attributes:
        id: its name in log directories and in ``TORCHELASTIC_RUN_ID``.
        name: what runs.
        ended: how it ended, once it has; every rank's fate is in there.
        hosts: where it runs, with the number of ranks of each.
        log_folder: the path of the folder for its log files; empty: there are none.
    """

    def __init__(self, cluster: Keeper, run: str, name: str, hosts: Sequence[HostPlan], *, alone: bool) -> None:
        self.id = run
        self.name = name
        self.ended: RunEnded | None = None
        self._cluster = cluster
        self.hosts = tuple(hosts)
        self.log_folder = ""
        self.alone = alone
        self._started = False
        self._answers: dict[int, memoryview | None] = {}
        self._over = threading.Event()
        self.all_started = threading.Event()
        self._lock = threading.Lock()
        self._decoded: LaunchResult[R] | BaseException | None = None
        self._callbacks: list[Callable[[Run[R]], object]] = []

    def __repr__(self) -> str:
        ranks = sum(host.workers for host in self.hosts)
        return f"<Run {self.id}: {self.name}, {ranks} ranks on {len(self.hosts)} host(s), {self.status()}>"

    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._over.is_set()

    def status(self) -> str:
        """``queued``, ``running`` ...; then ``succeeded``, ``failed``, ``cancelled``, ``timed out`` or ``lost``."""
        return self.ended.outcome if self.ended else self._cluster.state_of(self.id)

    def result(self, timeout: float | None = None) -> LaunchResult[R]:
        """Wait for the results.

        Raises:
            TimeoutError: it has not ended after ``timeout`` seconds; it goes on.
            Exception: what the rank that failed first raised; or an error of ``zlaunch.errors``.
        """
        outcome = self._outcome(timeout)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what ``result`` would raise, or ``None``."""
        outcome = self._outcome(timeout)
        return outcome if isinstance(outcome, BaseException) else None

    def cancel(self, grace: float | None = None) -> bool:
        """Stop it: SIGTERM to all ranks, SIGKILL after ``grace`` seconds (default: the launcher's ``grace_period``).

        Returns False where it had ended already. A second call with ``grace=0`` kills at once.
        """
        if self.done():
            return False
        self._cluster.cancel(self.id, grace)
        return True

    def add_done_callback(self, callback: Callable[[Run[R]], object]) -> None:
        """Have ``callback(run)`` called when it has ended, in a thread of zlaunch's; at once where it has."""
        with self._lock:
            if not self.done():
                self._callbacks.append(callback)
                return
        callback(self)

    def leave(self, console: str) -> None:
        """From now on nobody waits for it here: how it ended is remembered. ``console``: its output, or empty."""
        self._cluster.leave(self.id, console)

    def publish(self) -> str:
        """Have it written down for other terminals by now; returns why that could not be done, or nothing."""
        return self._cluster.publish(self.id)

    def wait_started(self) -> None:
        """Wait until all its ranks have been started, or it has ended."""
        self.all_started.wait()

    def job(self) -> str:
        """Where it ran on a scheduler's nodes, how to learn what became of the job; else empty."""
        return self._cluster.job()

    def exit_status(self) -> int:
        """The command line's: 0, the first failed rank's, 124 (time limit), 125 (a host was lost), 130 (cancelled)."""
        ended = self.ended
        if ended is None:
            raise RuntimeError("it has not ended yet")
        return exit_status(ended.outcome, ended.cause)

    # --- from the cluster -------------------------------------------------------------------------------------------

    def resolve(self, ended: RunEnded, started: bool, answers: dict[int, memoryview | None]) -> None:
        """It has ended, and all that it printed has been written."""
        self._started, self._answers = started, answers
        with self._lock:
            self.ended = ended
            self._over.set()
            self.all_started.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except BaseException:  # one caller's trouble is not the next one's, nor the desk's
                traceback.print_exc()

    # --- decoding ---------------------------------------------------------------------------------------------------

    def _outcome(self, timeout: float | None) -> LaunchResult[R] | BaseException:
        if not self._over.wait(timeout):
            raise TimeoutError(f"{self!r} has not ended after {timeout} s")
        if self.alone:
            self._cluster.wait_closed()
        with self._lock:
            if self._decoded is None:
                self._decoded = self._decode()
                self._answers = {}
            return self._decoded

    def _decode(self) -> LaunchResult[R] | BaseException:
        ended = self.ended
        assert ended is not None
        if ended.outcome != "succeeded":
            error = self._failure(ended)
            if isinstance(error, ZlaunchError):
                error.unasked = list(ended.unasked)
            return error
        results: dict[str, list[R]] = {}
        rank = 0
        for host in self.hosts:
            values: list[Any] = []
            for _ in range(host.workers):
                try:
                    values.append(_value(self._answers.get(rank)))
                except Exception as error:
                    what = f"the result of rank {rank} ({host.name}) cannot be unpickled here: {error!r}"
                    return SerializationError(what, survivors=ended.survivors)
                rank += 1
            results[host.name] = values
        return LaunchResult(results)

    def _failure(self, ended: RunEnded) -> BaseException:
        cause, survivors = ended.cause, ended.survivors
        if ended.outcome == "cancelled":
            return RunCancelled(f"{self.name} was cancelled", survivors=survivors)
        if ended.outcome == "timed out":
            return TimeLimitExceeded(
                f"{self.name} ran longer than {self._cluster.limit_of(self.id)}", survivors=survivors
            )
        if cause is None:
            return LaunchError(f"{self.name} ended without a cause", survivors=survivors)
        if cause.kind is FateKind.LOST:
            if not self._started:
                return LaunchError(f"{cause.hostname}: {cause.text}", survivors=survivors)
            about = self._cluster.job()
            return AgentFailedError(cause.hostname, cause.text + (f"\n{about}" if about else ""), survivors=survivors)
        if cause.kind is FateKind.UNPICKLABLE:
            return SerializationError(f"rank {cause.rank} ({cause.hostname}): {cause.text}", survivors=survivors)
        if cause.kind is FateKind.RAISED:
            error = _exception(self._answers.get(cause.rank))
            if isinstance(error, str):
                return self._worker_failed(cause, ended, error)
            error.__cause__ = RemoteTraceback(cause, ended.fates)
            return error
        return self._worker_failed(cause, ended)

    def _worker_failed(self, cause: Fate, ended: RunEnded, unraised: str = "") -> WorkerFailedError:
        return WorkerFailedError(
            cause,
            failures=ended.fates,
            last_output=self._cluster.last_output(self.id, cause.rank),
            log_file=self._cluster.log_file(self.id, cause.rank),
            survivors=ended.survivors,
            unraised=unraised,
        )


def waited(submit: Callable[[], Run[R]]) -> LaunchResult[R]:
    """Submit, and wait for the results; Ctrl-C ends the run first, and is raised when nothing of it is alive any more.

    Nothing that Python could stop for lies between the end of ``submit`` and our knowing of the run.
    """
    run = None
    try:
        run = submit()
        return run.result()
    except KeyboardInterrupt:
        if run is not None:
            interrupt(run)
        raise


def interrupt(run: Run[Any]) -> None:
    """End a run and wait for it; a Ctrl-C meanwhile kills it."""
    try:
        run.cancel()
        run.exception()
    except KeyboardInterrupt:
        run.cancel(grace=0)
        run.exception()


def _value(data: memoryview | None) -> Any:
    return None if data is None else load(unpack(data))


def _exception(data: memoryview | None) -> BaseException | str:
    """A worker's exception as its own type, or why it cannot be raised here: empty where none has come."""
    if data is None:
        return ""
    try:
        error = load(unpack(data))
    except Exception as reason:
        why = f"it is not raised as its own type, which {reason}"
        if isinstance(reason.__cause__, TypeError):
            why += "\npickle calls the class with what super().__init__ was given: give it the same, or a __reduce__"
        return why
    if not isinstance(error, BaseException) or isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
        return ""
    return error
