"""Level 4: an agent's hands. Sockets, pidfds, pipes and timers become happenings; the core's effects are carried out.

Nothing is decided here: which state a step or a rank is in is the core's to know. One thread, one loop; the only
things that it waits for are in ``_wait``.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from contextlib import suppress
from typing import assert_never

from ..link.memory import Probe
from ..link.spoke import Lost, PieceCame, Refused, Told
from ..model import Survivor, signal_name
from ..protocol import local
from ..protocol import messages as m
from ..systems.processes import become_subreaper, kill_all
from . import effects as do
from . import happenings as on
from .arrival import ENDING, Arrival
from .callers import Callers
from .core import AgentCore
from .forks import Forks
from .payloads import Payloads
from .places import Places
from .processes import OomWatch, RankProcess, TemplateProcess
from .pump import Pump
from .usage import UsageSampler

Key = tuple[str, int]

NO_SHARED_MEMORY = "ZLAUNCH_NO_SHARED_MEMORY"
"""Set in an agent's environment: payloads travel over the wire also where they could pass as memfds."""


class AgentLoop:
    """One host's agent."""

    def __init__(self, arrival: Arrival) -> None:
        become_subreaper()
        bootstrap = arrival.bootstrap
        self.core = AgentCore(arrival.hostname)
        self.queue: deque[on.Happening] = deque()
        self.template: TemplateProcess | None = None
        self.places = Places()
        self.callers = Callers()
        self.attached: memoryview | bytes | None = None
        self.oom: OomWatch | None = None
        self.status: int | None = None
        self.stdin_is_link = bootstrap.stdin_is_link
        self.arrival = arrival
        self.signals = arrival.signals
        self.spoke = arrival.spoke
        self.pump = Pump(self.spoke.send_log)
        self.payloads = Payloads(self.spoke)
        self.forks = Forks(self.pump, self.payloads, self.callers)
        self.ranks: dict[tuple[Key, int], RankProcess] = self.forks.ranks
        self.usage = UsageSampler(self.ranks, self.spoke.send)
        if bootstrap.template:
            self.post(on.Told(m.Warm(bootstrap.template)))

    def run(self) -> int:
        """Serve, and connect first if that was not done yet; returns the exit status.

        Raises:
            LinkError: there is no way to the supervisor.
        """
        try:
            if not self.spoke.way:
                self.arrival.greet()
            for event in self.arrival.heard:
                self._from_supervisor(event)
            while self.status is None:
                self._wait()
            return self.status
        finally:
            self._end_template()
            kill_all(os.getpid(), spare=())
            self.spoke.flush(1.0)
            self.spoke.close()

    def post(self, event: on.Happening) -> None:
        """Let the core handle an event, and all that comes of it."""
        self.queue.append(event)
        while self.queue:
            for effect in self.core.handle(self.queue.popleft(), time.monotonic()):
                self._carry_out(effect)

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        times = (self.core.deadline(), self.pump.deadline(), self.places.deadline(), self.usage.deadline())
        deadlines = [t for t in times if t is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        events, ready = self.spoke.poll(timeout, self._descriptors())
        for event in events:
            self._from_supervisor(event)
        for fd in ready:
            self._descriptor_ready(fd)
        now = time.monotonic()
        self.pump.tick(now)
        self.usage.tick(now)
        for sought in self.places.sought():
            self.post(sought)
        deadline = self.core.deadline()
        if deadline is not None and deadline <= now:
            self.post(on.Tick())

    def _descriptors(self) -> list[int]:
        waiting = [self.signals, *self.pump.watched(), *self.places.fds(), *self.callers.fds()]
        if self.stdin_is_link:
            waiting.append(0)
        if self.template:
            waiting += [self.template.wire.fileno(), self.template.output]
        for rank in self.ranks.values():
            if rank.pidfd >= 0:  # a rank may answer before the template has told of it: that waits in the socket
                if rank.may_answer:
                    waiting.append(rank.wire.fileno())
                if rank.died_at is None:
                    waiting.append(rank.pidfd)
        return waiting

    def _descriptor_ready(self, fd: int) -> None:
        if fd in self.pump.streams:
            self.pump.readable(fd, time.monotonic())
        elif fd == self.signals:
            number = signal.Signals(os.read(fd, 1)[0])
            if number in ENDING:
                self.post(on.SupervisorLost(f"told to end by {number.name}", is_there=True))
        elif fd == 0:
            if not os.read(0, 4096):
                self.stdin_is_link = False
                self.post(on.SupervisorLost("its stdin ended"))
        elif self.template and fd == self.template.wire.fileno():
            self._from_template(self.template)
        elif self.template and fd == self.template.output:
            self._template_printed(self.template)
        elif fd in self.callers.fds():
            if call := self.callers.ready(fd):
                self.post(call)
        elif not self.places.ready(fd):
            self._from_rank(fd)

    # --- translating ------------------------------------------------------------------------------------------------

    def _from_supervisor(self, event: Told | PieceCame | Lost | Refused) -> None:
        match event:
            case Told(message, payload):
                self._take(message)
                self.attached = payload
                self.post(on.Told(message))
                self.attached = None
            case PieceCame(payload_id, offset, data):
                key = self.payloads.piece(payload_id, offset, data)
                if key is not None:
                    self.post(on.LetterReady(key))
            case Lost(reason):
                self.post(on.SupervisorLost(reason))
            case Refused(kind, text):
                self.spoke.send(m.Said("warning", f"a message was dropped ({kind}): {text}"))

    def _take(self, message: m.ToAgent) -> None:
        """The loop's own share of what the supervisor says: memory and flow."""
        match message:
            case m.Welcome():
                shares = NO_SHARED_MEMORY not in os.environ and Probe.readable(
                    message.probe_pid, message.probe_fd, message.probe_nonce
                )
                self.core.shares_memory = self.payloads.shares_memory = shares
                self.pump.credit += message.log_credit
            case m.Credit():
                self.pump.credit += message.size
            case m.Release():
                self.payloads.release(message.id)
            case _:
                pass

    def _from_template(self, template: TemplateProcess) -> None:
        while self.template is template:
            try:
                received = template.wire.receive(wait=False)
            except BlockingIOError:
                return
            if received is None:
                self._template_died(template)
            else:
                self._template_said(template, *received)

    def _template_said(self, template: TemplateProcess, message: local.FromTemplate, fds: list[int]) -> None:
        match message:
            case local.Ready():
                key = template.spec.key
                self.post(on.TemplateUp(key, message.seconds, message.start_method, message.note))
            case local.Broken():
                self._end_template()
                self.post(on.TemplateDown(template.spec.key, message.text))
            case local.Forked():
                self._forked(template, message, fds)
            case local.Exited():
                if not message.pid:
                    self.forks.born(template)
                self._exited((message.step, message.attempt), message.rank, message.status)
            case _:
                raise ValueError(f"a template said {message!r}")

    def _forked(self, template: TemplateProcess, message: local.Forked, fds: list[int]) -> None:
        key = (message.step, message.attempt)
        self.forks.born(template)
        rank = self.ranks.get((key, message.rank))
        if rank is None:  # it had been given up
            for fd in fds:
                os.close(fd)
            return
        rank.pid, rank.pidfd = message.pid, fds[0]
        self.post(on.RankForked(key, message.rank, message.pid))

    def _from_rank(self, fd: int) -> None:
        for rank in list(self.ranks.values()):
            if fd == rank.pidfd:
                rank.died_at = time.monotonic()
                self._answers(rank)
                return
            if rank.wire.fileno() == fd:
                self._answers(rank)
                return

    def _answers(self, rank: RankProcess) -> None:
        """Take what a rank has answered so far."""
        try:
            received = rank.wire.receive(wait=False)
        except BlockingIOError:
            return
        rank.may_answer = False  # one answer a rank; and a closed socket would wake us for ever
        if received is None:
            return
        message, fds = received
        if fds:
            rank.payload, rank.payload_size = fds[0], os.fstat(fds[0]).st_size
        self.post(
            on.RankAnswered(
                rank.key,
                rank.rank,
                message.kind,
                message.at,
                message.text,
                message.symptom,
                rank.payload_size,
            )
        )

    def _exited(self, key: Key, number: int, status: int | None, text: str = "") -> None:
        rank = self.ranks.get((key, number))
        if rank is None:
            return
        self._answers(rank)
        at = rank.died_at if rank.died_at is not None else time.monotonic()
        killed = status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        oom = killed and self.oom is not None and self.oom.struck(rank.pid)
        self.post(on.RankExited(key, number, status, at, oom, text))

    def _template_printed(self, template: TemplateProcess) -> None:
        with suppress(BlockingIOError):
            data = os.read(template.output, 65536)
            if data:
                template.said = (template.said + data)[-8192:]
                self.spoke.send(m.Said("info", data.decode(errors="replace").rstrip("\n")))

    def _template_died(self, template: TemplateProcess) -> None:
        """Its end-of-file: its ranks die with it (PDEATHSIG), are adopted by us, and reaped here."""
        self.template = None
        self.forks.forget()
        status = template.process.wait()
        with suppress(OSError):
            self._template_printed(template)
        template.close()
        how = f"was killed by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
        text = f"its fork template {how}"
        if template.said:
            text += f": {template.said.decode(errors='replace').strip()}"
        kill_all(os.getpid(), spare=())
        self.post(on.TemplateDown(template.spec.key, text))
        for (key, number), rank in list(self.ranks.items()):
            if rank.pid:
                self._exited(key, number, None, text)

    # --- carrying out -----------------------------------------------------------------------------------------------

    def _carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Send(message):
                self.spoke.send(message)
            case do.RunTemplate(spec):
                self._end_template()
                self.template = TemplateProcess.start(spec)
                with suppress(BrokenPipeError, ConnectionResetError):  # it is dead: its end-of-file will say so
                    self.template.wire.send(local.Prepare(spec.preload, spec.sys_path, spec.start_method, spec.inherit))
                if self.template.note:
                    self.spoke.send(m.Said("debug", self.template.note))
            case do.EndTemplate():
                self._end_template()
            case do.FetchLetter(key, payload):
                self._fetch(key, payload)
            case do.Fork():
                self.usage.sits(effect.seat)
                self.forks.want(effect, self.template)
            case do.AwaitCalls() | do.DismissCallers():
                self._see_to_callers(effect)
            case do.Signal(key, number, sign):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.ranks[key, number].pidfd, sign)
            case do.Drain(key, number):
                self.pump.drain(key[0], number)
                self.queue.append(on.RankDrained(key, number))
            case do.Answered(key, answer):
                self._send_answer(key, answer)
            case do.Ended((step, attempt), fate):
                self.spoke.send(m.Ended(step, attempt, fate, self.pump.sent))
            case do.Sweep(key):
                self._sweep(key)
            case do.Closed((step, attempt), survivors):
                self.spoke.send(m.Closed(step, attempt, survivors, self.pump.sent))
            case do.KeepPort() | do.Seek() | do.EndMeeting() | do.FreePort():
                if kept := self.places.carry_out(effect):
                    self.queue.append(kept)
            case do.Leave(status):
                self.status = status
            case _:
                assert_never(effect)

    def _fetch(self, key: Key, payload: m.Payload) -> None:
        self.oom = OomWatch.now()
        try:
            if self.payloads.fetch(key, payload, self.attached):
                self.queue.append(on.LetterReady(key))
        except (OSError, ValueError) as error:
            self.queue.append(on.LetterFailed(key, f"the task could not be brought to this host: {error}"))

    def _see_to_callers(self, effect: do.AwaitCalls | do.DismissCallers) -> None:
        if isinstance(effect, do.DismissCallers):
            self.callers.dismiss()
            return
        try:
            self.callers.open(effect.key)
        except OSError as error:
            text = f"{self.core.hostname}: nobody can call for its ranks: {error.strerror}"
            self.spoke.send(m.Miscalled(*effect.key, text))

    def _send_answer(self, key: Key, answer: on.RankAnswered) -> None:
        rank = self.ranks[key, answer.rank]
        payload, view = self.payloads.outgoing(rank.payload, rank.payload_size)
        rank.payload = -1
        step, attempt = key
        attached = view if isinstance(payload, m.Attached) else None
        self.spoke.send(
            m.Answered(step, attempt, answer.rank, answer.kind, answer.at, answer.text, answer.symptom, payload),
            attached,
        )
        if isinstance(payload, m.Pieces) and view is not None:
            self.spoke.send_payload(payload.id, view)

    def _sweep(self, key: Key) -> None:
        template = {self.template.process.pid} if self.template else set()
        survivors: tuple[Survivor, ...] = kill_all(os.getpid(), spare=template)
        self.pump.close(key[0])
        self.payloads.drop_letter(key)
        self.forks.close(key)
        self.queue.append(on.Swept(key, survivors))

    def _end_template(self) -> None:
        template, self.template = self.template, None
        self.forks.forget()
        if template:
            template.close()
            template.process.kill()  # it has no ranks: one step at a time, and its sweep came before this
            template.process.wait()
