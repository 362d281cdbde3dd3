"""Level 4: the agents' processes, as far as the supervisor holds them: stdin, stderr, and the exit status.

One command starts the agent of one host, or the agents of many: srun does. Then the command is there as long as any of
them is, and of a host that is lost no more is known than that its connection ended.

An agent's stderr is shared with its fork template, and the template ends only after it has killed all below it. So
end-of-file there means more than an exit status: nothing of that host's is alive any more.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from ..model import AgentCommand, signal_name

REPORTED = 10
"""Hosts whose trouble is told of, where there are more that could not be started."""
SAID_LIMIT = 8192
Explain: TypeAlias = Callable[[int | None, str], str]
OWN_END, FAR_END = 0.05, 1.0
"""Seconds that an agent without a connection may take to end by itself; and that ssh may take to tell how it ended."""
HANG_UP = 1.5
"""Seconds that an agent which was on its way may take to end: over ssh, for both ways and what it had begun."""
LAST_PATIENCE = 2.0
"""Seconds from an agent's death to that of all below it."""


class Held(NamedTuple):
    """A command that runs already: it has asked a scheduler for nodes, and reads the line when it has them."""

    process: subprocess.Popen[bytes]
    """With pipes; whoever started it waits for its end, too."""
    said: bytes
    """What was on its stderr so far."""
    cancel: Callable[[], None]
    """Ends it and what it has asked for, sooner or later; killed, it would give nothing back."""


class Start(NamedTuple):
    """What starts agents."""

    command: AgentCommand
    line: bytes
    """What it reads on its stdin."""
    explain: Explain | None = None
    held: Held | None = None
    tidy: Callable[[str], str] = str.strip
    """Takes what says nothing of a failure out of its last words."""


@dataclass
class AgentProcess:
    """A command that starts the agent of one host, or those of several, running."""

    hosts: tuple[int, ...]
    process: subprocess.Popen[bytes]
    pidfd: int
    """Readable when the command has ended; -1 once that was seen."""
    explain: Explain | None = None
    """What to make of its exit status and its last words, where it is not the agent itself: ssh, for one."""
    said: bytes = b""
    cancel: Callable[[], None] | None = None
    """As ``Held`` has it."""
    tidy: Callable[[str], str] = str.strip
    open: bool = True
    joined: set[int] = field(default_factory=set)
    """Hosts whose agent has ever connected."""
    left: dict[int, str] = field(default_factory=dict)
    """Why a host's connection ended, or that it was hung up on."""
    gone: set[int] = field(default_factory=set)
    """Hosts of which nothing more is expected."""
    gone_by: dict[int, float] = field(default_factory=dict)
    """When a host counts as gone although something still holds the command's stderr."""
    kill_at: float | None = None
    pressed: bool = False
    """Whether we killed it because nobody was connected any more."""

    @classmethod
    def start(cls, what: Start) -> AgentProcess:
        """Start the command, if it does not run already, and give it its bootstrap line. Raises OSError."""
        command, held = what.command, what.held
        process = held.process if held else _popen(command)
        assert process.stdin is not None
        assert process.stderr is not None
        _feed(process.stdin.fileno(), what.line)
        os.set_blocking(process.stderr.fileno(), False)
        pidfd = os.pidfd_open(process.pid)
        said, cancel = (held.said, held.cancel) if held else (b"", None)
        return cls(command.hosts, process, pidfd, what.explain, said, cancel, what.tidy)

    @property
    def stderr(self) -> int:
        """The descriptor to wait for."""
        assert self.process.stderr is not None
        return self.process.stderr.fileno()

    def descriptors(self) -> list[int]:
        """What to wait for: its stderr, and its end."""
        return [fd for fd in (self.stderr, self.pidfd) if fd >= 0] if self.open else []

    def ended(self) -> None:
        """The command is gone. Its end-of-file is waited for, but not for ever: something else may hold its stderr."""
        os.close(self.pidfd)
        self.pidfd = -1
        for host in self.hosts:
            self.gone_by.setdefault(host, time.monotonic() + LAST_PATIENCE)

    def read(self) -> bool:
        """Take what it has said; False at the end-of-file."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.stderr, 65536)
            if not data:
                return False
            self.said = (self.said + data)[-SAID_LIMIT:]
        return True

    # --- on the way out ---------------------------------------------------------------------------------------------

    def connection_left(self, host: int, reason: str, silent: bool) -> None:
        """A host's connection is gone. Whether its agent is too is seen within moments; a silent one is ended."""
        self._leave(host, reason, FAR_END if self.explain and not silent else OWN_END)

    def hang_up(self, host: int) -> None:
        """Nobody waits for this host any more. At the end of its stdin an agent ends by itself, also behind an ssh."""
        self._leave(host, "it was hung up on", HANG_UP)
        if self._nobody_stays():
            assert self.process.stdin is not None
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def _leave(self, host: int, reason: str, patience: float) -> None:
        now = time.monotonic()
        self.left[host] = reason
        if self._nobody_stays():
            self.kill_at = now + patience
            self.gone_by[host] = now + patience + LAST_PATIENCE
        else:
            self.gone_by[host] = now + patience  # the command goes on, for the others

    def _nobody_stays(self) -> bool:
        return all(host in self.gone or host in self.left for host in self.hosts)

    def deadline(self) -> float | None:
        """When ``overdue`` wants to be called."""
        times = [t for host, t in self.gone_by.items() if host not in self.gone]
        return min(times if self.kill_at is None else [*times, self.kill_at], default=None) if self.open else None

    def overdue(self, now: float) -> list[int]:
        """End one that has lost all its connections and lives on; which hosts are not waited for any more."""
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            if self.process.poll() is None:
                self.pressed = True
                self._kill()
        return [host for host, at in self.gone_by.items() if now >= at and host not in self.gone]

    # --- what is known ----------------------------------------------------------------------------------------------

    def reason(self, host: int) -> str:
        """How a host's agent ended, and what was said last."""
        left = self.left.get(host, "")
        if left and len(self.hosts) > 1:
            return left
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return left or "its agent closed its stderr and lives on"
        if self.explain is not None and host not in self.joined:
            return self.explain(status, self.words())
        what = os.path.basename(str(self.process.args[0])) if self.explain else "agent"  # type: ignore[index]
        if left and (self.pressed or self.explain):
            how = left
        elif status < 0:
            how = f"its {what} (pid {self.process.pid}) was killed by {signal_name(-status)}"
        else:
            how = f"its {what} (pid {self.process.pid}) ended with status {status}"
        return f"{how}; {what if self.explain else 'it'} said:\n{self.words()}" if self.words() else how

    def late(self) -> str:
        """What is known of one that did not connect in time."""
        if self.explain is not None:
            return self.explain(None, self.words())
        return "its agent did not connect in time" + (f"; it said:\n{self.words()}" if self.words() else "")

    def words(self) -> str:
        """What it has said on stderr."""
        return self.tidy(self.said.decode(errors="replace"))

    # --- the end ----------------------------------------------------------------------------------------------------

    def end(self, host: int | None = None) -> None:
        """This host (or ``None``: all) is done with. After the last one, make sure that nothing is left of it."""
        self.gone.update(self.hosts if host is None else (host,))
        if not self.open or len(self.gone) < len(self.hosts):
            return
        self.open = False
        if self.process.poll() is None and self.cancel is None:
            self.process.kill()
            self.process.wait()
        late = any(time.monotonic() >= at for at in self.gone_by.values())
        if self.explain is None and not late:
            self._wait_for_all()
        self.close_descriptors()

    def _kill(self) -> None:
        if self.cancel:
            self.cancel()
        else:
            self.process.kill()

    def _wait_for_all(self) -> None:
        """Until its template, too, has ended what is below it: the end-of-file. One that hangs is not waited for."""
        poll = select.poll()
        poll.register(self.stderr)
        deadline = time.monotonic() + LAST_PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000) and not self.read():
                return

    def close_descriptors(self) -> None:
        """Close our ends; for the agent that is the supervisor's death."""
        held = self.cancel is not None  # then somebody still hears what it says
        for stream in (self.process.stdin, None if held else self.process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _popen(command: AgentCommand) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command.argv,
        env=command.env,
        cwd=command.cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C goes to us, and we tell the agents
        bufsize=0,
    )


def _feed(stdin: int, line: bytes) -> None:
    """Have a command read a line. What its pipe does not hold is written by a thread: ssh reads when it has logged in.

    A pipe holds 64 KiB, or 4 where the user has very many. Larger ones for all would be what he has very many of.
    """
    os.set_blocking(stdin, False)
    written = 0
    with contextlib.suppress(BlockingIOError, BrokenPipeError):  # the latter is dead already: its stderr will say why
        written = os.write(stdin, line)
    os.set_blocking(stdin, True)
    if written < len(line):
        copy = os.dup(stdin)
        threading.Thread(target=_write, args=(copy, line[written:]), name="zlaunch-feed", daemon=True).start()


def _write(fd: int, data: bytes) -> None:
    with contextlib.suppress(OSError), open(fd, "wb") as pipe:
        pipe.write(data)


def missing_words(
    missing: Sequence[tuple[int, str]], agents: Mapping[int, AgentProcess], names: Mapping[int, str]
) -> str:
    """Which agents did not come, and why; hosts of the same fate together, and of many fates some."""
    fates: dict[str, list[str]] = {}
    for host, reason in missing:
        agent = agents.get(host)
        late = agent.late() if agent else "its turn to be started had not come"
        fates.setdefault(reason or late, []).append(names[host])
    told = list(fates.items())[:REPORTED]
    texts = [f"{_some(hosts)}: {fate}" for fate, hosts in told]
    more = len(missing) - sum(len(hosts) for _, hosts in told)
    return "\n".join([*texts, f"... and {more} more"] if more > 0 else texts)


def _some(names: Sequence[str]) -> str:
    more = len(names) - REPORTED
    return ", ".join(names[:REPORTED]) + (f" and {more} more" if more > 0 else "")
