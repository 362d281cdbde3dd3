"""Level 4: what an agent holds of the processes below it, and whether the kernel ended one for want of memory."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

from msgspec import Struct

from ..link.local import Wire, agent_end, pair
from ..model import TemplateSpec
from ..protocol.local import Answer, FromTemplate
from ..systems.folders import working_folder
from ..systems.interpreter import python_argv
from ..torchenv.environment import OWN, inherited_environment


class TemplateProcess(Struct):
    """A fork template and the two ends we hold of it."""

    spec: TemplateSpec
    process: subprocess.Popen[bytes]
    wire: Wire[FromTemplate]
    output: int
    said: bytes = b""
    note: str = ""
    """A warning for the people: where ranks start, if not in the directory that was asked for."""

    @classmethod
    def start(cls, spec: TemplateSpec) -> TemplateProcess:
        """Start it; its answers come over ``wire``, and what it prints over ``output``."""
        env, folder, note = dict(spec.env), spec.cwd if os.path.isdir(spec.cwd) else "/", ""
        if spec.inherit:
            env = inherited_environment(spec.env, os.environ)
            folder = working_folder(spec.cwd, os.environ)
            env["PWD"] = folder
            if folder != spec.cwd:
                note = f"there is no folder {spec.cwd} here: ranks start in {folder}"
        # What ranks are given over theirs anyway. Here it would tell of no rank, and who only goes through os.environ
        # when it is imported (as tqdm does, which torch imports) would seem to ask for its rank.
        env = {name: value for name, value in env.items() if name not in OWN}
        ours, theirs = pair()
        output, write_end = os.pipe()
        os.set_blocking(output, False)
        guard = os.dup(2)  # our stderr ends for the supervisor only when the template is gone too, and all below it
        command = python_argv("zlaunch.worker.template:main", str(theirs.fileno()), "zlaunch-template")
        try:
            process = subprocess.Popen(
                command,
                env=env,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                pass_fds=(theirs.fileno(), guard),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            os.close(output)
            raise
        finally:
            theirs.close()
            os.close(guard)
            os.close(write_end)
        return cls(spec, process, agent_end(ours), output, note=note)

    def close(self) -> None:
        """Let go of it: it ends by itself at the end-of-file, after killing what is below it."""
        self.wire.close()
        os.close(self.output)


class RankProcess(Struct):
    """What the agent holds of one rank."""

    key: tuple[str, int]
    rank: int
    wire: Wire[Answer]
    pid: int = 0
    pidfd: int = -1
    died_at: float | None = None
    may_answer: bool = True
    payload: int = -1
    """The memfd of its answer."""
    payload_size: int = 0

    def close(self) -> None:
        """Close what is still open."""
        self.wire.close()
        for fd in (self.pidfd, self.payload):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.payload = -1


class OomWatch(Struct, frozen=True):
    """Whether the kernel has killed for want of memory since this was made.

    /proc/vmstat counts for the whole machine, containers next door included; so where the rank's memory cgroup has a
    count of its own (memory.events in v2, memory.oom_control in v1), that must have risen too.
    """

    machine: int
    cgroup: dict[str, int]

    @classmethod
    def now(cls) -> OomWatch:
        """From here on."""
        path = _memory_cgroup("self")
        return cls(_oom_kills("/proc/vmstat") or 0, {path: _oom_kills(path) or 0})

    def struck(self, pid: int) -> bool:
        """Whether a process that died of SIGKILL may have died so.

        A rank may have moved to another cgroup since its fork, so where it was in the end is asked for. Where that is
        not to be known any more (it has been reaped, or is a zombie under version 1), the machine's count decides.
        """
        if (_oom_kills("/proc/vmstat") or 0) <= self.machine:
            return False
        path = _memory_cgroup(str(pid))
        count = _oom_kills(path)
        return count is None or count > self.cgroup.get(path, 0)


def _memory_cgroup(process: str) -> str:
    """The file that counts the memory cgroup's kills; empty where there is none (cgroups(7))."""
    with suppress(OSError), open(f"/proc/{process}/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if "memory" in controllers.split(","):
                return f"/sys/fs/cgroup/memory{path}/memory.oom_control"
            if not controllers and os.path.exists(f"/sys/fs/cgroup{path}/memory.events"):
                return f"/sys/fs/cgroup{path}/memory.events"
    return ""


def _oom_kills(path: str) -> int | None:
    with suppress(OSError, ValueError), open(path) as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None
