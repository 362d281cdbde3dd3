"""Level 4: the supervisor's hands: one thread that turns sockets, pipes and timers into happenings.

Everybody else only posts to its inbox. It decides nothing; what the core wants is carried out here. It writes to no
file and no terminal: events go to whoever listens, who must not block.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias, assert_never

import msgspec

from ..events import Event, Notice, Output, RunEnded
from ..link.hub import Gone, Heard, Hub, HubEvent, Joined, Left, LogCame, PieceCame, Refused
from ..link.memory import Probe
from ..model import HostPlan, TemplateSpec
from ..protocol import messages as m
from . import effects as do
from . import happenings as on
from .agents import AgentProcess, Start, missing_words
from .core import SupervisorCore
from .fates import lost_fates
from .launchers import Launchers
from .payloads import Answer, Letters, Replies

LAUNCH_PATIENCE = 5.0
"""Seconds that an interrupted start may take to end what it has begun."""
STARTS_AT_ONCE = 64
"""Agents on other machines that may be on their way at a time: an ssh is some 10 ms of a core here, and more there."""
LOG_CREDIT = 4 << 20
"""Bytes of log lines that may be between an agent and the console."""

Finished: TypeAlias = Callable[[RunEnded, bool, dict[int, Answer]], None]

_living: weakref.WeakSet[SupervisorLoop] = weakref.WeakSet()


class SupervisorLoop:
    """The thread that holds a launcher's agents.

    Args:
        emit: is given every event, in order, in this loop's thread.
        finished: is given a run's end, whether any rank started, and the ranks' answers.
        ready: is called with ``None`` when all agents have connected, else with what went wrong.
        addresses: of this machine, for agents on others.
        silence: seconds after which a host that answers nothing is lost.
    """

    def __init__(
        self,
        *,
        emit: Callable[[Event], None],
        finished: Finished,
        ready: Callable[[str | None], None],
        addresses: Sequence[str] = (),
        silence: float = 4.5,
    ) -> None:
        self.core = SupervisorCore()
        self.hub = Hub(addresses or ("127.0.0.1",), silence=silence)
        self.emit, self.finished, self.ready = emit, finished, ready
        self.probe = Probe()
        self.inbox: deque[Callable[[], None]] = deque()
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.agents: dict[int, AgentProcess] = {}
        """By host."""
        self.processes: list[AgentProcess] = []
        self.launchers = Launchers()
        self.waiting: deque[Start] = deque()
        self.names: dict[int, str] = {}
        self.letters = Letters(self.hub)
        self.replies = Replies(self.hub)
        self.logs: dict[int, int] = {}
        self.credit: dict[str, int] = {}
        self.over = False
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._run, name="zlaunch-supervisor", daemon=True)
        _living.add(self)

    # --- from other threads -----------------------------------------------------------------------------------------

    def start(
        self,
        hosts: Sequence[HostPlan],
        launch: Callable[[Hub], Sequence[Start]],
        timeout: float,
        templates: Mapping[int, TemplateSpec],
    ) -> None:
        """Start the agents; ``launch`` tells how, and ``templates`` what some of them warm up once all are there.

        It is done in the loop's own thread, where no KeyboardInterrupt comes between a process and our knowing of it.
        One that cannot be started is told through ``ready``.
        """
        self.names = {plan.index: plan.name for plan in hosts}
        begun = on.Begun(tuple(hosts), time.monotonic() + timeout, templates)
        self._post(lambda: self._launch(launch, begun))
        try:
            self.thread.start()
        except BaseException:  # an interrupt: the thread may well be there
            self.close()
            self.closed.wait(LAUNCH_PATIENCE)
            raise

    def _launch(self, launch: Callable[[Hub], Sequence[Start]], begun: on.Begun) -> None:
        if self.over:  # it was closed before it began
            return
        self._handle(begun)
        self.waiting.extend(launch(self.hub))
        self._start_agents()

    def _start_agents(self) -> None:
        """Start those whose turn it is."""
        if not self.waiting:
            return
        on_their_way = sum(process.open and not process.joined for process in self.processes)
        while self.waiting and on_their_way < STARTS_AT_ONCE:
            start = self.waiting.popleft()
            try:
                process = AgentProcess.start(start)
            except OSError as error:
                for host in start.command.hosts:
                    self._handle(on.AgentGone(host, f"{start.command.argv[0]} could not be started: {error.strerror}"))
                continue
            on_their_way += 1
            self.processes.append(process)
            self.agents.update(dict.fromkeys(start.command.hosts, process))

    def submit(self, order: on.RunOrder, letters: Mapping[int, int]) -> None:
        """Queue a run; ``letters`` are memfds by host index, which this loop owns from now on."""
        self._post(lambda: self._submit(order, letters))
        if self.closed.is_set():
            self._take_inbox()

    def cancel(self, run: str, grace: float | None = None) -> None:
        """Stop a run; with ``grace`` 0 at once. One whose ``submit`` was interrupted, and never came, has ended."""
        self._post(lambda: self._cancel(run, grace))

    def _cancel(self, run: str, grace: float | None) -> None:
        if run in self.core.schedule.runs:
            self._handle(on.Cancelled(run, grace))
        else:
            self.finished(RunEnded(time.monotonic(), run, "cancelled", None, ()), False, {})

    def handled(self, hostname: str, size: int) -> None:
        """So many bytes of a host's output have been dealt with: it may send as many again."""
        self._post(lambda: self._give_credit(hostname, size))

    def close(self) -> None:
        """End all runs and agents. ``closed`` is set when that is done."""
        self._post(lambda: self._handle(on.Closing()))

    def _post(self, call: Callable[[], None]) -> None:
        self.inbox.append(call)
        if not self.over:
            os.eventfd_write(self.wake, 1)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self.over:
                self._wait()
        except Exception as error:  # a defect of ours must not leave callers waiting for ever
            self._fail(error)
            raise
        finally:
            self._release_all()
            self._take_inbox()  # what was posted too late
            self.closed.set()

    def _fail(self, error: Exception) -> None:
        text = f"the supervisor failed, which is a defect of zlaunch: {error!r}"
        now = time.monotonic()
        self.emit(Notice(now, "error", text))
        self.ready(text)
        for run in list(self.core.schedule.runs.values()):
            order = run.order
            fates = tuple(
                lost_fates((s for seats in order.seats.values() for s in seats), run.fates, text, now, run.pids)
            )
            cause = fates[0] if fates else None
            ended = RunEnded(now, order.id, "lost", cause, tuple(run.fates.values()) + fates)
            self.emit(ended)
            self.finished(ended, run.ever_started, {})

    def _wait(self) -> None:
        times = [self.core.deadline(), self.launchers.deadline(), *(process.deadline() for process in self.processes)]
        deadline = min((t for t in times if t is not None), default=None)
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        held = (fd for process in self.processes for fd in process.descriptors())
        descriptors = [self.wake, *held, *self.launchers.descriptors()]
        events, ready = self.hub.poll(timeout, descriptors)
        for event in events:
            self._from_wire(event)
        if self.wake in ready:
            os.eventfd_read(self.wake)
        while self.inbox and not self.over:
            self.inbox.popleft()()
        now = time.monotonic()
        for process in [process for process in self.processes if process.open]:
            if process.pidfd in ready:
                process.ended()
            all_said = process.stderr in ready and not process.read()
            for host in process.hosts if all_said else process.overdue(now):
                if host not in process.gone:
                    self._handle(on.AgentGone(host, process.reason(host)))
        for over in self.launchers.over(set(ready), now):
            self._handle(over)
        self._start_agents()
        deadline = self.core.deadline()
        if deadline is not None and deadline <= time.monotonic():
            self._handle(on.Tick())

    def _take_inbox(self) -> None:
        while self.inbox:
            self.inbox.popleft()()

    def _handle(self, event: on.Happening) -> None:
        for effect in self.core.handle(event, time.monotonic()):
            self._carry_out(effect)

    # --- translating ------------------------------------------------------------------------------------------------

    def _from_wire(self, event: HubEvent) -> None:
        match event:
            case Joined(host):
                self.agents[host].joined.add(host)
            case Heard(host, message, payload):
                self._heard(host, message, payload)
            case PieceCame(host, payload_id, offset, data):
                place = self.replies.piece(host, payload_id, offset, data)
                if place:
                    self._handle(on.PayloadCame(*place))
            case LogCame(host, log, data):
                self._log_came(host, log, data)
            case Left(host, reason, silent):
                self.agents[host].connection_left(host, reason, silent)
            case Refused(kind, text, host):
                if kind != "dropped":  # those are port scanners, and addresses that an agent has not taken
                    who = "" if host is None else self.names.get(host, "")
                    self.emit(Notice(time.monotonic(), "warning", f"refused on the wire ({kind}): {text}", who))
            case _:
                assert_never(event)

    def _heard(self, host: int, message: m.ToSupervisor, payload: memoryview | bytes | None) -> None:
        pending = False
        match message:
            case m.Pong():
                self.letters.shares[host] = message.shares_memory
            case m.Release():
                return
            case m.Answered():
                try:
                    pending = self.replies.take(host, message, payload)
                except (OSError, ValueError) as error:
                    text = f"its answer could not be taken over: {error}"
                    message = msgspec.structs.replace(message, kind="unpicklable", text=text)
            case _:
                pass
        self._handle(on.AgentSaid(host, message, pending))

    def _log_came(self, host: int, log: m.Log, data: Sequence[bytes | bytearray | memoryview]) -> None:
        event = self.core.schedule.output(host, log, b"".join(data))
        if not isinstance(event, Output):
            self._give_credit(self.names[host], log.size)  # who writes an Output gives its credit back
        if event is not None:
            self.emit(event)
        self._handle(on.LogsSeen(host, log.number))

    # --- carrying out -----------------------------------------------------------------------------------------------

    def _carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Tell(host, message):
                self._tell(host, message)
            case do.Welcome(host):
                self._tell(host, m.Welcome(self.probe.pid, self.probe.fd, self.probe.nonce, LOG_CREDIT))
            case do.SendStart():
                self._send_start(effect)
            case do.StartRanks(run, attempt, command):
                if over := self.launchers.start(run, attempt, command):
                    self._handle(over)
            case do.EndRanks(run, why):
                self.launchers.end(run, why)
            case do.Emit(event):
                self.emit(event)
            case do.Finish(ended, started):
                self.letters.drop(ended.run)
                self.finished(ended, started, self.replies.collect(ended.run))
            case do.AllReady():
                self.ready(None)
            case do.NotReady(missing):
                self.ready(missing_words(missing, self.agents, self.names))
            case do.EndAgent(host):
                self.hub.forget(host)
                if host in self.agents:
                    self.agents[host].end(host)
                self._handle(on.AgentGone(host, "it was ended"))
            case do.GiveUp(host, reason):
                self._handle(on.AgentGone(host, reason))
            case do.HangUp(host):
                self._hang_up(host)
            case do.AllGone():
                self.over = True
            case _:
                assert_never(effect)

    def _hang_up(self, host: int) -> None:
        self.hub.forget(host)
        if host in self.agents:
            self.agents[host].hang_up(host)
        else:
            self.waiting = deque(start for start in self.waiting if host not in start[0].hosts)
            self._handle(on.AgentGone(host, "it was not started"))

    def _tell(self, host: int, message: m.ToAgent, payload: memoryview | bytes | None = None) -> None:
        if self.over:
            return
        with suppress(Gone):  # its end is on its way here, and will be told once
            self.hub.send(host, message, payload)

    def _send_start(self, effect: do.SendStart) -> None:
        self.replies.expect(effect.run, effect.attempt)
        letter, attached, view = self.letters.address(effect.run, effect.host)
        start = m.Start(
            effect.run, effect.attempt, effect.template, effect.seats, letter, effect.answers, effect.called
        )
        self._tell(effect.host, start, attached)
        if isinstance(letter, m.Pieces) and view is not None:
            with suppress(Gone):  # as above
                self.hub.send_payload(effect.host, letter.id, view)

    def _submit(self, order: on.RunOrder, letters: Mapping[int, int]) -> None:
        if self.over:
            for fd in set(letters.values()):
                os.close(fd)
            self.finished(RunEnded(time.monotonic(), order.id, "cancelled", None, ()), False, {})
            return
        self.letters.add(order.id, letters)
        self._handle(on.Submitted(order))

    def _give_credit(self, hostname: str, size: int) -> None:
        total = self.credit.get(hostname, 0) + size
        if total < LOG_CREDIT // 8:
            self.credit[hostname] = total
            return
        self.credit[hostname] = 0
        for index, name in self.names.items():
            if name == hostname:
                self._tell(index, m.Credit(total))

    def _release_all(self) -> None:
        self.over = True
        for process in self.processes:
            process.end()
        self.launchers.close()
        self.hub.close()
        self.letters.close()
        self.probe.close()
        _living.discard(self)

    def disarm(self) -> None:
        """In a forked child of the user's program: let go of what would keep the agents from seeing our death."""
        for process in self.processes:
            process.close_descriptors()
        self.closed = threading.Event()  # the old one's lock may have been held by a thread that is not here
        self.closed.set()


def _disarm_in_child() -> None:
    for loop in list(_living):
        loop.disarm()
    _living.clear()


os.register_at_fork(after_in_child=_disarm_in_child)
