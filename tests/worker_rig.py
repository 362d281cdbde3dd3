"""Drives a fork template through its socket as the agent does, for the tests of the worker."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from zlaunch.link.local import agent_end, answer_end, pair
from zlaunch.link.memory import map_fd, write_memfd
from zlaunch.model import Seat, Step
from zlaunch.protocol import letter
from zlaunch.protocol.envelope import unpack
from zlaunch.protocol.local import Answer, Broken, Exited, Fork, Forked, Prepare, Ready

ROOT = Path(__file__).parent.parent
PATIENCE = 30.0


@dataclass
class Rank:
    rank: int
    pid: int = 0
    pidfd: int = -1
    status: int | None = None
    answers: list[Answer] = field(default_factory=list)
    payload: object = None
    out: bytes = b""
    err: bytes = b""

    @property
    def code(self) -> int:
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    @property
    def answer(self) -> Answer:
        assert len(self.answers) == 1, (self.answers, self.err.decode())
        return self.answers[0]


def clean_environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GLOO_", "RANK", "WORLD_SIZE"))}
    env["PYTHONPATH"] = str(ROOT)
    return env


class Rig:
    """A template, and this process in the place of its agent."""

    def __init__(self, *, preload=(), start_method="fork", env=None, cwd=None, sys_path=(), inherit=False):
        ours, theirs = pair()
        self.env = clean_environment() | (env or {})
        self.cwd = str(cwd or ROOT)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zlaunch.worker.template", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=self.env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.wire = agent_end(ours)
        self.wire.send(Prepare(tuple(preload), tuple(sys_path), start_method, inherit))
        self.ready = self._hear()

    def _hear(self, timeout=PATIENCE) -> Ready | Broken | Forked | Exited:
        assert select.select([self.wire.fileno()], [], [], timeout)[0], "the template says nothing"
        heard = self.wire.receive()
        assert heard is not None, "the template is gone"
        message, fds = heard
        self.fds = fds
        return message

    def step(self, kind="function", **changes) -> Step:
        facts = {"id": "s1", "run_id": "r1", "kind": kind, "env": self.env, "cwd": self.cwd} | changes
        return Step(**facts)

    def call(self, function, *args, n=1, **changes) -> list[Rank]:
        return self.run(self.step(**changes), letter.dump((function, args, {})), n=n)

    def run(self, step: Step, frames=(), *, n=1, port=0, on_forked=None, node=0, nodes=1, **seats) -> list[Rank]:
        """Run a step on ``n`` ranks; with ``nodes``, on the ranks of host ``node`` of as many hosts."""
        fd = write_memfd([msgspec.msgpack.encode(step), *frames], "letter")
        first = n * node
        ranks = [Rank(first + i) for i in range(n)]
        ends = {}
        readers = []
        for rank in ranks:
            facts = {"hostname": "here", "master_addr": "127.0.0.1"} | seats
            seat = Seat(
                rank=rank.rank,
                local_rank=rank.rank - first,
                world_size=n * nodes,
                local_world_size=n,
                node_rank=node,
                nodes=nodes,
                master_port=port,
                **facts,
            )
            out, out_w = os.pipe()
            err, err_w = os.pipe()
            mine, its = pair()
            self.wire.send(Fork(step.id, 0, seat), [fd, out_w, err_w, its.fileno()])
            os.close(out_w)
            os.close(err_w)
            its.close()
            ends[rank.rank] = answer_end(mine)
            for name, pipe in (("out", out), ("err", err)):
                thread = threading.Thread(target=_drain, args=(rank, name, pipe), daemon=True)
                thread.start()
                readers.append(thread)
        os.close(fd)
        left = n
        while left:
            match self._hear():
                case Forked(rank=number, pid=pid):
                    ranks[number - first].pid, ranks[number - first].pidfd = pid, self.fds[0]
                    if on_forked is not None:
                        on_forked(ranks[number - first])
                case Exited(rank=number, pid=pid, status=status):
                    assert pid == ranks[number - first].pid
                    ranks[number - first].status = status
                    left -= 1
                case other:
                    raise AssertionError(other)
        for rank in ranks:
            os.close(rank.pidfd)
            while True:
                try:
                    heard = ends[rank.rank].receive(wait=False)
                except BlockingIOError:  # a child of the rank still has the socket
                    break
                if heard is None:
                    break
                rank.answers.append(heard[0])
                if heard[1]:
                    rank.payload = letter.load(unpack(map_fd(heard[1][0])))
                    os.close(heard[1][0])
            ends[rank.rank].close()
        for thread in readers:
            thread.join(PATIENCE)
        return ranks

    def close(self) -> None:
        self.wire.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drain(rank: Rank, name: str, pipe: int) -> None:
    with open(pipe, "rb") as file:
        setattr(rank, name, file.read())


def timed(function, *args, **kwargs):
    began = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - began, result
