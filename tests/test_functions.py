"""One function there and back: per-rank results, every kind of function, every kind of failure."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import zlaunch
from zlaunch.model import FateKind


def rank() -> int:
    return int(os.environ["RANK"])


class Custom(Exception):
    """Needs two arguments, so that pickle's default cannot rebuild it."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Plain(ValueError):
    pass


def raise_plain(which: int) -> None:
    if rank() == which:
        try:
            raise KeyError("the cause")
        except KeyError as error:
            mine = Plain("mine")
            mine.add_note("a note")
            raise mine from error
    time.sleep(60)


def test_results_in_rank_order(cluster: zlaunch.Launcher) -> None:
    result = cluster.run(rank)
    assert list(result) == [0, 1]
    assert len(result) == 2
    assert result[1] == result.rank(1) == result.index(hostname="localhost", local_rank=1) == 1
    assert result[:1] == [0]
    assert result.results == {"localhost": [0, 1]}
    with pytest.raises(IndexError):
        result.rank(2)


def test_arguments_travel(cluster: zlaunch.Launcher) -> None:
    def add(a: int, *, b: int) -> int:
        return a + b + rank()

    assert list(cluster.run(add, 1, b=10)) == [11, 12]


def make_closure(n: int):  # type: ignore[no-untyped-def]
    def closure() -> int:
        return n + rank()

    return closure


class Thing:
    def __init__(self, n: int) -> None:
        self.n = n

    def method(self) -> int:
        return self.n + rank()

    @staticmethod
    def static() -> int:
        return 20 + rank()

    @classmethod
    def of_class(cls) -> int:
        return 30 + rank()


@pytest.mark.parametrize(
    ("function", "base"),
    [
        (lambda: 5 + rank(), 5),
        (make_closure(7), 7),
        (Thing(9).method, 9),
        (Thing.static, 20),
        (Thing.of_class, 30),
        (functools.partial(lambda a, b: a + b + rank(), 1, b=2), 3),
    ],
    ids=["lambda", "closure", "method", "static", "classmethod", "partial"],
)
def test_every_kind_of_function(cluster: zlaunch.Launcher, function: Any, base: int) -> None:
    assert list(cluster.run(function)) == [base, base + 1]


def test_large_tensors_come_back_and_can_be_written(cluster: zlaunch.Launcher) -> None:
    def big(t: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": t + rank(), "again": t}

    given = torch.arange(1_000_000, dtype=torch.float32)
    for i, got in enumerate(cluster.run(big, given)):
        assert torch.equal(got["sum"], given + i)
        got["sum"] += 1
    assert torch.equal(given, torch.arange(1_000_000, dtype=torch.float32))


def test_exception_comes_as_itself(cluster: zlaunch.Launcher) -> None:
    with pytest.raises(Plain, match="mine") as caught:
        cluster.run(raise_plain, 1)
    assert caught.value.__notes__ == ["a note"]
    cause = caught.value.__cause__
    assert isinstance(cause, zlaunch.RemoteTraceback)
    assert (cause.rank, cause.local_rank, cause.hostname) == (1, 1, "localhost")
    assert "the cause" in str(cause)
    assert "a note" in str(cause)
    assert "raise mine from error" in str(cause)
    assert "zlaunch/worker" not in str(cause), "only the user's frames"
    assert [f.rank for f in cause.failures] == [1, 0]
    assert cause.pid > 0


def test_exception_of_main_is_caught_by_its_class(cluster: zlaunch.Launcher) -> None:
    class Local(Exception):
        pass

    def fail() -> None:
        raise Local("of a function's own class")

    with pytest.raises(Local):
        cluster.run(fail)


def test_exception_that_cannot_be_rebuilt(cluster: zlaunch.Launcher) -> None:
    def fail() -> None:
        raise Custom(1, 2)

    with pytest.raises(zlaunch.WorkerFailedError, match="1 and 2") as caught:
        cluster.run(fail)
    assert "raise Custom(1, 2)" in str(caught.value)
    assert "cannot be unpickled: TypeError: Custom.__init__() missing 1" in caught.value.unraised
    assert caught.value.unraised in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert caught.value.failures


def test_exception_that_cannot_be_pickled(cluster: zlaunch.Launcher) -> None:
    def fail() -> None:
        error = ValueError("with a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    with pytest.raises(zlaunch.WorkerFailedError, match=r"with a lock\n.*cannot be pickled \(its part .lock"):
        cluster.run(fail)


def test_a_method_of_what_has_the_launcher(cluster: zlaunch.Launcher) -> None:
    class Trainer:
        def __init__(self) -> None:
            self.cluster = cluster.on(workers_per_host=1)

        def work(self) -> int:
            self.cluster.stop()  # another one, that has no agents
            return self.cluster.workers_per_host  # type: ignore[return-value]

    trainer = Trainer()
    assert list(trainer.cluster.run(trainer.work)) == [1]
    assert list(trainer.cluster.run(trainer.work)) == [1]


def test_what_a_call_would_not_run_is_refused() -> None:
    async def work() -> int:
        return 1

    for wrong in (work, 5):
        with pytest.raises(TypeError, match=r"async|not 5"):
            zlaunch.Launcher(workers_per_host=1).run(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not 3"):
        zlaunch.Launcher(workers_per_host=1).run_script(__file__, "--lr", 3)  # type: ignore[arg-type]


def test_unpicklable_argument_names_it_before_anything_starts() -> None:
    with pytest.raises(zlaunch.SerializationError, match=r"argument \d of len") as caught:
        zlaunch.Launcher(workers_per_host=1).run(len, threading.Lock())  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)


def test_unpicklable_function() -> None:
    lock = threading.Lock()
    with pytest.raises(zlaunch.SerializationError, match="lock"):
        zlaunch.Launcher(workers_per_host=1).run(lambda: lock)


def test_unpicklable_result_names_rank_and_object(cluster: zlaunch.Launcher) -> None:
    def fail() -> object:
        return {"inner": [threading.Lock()]} if rank() == 1 else 1

    with pytest.raises(zlaunch.SerializationError, match=r"rank 1") as caught:
        cluster.run(fail)
    assert "inner" in str(caught.value)
    assert "lock" in str(caught.value)


@pytest.mark.parametrize(
    ("end", "code", "number"),
    [
        ("sys.exit(3)", 3, None),
        ("sys.exit('text')", 1, None),
        ("os._exit(0)", 0, None),
        ("os._exit(5)", 5, None),
        ("raise KeyboardInterrupt", None, signal.SIGINT),
        ("os.abort()", None, signal.SIGABRT),
        ("os.kill(os.getpid(), 9)", None, signal.SIGKILL),
        ("import ctypes; ctypes.string_at(0)", None, signal.SIGSEGV),
    ],
)
def test_deaths_are_named_for_what_they_are(
    cluster: zlaunch.Launcher, end: str, code: int | None, number: int | None
) -> None:
    def die() -> None:
        if rank() == 1:
            print("last words")
            exec(f"import os, sys; {end}")
        time.sleep(60)

    with pytest.raises(zlaunch.WorkerFailedError) as caught:
        cluster.run(die)
    error = caught.value
    assert (error.rank, error.exit_code, error.signal) == (1, code, number)
    assert "last words" in error.last_output
    assert error.log_file is not None
    assert "last words\n" in Path(error.log_file).read_text()
    assert not error.out_of_memory
    if end == "sys.exit('text')":
        assert "text" in error.last_output
    if number == signal.SIGSEGV:
        assert any("test_functions.py" in line or "string_at" in line for line in error.last_output)
    if code == 0:
        assert "before it had given a result" in str(error)
    assert [f.kind for f in error.failures if f.rank == 0] == [FateKind.SIGNALED]


def test_exit_zero_in_a_function_is_none(cluster: zlaunch.Launcher) -> None:
    def leave() -> int:
        if rank() == 0:
            sys.exit(0)
        return 1

    assert list(cluster.run(leave)) == [None, 1]


def test_cause_not_symptom() -> None:
    """One rank dies while the other waits for it in a collective: the one that died is named."""

    def step() -> None:
        dist.barrier()
        if rank() == 1:
            raise Plain("I am the cause")
        dist.all_reduce(torch.ones(1))

    with pytest.raises(Plain, match="I am the cause"):
        zlaunch.Launcher(workers_per_host=3, backend="gloo").run(step)


def test_process_group_is_there_and_is_gone(cluster: zlaunch.Launcher) -> None:
    def reduce() -> float:
        t = torch.tensor([float(rank() + 1)])
        dist.all_reduce(t)
        return t.item()

    assert list(cluster.on(backend="gloo", workers_per_host=3).run(reduce)) == [6.0, 6.0, 6.0]
    assert list(cluster.run(dist.is_initialized)) == [False, False]


def test_steps_do_not_see_each_other(cluster: zlaunch.Launcher) -> None:
    def spoil() -> int:
        os.environ["LEAK"] = "1"
        os.chdir("/")
        sys.modules["leak"] = sys
        torch.set_num_threads(1)
        threading.Thread(target=time.sleep, args=(0.2,)).start()
        return os.getpid()

    def look() -> tuple[object, ...]:
        return os.environ.get("LEAK"), os.getcwd(), "leak" in sys.modules, threading.active_count()

    first = cluster.run(spoil)
    assert list(cluster.run(look)) == [(None, os.getcwd(), False, 1)] * 2
    assert not set(first) & set(cluster.run(os.getpid))


def test_two_launchers_in_threads_do_not_disturb_each_other() -> None:
    results: dict[int, list[int]] = {}

    def one(n: int) -> None:
        launcher = zlaunch.Launcher(workers_per_host=2, backend="gloo")
        results[n] = list(launcher.run(lambda: n * 10 + rank()))

    threads = [threading.Thread(target=one, args=(n,)) for n in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {1: [10, 11], 2: [20, 21]}


def test_submit_is_a_future(cluster: zlaunch.Launcher) -> None:
    def slow() -> int:
        time.sleep(60)
        return 1

    run = cluster.submit(slow)
    assert not run.done()
    assert run.status() in ("queued", "reserving", "starting", "running")
    with pytest.raises(TimeoutError):
        run.result(timeout=0.05)
    after = cluster.submit(rank)
    assert run.cancel()
    with pytest.raises(zlaunch.RunCancelled):
        run.result()
    assert run.done()
    assert run.status() == "cancelled"
    assert not run.cancel()
    assert list(after.result(timeout=30)) == [0, 1]
    assert after.exception() is None


def test_a_callback_that_raises_spoils_nothing(cluster: zlaunch.Launcher) -> None:
    called = threading.Event()
    run = cluster.submit(rank)
    run.add_done_callback(lambda _: sys.exit(3))
    run.add_done_callback(lambda _: called.set())
    assert list(run.result(timeout=60)) == [0, 1]
    assert called.wait(60)
    assert list(cluster.submit(rank).result(timeout=60)) == [0, 1]


def test_restarts(tmp_path: object, cluster: zlaunch.Launcher) -> None:
    def third_time() -> tuple[str, str, str]:
        count = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if count < 2 and rank() == 1:
            raise Plain(f"attempt {count}")
        return (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["MASTER_PORT"], os.environ["TORCHELASTIC_RUN_ID"])

    results = cluster.on(max_restarts=2).run(third_time)
    assert [r[0] for r in results] == ["2", "2"]
    with pytest.raises(Plain, match="attempt 1"):
        cluster.on(max_restarts=1).run(third_time)


def test_time_limit(cluster: zlaunch.Launcher) -> None:
    with pytest.raises(zlaunch.TimeLimitExceeded, match=r"0\.3 s"):
        cluster.on(time_limit=0.3).run(time.sleep, 60)


def test_rank_that_ignores_sigterm_is_killed_after_the_grace_period(cluster: zlaunch.Launcher, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def stubborn() -> None:
        if rank() == 1:
            gate.read_text()  # until rank 0 is deaf
            raise Plain("now")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        gate.write_text("deaf")
        time.sleep(60)

    with pytest.raises(Plain) as caught:
        cluster.on(grace_period=0.5).run(stubborn)
    cause = caught.value.__cause__
    assert isinstance(cause, zlaunch.RemoteTraceback)
    assert [f.signal for f in cause.failures if f.rank == 0] == [signal.SIGKILL]


def test_spawn() -> None:
    launcher = zlaunch.Launcher(workers_per_host=2, backend="gloo", start_method="spawn")
    assert list(launcher.run(lambda: (rank(), dist.get_world_size()))) == [(0, 2), (1, 2)]


def test_on_another_size(cluster: zlaunch.Launcher) -> None:
    assert list(cluster.on(hosts=1, workers_per_host=1).run(rank)) == [0]
    with pytest.raises(ValueError, match="host"):
        cluster.on(hosts=2)
    with pytest.raises(TypeError):
        cluster.on(nonsense=1)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"workers_per_host": 0}, "1 at least"),
        ({"workers_per_host": [1, 2]}, "2 numbers for 1 host"),
        ({"workers_per_host": "many"}, "many"),
        ({"workers_per_host": "gpu"}, "localhost"),
        ({"backend": "nonsense"}, "backend"),
        ({"start_method": "thread"}, "start_method"),
        ({"view": "nonsense"}, "view"),
        ({"hostnames": []}, "empty"),
        ({"hostnames": "moon"}, "moon"),
        ({"hostnames": 4}, "hostnames is 4"),
        ({"grace_period": -1}, "grace_period"),
        ({"time_limit": 0}, "time_limit"),
        ({"gpu_memory_fraction": 1.5}, "gpu_memory_fraction"),
        ({"gpu_memory_fraction": 0.5}, r"missing on localhost \(1 wanted, 0 there\)"),
        ({"gpus_per_worker": 2, "backend": None}, r"missing on localhost \(2 wanted, 0 there\)"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker is 1.5; it is a whole number, 1 at least"),
        ({"worker_timeout": float("inf")}, "worker_timeout is inf; it is .* at most"),
        ({"worker_timeout": "long"}, "worker_timeout is 'long'; it is a number"),
        ({"max_restarts": -1}, "max_restarts"),
        ({"max_restarts": 1.5}, "max_restarts"),
        ({"grace_period": "3"}, "grace_period is '3'"),
        ({"time_limit": True}, "time_limit"),
        ({"preload": "torch"}, "preload is 'torch'"),
        ({"copy_env_vars": "NCCL*"}, "copy_env_vars"),
        ({"extra_env_vars": {"OMP_NUM_THREADS": 4}}, "OMP_NUM_THREADS is 4"),
        ({"max_restarts": True}, "max_restarts is True; it is a whole number"),
    ],
)
def test_bad_fields(fields: dict[str, Any], match: str) -> None:
    with pytest.raises((ValueError, zlaunch.LaunchError), match=match):
        zlaunch.Launcher(**{"workers_per_host": 1, **fields}).run(rank)


def test_preload_that_is_not_there() -> None:
    with pytest.raises(zlaunch.LaunchError, match="no_such_module"):
        zlaunch.Launcher(workers_per_host=1, preload=("no_such_module",), backend=None).run(rank)
