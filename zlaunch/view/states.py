"""Level 4, view: the life of a run in short lines, where no table shows it. Pure: events in, sentences out.

Who gets torchrun's and srun's output wants the ranks' lines and no others. So nothing is said of a run in which all
goes well, but what nobody could guess: that a host is gone, that a step is started again, and for whom a run still
waits. With ``--verbose`` every change is told, alike ones together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..events import (
    AgentConnected,
    AgentLost,
    Event,
    Notice,
    RankEnded,
    RankStarted,
    RunEnded,
    RunRestarting,
    RunStarted,
)
from ..failure import seconds, what, who
from ..model import Fate, span_words
from ..printable import printable
from .text import restart_words

ENDING = 2.0
"""Seconds from a rank's failure until it is said that others have not ended yet."""
LINGERING = 60.0
"""Seconds from the last rank's end until it is said which others run on."""
TOGETHER = 1.0
"""Seconds for which the end of a rank waits for its likes."""
HOSTS_TOLD = 16
"""Hosts that are told of one by one."""
RANKS_NAMED = 3
"""Ranks that are named with their hosts, where a run waits for them."""


@dataclass(eq=False)
class _Run:
    """What there is to say of one run."""

    started: RunStarted
    size: int
    of_host: dict[str, int]
    hosts: dict[int, str] = field(default_factory=dict)
    """Of ranks that have a process."""
    pids: dict[str, dict[int, int]] = field(default_factory=dict)
    """The ranks' processes, by host."""
    ended: set[int] = field(default_factory=set)
    failed: Fate | None = None
    """The first of the fates that are none to wish for, in the order in which they were told."""
    untold: list[Fate] = field(default_factory=list)
    tell_at: float | None = None
    remind_at: float | None = None

    @property
    def many(self) -> bool:
        """Whether hosts are too many to be told of one by one."""
        return len(self.of_host) > HOSTS_TOLD


class States:
    """Listens, and has something to say now and then. ``now`` is on any clock that runs on."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._runs: dict[str, _Run] = {}
        self._connected = 0

    def said(self, event: Event, now: float) -> list[str]:
        """What to say at once."""
        return [printable(line) for text in self._said(event, now) for line in text.splitlines()]

    def _said(self, event: Event, now: float) -> list[str]:
        match event:
            case RunStarted():
                return self._start(event)
            case RankStarted():
                return self._rank_started(event)
            case RankEnded():
                return self._rank_ended(event, now)
            case RunRestarting():
                return [*self._told(event.run), restart_words(event)]
            case RunEnded():
                return self._end(event)
            case AgentConnected() if self._verbose:
                return self._host_came(event)
            case AgentLost():
                return [f"{event.hostname}: lost: {event.reason}"] if self._matters(event.hostname) else []
            case Notice() if self._verbose or event.level in ("warning", "error"):
                return [f"{event.hostname}: {event.text}" if event.hostname else event.text]
            case _:
                return []

    def due(self) -> float | None:
        """When ``tick`` wants to be called."""
        times = [time for run in self._runs.values() for time in (run.tell_at, run.remind_at) if time is not None]
        return min(times, default=None)

    def tick(self, now: float) -> list[str]:
        """What to say because time has passed."""
        lines: list[str] = []
        for name, run in self._runs.items():
            if run.tell_at is not None and now >= run.tell_at:
                lines += self._told(name)
            if run.remind_at is not None and now >= run.remind_at:
                run.remind_at = None
                lines.append(_waiting(run))
        return lines

    # --- verbosely --------------------------------------------------------------------------------------------------

    def _host_came(self, event: AgentConnected) -> list[str]:
        self._connected += 1
        if self._connected > HOSTS_TOLD:
            return ["more hosts have connected"] if self._connected == HOSTS_TOLD + 1 else []
        facts = event.facts
        gpus = f", {_number(len(facts.gpus), 'GPU')} ({facts.gpus[0].name})" if facts.gpus else ""
        torch = f", torch {facts.torch}" if facts.torch else ""
        has = f"{_number(facts.cores, 'core')}{gpus}, Python {facts.python}{torch}"
        return [f"{event.hostname}: {has}, agent's pid {facts.pid}"]

    def _start(self, event: RunStarted) -> list[str]:
        of_host = {host.name: host.workers for host in event.hosts}
        run = self._runs[event.run] = _Run(event, sum(of_host.values()), of_host)
        if not self._verbose:
            return []
        hosts = ", ".join(f"{name} ({workers})" for name, workers in of_host.items())
        where = f"{len(of_host)} hosts, {_number(run.size, 'rank')}" if run.many else hosts
        logs = f", logs in {event.log_folder}" if event.log_folder else ""
        return [f"run {event.run}: {event.name} on {where}{logs}"]

    def _rank_started(self, event: RankStarted) -> list[str]:
        run = self._runs.get(event.run)
        if run is None:
            return []
        run.hosts[event.rank] = event.hostname
        mine = run.pids.setdefault(event.hostname, {})
        mine[event.rank] = event.pid
        if not self._verbose:
            return []
        if run.many:
            return [f"all {run.size} ranks have started"] if len(run.hosts) == run.size else []
        if len(mine) < run.of_host.get(event.hostname, 0):
            return []
        pids = f"{'pid' if len(mine) == 1 else 'pids'} {span_words(mine.values())}"
        return [f"{event.hostname}: {_ranks(mine)} started, {pids}"]

    def _told(self, name: str) -> list[str]:
        """The ends of ranks that wait to be told, alike ones together."""
        run = self._runs.get(name)
        if run is None:
            return []
        run.tell_at = None
        fates, run.untold = run.untold, []
        kinds: dict[tuple[str, str], list[Fate]] = {}
        for fate in fates:
            kinds.setdefault(("" if run.many else fate.hostname, what(fate)), []).append(fate)
        return [self._ended_words(run, host, words, alike) for (host, words), alike in kinds.items()]

    def _ended_words(self, run: _Run, host: str, words: str, alike: list[Fate]) -> str:
        after = seconds(max(0.0, max(fate.at for fate in alike) - run.started.at))
        if len(alike) == 1:
            return f"{who(alike[0])} {words} after {after}"
        return f"{f'{host}: ' if host else ''}{_ranks(fate.rank for fate in alike)} {words} after {after}"

    # --- always -----------------------------------------------------------------------------------------------------

    def _matters(self, host: str) -> bool:
        """Whether one of several hosts that run something is gone; of one alone the report tells."""
        runs = [run for run in self._runs.values() if host in run.of_host and len(run.ended) < run.size]
        return self._verbose or any(len(run.of_host) > 1 for run in runs)

    def _rank_ended(self, event: RankEnded, now: float) -> list[str]:
        run = self._runs.get(event.run)
        if run is None:
            return []
        fate = event.fate
        first = run.failed is None and not fate.ok
        run.ended.add(fate.rank)
        if first:
            run.failed, run.remind_at = fate, now + ENDING
        elif run.failed is None:
            run.remind_at = now + LINGERING
        if len(run.ended) == run.size:
            run.remind_at = None
        if not self._verbose:
            return []
        run.untold.append(fate)
        run.tell_at = run.tell_at if run.tell_at is not None else now + TOGETHER
        return self._told(event.run) if first or len(run.ended) == run.size else []

    def _end(self, event: RunEnded) -> list[str]:
        lines = self._told(event.run)
        run = self._runs.pop(event.run, None)
        if run is not None and self._verbose and event.outcome == "succeeded":
            lines.append(f"run {event.run} succeeded after {seconds(max(0.0, event.at - run.started.at))}")
        return lines


def _waiting(run: _Run) -> str:
    """For whom a run waits, and why that is told."""
    left = [rank for rank in range(run.size) if rank not in run.ended]
    if len(left) <= RANKS_NAMED:
        named = ", ".join(f"rank {rank} ({run.hosts[rank]})" if rank in run.hosts else f"rank {rank}" for rank in left)
    else:
        named = _number(len(left), "rank")
    if run.failed is not None:
        return f"{who(run.failed)} {what(run.failed)}; waiting for {named} to end"
    return f"{len(run.ended)} of {_number(run.size, 'rank')} have returned; {named} still {_runs(len(left))}"


def _runs(count: int) -> str:
    return "runs" if count == 1 else "run"


def _ranks(ranks: Iterable[int]) -> str:
    numbers = list(ranks)
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {span_words(numbers)}"


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
