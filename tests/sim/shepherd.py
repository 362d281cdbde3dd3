"""A program: looks after the tasks of one job, or one remote command, in one host of the bed, as the simulator says.

It gets its flock from the simulator by a unix socket, one line of JSON, then input and signals for it; it tells of
output and ends. When the socket is closed all processes that descend from it die, those in sessions of their own too,
unless they were let go (``leave``), as the real scheduler would.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import termios
from contextlib import suppress
from typing import Any

_CHILD_SUBREAPER = 36  # prctl: orphans of our tasks become our children


class Flock:
    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.wake = selectors.DefaultSelector()
        self.linger = True
        self.pids: dict[int, int] = {}  # of each rank
        self.open: dict[int, set[int]] = {}  # what of each rank can still be read; it has ended when nothing can
        self.status: dict[int, int] = {}
        self.inputs: dict[int, int] = {}
        self.waiting: dict[int, bytearray] = {}  # input that has not found room yet
        self.closing: set[int] = set()
        self.folders: set[str] = set()

    def tell(self, **frame: Any) -> None:
        self.link.sendall(json.dumps(frame).encode() + b"\n")

    # -- the start

    def start(self, task: dict[str, Any]) -> None:
        rank = task["rank"]
        if folder := task.get("folder"):
            os.makedirs(folder, 0o700, exist_ok=True)
            self.folders.add(folder)
        failed, report = os.pipe()
        if task.get("pty"):
            master, slave = os.openpty()
            given = [slave, slave, slave]
            kept, outputs = [slave], [(master, 1)]
            self.inputs[rank] = os.dup(master)
        else:
            (given0, self.inputs[rank]), (out, given1), (err, given2) = os.pipe(), os.pipe(), os.pipe()
            given, kept, outputs = [given0, given1, given2], [given0, given1, given2], [(out, 1), (err, 2)]
        environ = dict(task["environ"])
        if task.get("pmi"):
            ours, theirs = socket.socketpair()
            outputs.append((ours.detach(), 0))
            kept.append(theirs.detach())
            os.set_inheritable(kept[-1], True)
            environ["PMI_FD"] = str(kept[-1])
        pid = os.fork()
        if pid == 0:
            self.become(task, given, environ, report)
        os.close(report)
        for descriptor in kept:
            os.close(descriptor)
        os.set_blocking(self.inputs[rank], False)
        self.pids[rank], self.open[rank], self.waiting[rank] = pid, set(), bytearray()
        error = os.read(failed, 64)
        os.close(failed)
        for descriptor, stream in outputs:
            self.open[rank].add(descriptor)
            self.wake.register(descriptor, selectors.EVENT_READ, (rank, stream))
        if error:
            self.tell(failed=rank, errno=int(error))
        else:
            self.tell(started=rank, pid=pid)

    @staticmethod
    def become(task: dict[str, Any], given: list[int], environ: dict[str, str], report: int) -> None:
        """The task itself, in a process group of its own; with a terminal in a session of its own."""
        try:
            if task.get("pty"):
                os.setsid()
                fcntl.ioctl(given[0], termios.TIOCSCTTY, 0)
            else:
                os.setpgid(0, 0)
            for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            for stream, descriptor in enumerate(given):
                os.dup2(descriptor, stream)
            if task.get("cpus"):
                with suppress(OSError):  # this machine may have fewer than the simulated host
                    os.sched_setaffinity(0, task["cpus"])
            os.umask(task.get("umask", 0o022))
            try:
                os.chdir(task["cwd"])
            except OSError as error:
                os.write(2, f"{task['cwd']}: {error.strerror}, going to /tmp instead\n".encode())
                os.chdir("/tmp")
            os.execvpe(task["argv"][0], task["argv"], environ)
        except OSError as error:
            os.write(report, str(error.errno).encode())
        finally:
            os._exit(127)

    # -- input and output

    def feed(self, data: bytes, ranks: list[int] | None) -> None:
        for rank in self.inputs if ranks is None else ranks:
            if data:
                self.waiting[rank] += data
            else:
                self.closing.add(rank)
            self.pour(rank)

    def pour(self, rank: int) -> None:
        """As much input as the task takes now; the rest when it has room."""
        descriptor = self.inputs.get(rank)
        if descriptor is None:
            return
        waiting = self.waiting[rank]
        try:
            while waiting:
                del waiting[: os.write(descriptor, waiting)]
        except BlockingIOError:
            with suppress(KeyError):
                self.wake.register(descriptor, selectors.EVENT_WRITE, (rank, 3))
            return
        except OSError:  # nobody reads
            waiting.clear()
        with suppress(KeyError):
            self.wake.unregister(descriptor)
        if rank in self.closing:
            os.close(self.inputs.pop(rank))

    def read(self, descriptor: int, rank: int, stream: int) -> None:
        try:
            data = os.read(descriptor, 1 << 16)
        except OSError:  # a terminal that nobody has open
            data = b""
        if data and stream:
            self.tell(out=stream, rank=rank, data=data.decode("latin-1"))
        elif not data:
            self.wake.unregister(descriptor)
            os.close(descriptor)
            self.open[rank].discard(descriptor)

    # -- ends

    def send(self, number: int, ranks: list[int] | None, whole: bool) -> None:
        for rank in [*self.pids] if ranks is None else ranks:
            with suppress(ProcessLookupError):
                os.killpg(self.pids[rank], number)
        if whole:
            self.sweep(number)

    def sweep(self, number: int = signal.SIGKILL) -> None:
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def bury(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                for rank, known in self.pids.items():
                    if known == pid:
                        self.status[rank] = os.waitstatus_to_exitcode(status)
        for rank in [*self.status]:
            if rank in self.pids and not (self.linger and self.open[rank]):
                for descriptor in [*self.open[rank]]:
                    self.drain(descriptor, rank)
                del self.pids[rank]
                self.tell(ended=rank, status=self.status[rank])

    def drain(self, descriptor: int, rank: int) -> None:
        """What a task that has ended wrote, where we do not wait for those who still could write."""
        stream = self.wake.get_key(descriptor).data[1]
        os.set_blocking(descriptor, False)
        while descriptor in self.open[rank]:
            try:
                os.stat(descriptor)
                data = os.read(descriptor, 1 << 16)
            except OSError:
                data = b""
            if data and stream:
                self.tell(out=stream, rank=rank, data=data.decode("latin-1"))
            if not data:
                self.wake.unregister(descriptor)
                os.close(descriptor)
                self.open[rank].discard(descriptor)

    def tidy(self) -> None:
        """The tasks' own folders go, with what is in them."""
        for top in self.folders:
            for folder, folders, files in os.walk(top, topdown=False):
                for name in files:
                    os.unlink(f"{folder}/{name}")
                for name in folders:
                    os.rmdir(f"{folder}/{name}")
            os.rmdir(top)

    def heed(self, frame: dict[str, Any]) -> None:
        if "tasks" in frame:
            self.linger = frame["linger"]
            for task in frame["tasks"]:
                self.start(task)
        elif "in" in frame:
            self.feed(frame["in"].encode("latin-1"), frame["ranks"])
        elif "signal" in frame:
            self.send(frame["signal"], frame["ranks"], frame["whole"])
        elif "leave" in frame:
            self.tidy()
            os._exit(0)

    def look_after(self) -> None:
        ears, mouth = socket.socketpair()
        for end in (ears, mouth):
            end.setblocking(False)
        signal.set_wakeup_fd(mouth.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.wake.register(ears, selectors.EVENT_READ, (-1, -1))
        self.wake.register(self.link, selectors.EVENT_READ, (-2, -2))
        rest = b""
        while True:
            for key, _ in self.wake.select():
                rank, stream = key.data
                if rank == -1:
                    ears.recv(64)
                elif rank == -2:
                    data = self.link.recv(1 << 16)
                    if not data:
                        return
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self.heed(json.loads(line))
                elif stream == 3:
                    self.pour(rank)
                elif key.fd in self.open[rank]:
                    self.read(key.fd, rank, stream)
            self.bury()


def descendants(first: int) -> list[int]:
    """All processes below this one, by what the kernel says of each one's parent."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                parents[int(entry)] = int(file.read().rpartition(b")")[2].split()[1])
    found: list[int] = []
    todo = [first]
    while todo:
        parent = todo.pop()
        children = [pid for pid, of in parents.items() if of == parent]
        found += children
        todo += children
    return found


def main() -> None:
    path, token = sys.argv[1:]
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    flock = Flock(link)
    flock.tell(shepherd=token)
    try:
        flock.look_after()
    except OSError:  # the simulator is gone
        pass
    finally:
        flock.sweep()
        with suppress(OSError):
            flock.tidy()
        os._exit(0)


if __name__ == "__main__":
    main()
