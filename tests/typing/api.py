"""User code that is never run: mypy says whether the public API keeps its users' types.

Each wrong line carries the error that it must give; where it gave none, the unused ignore would be the error.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar, assert_type

import zlaunch
from zlaunch import Launcher, LaunchResult, RemoteTraceback, Run, WorkerFailedError
from zlaunch.integrations.argparse import add_zlaunch_arguments, launcher_from_args
from zlaunch.log_handling import RedirectHandler, default_handlers, file_handlers, get_handler_filter

P = ParamSpec("P")
R = TypeVar("R")


def train(epochs: int, *, lr: float = 0.1) -> dict[str, float]:
    return {"loss": epochs * lr}


def nothing() -> None:
    return None


class Trainer:
    def fit(self, epochs: int) -> "Trainer":
        return self

    def __call__(self, name: str) -> bytes:
        return name.encode()


def results_keep_the_functions_type(launcher: Launcher) -> None:
    results = launcher.run(train, 3, lr=0.5)
    assert_type(results, LaunchResult[dict[str, float]])
    assert_type(results[0], dict[str, float])
    assert_type(results[1:], list[dict[str, float]])
    assert_type(results.rank(0), dict[str, float])
    assert_type(results.index("localhost", 0), dict[str, float])
    assert_type(results.index(hostname="localhost", local_rank=0), dict[str, float])
    assert_type(results.results, dict[str, list[dict[str, float]]])
    assert_type(iter(results), Iterator[dict[str, float]])
    assert_type(len(results), int)
    first, second = results
    assert_type((first, second), tuple[dict[str, float], dict[str, float]])
    assert_type(launcher.run(nothing), LaunchResult[None])
    assert_type(launcher.run(Trainer().fit, 3)[0], Trainer)
    assert_type(launcher.run(Trainer(), "name")[0], bytes)
    assert_type(launcher.run(lambda: 3)[0], int)
    assert_type(launcher.run_script("train.py", "--lr", "1"), LaunchResult[None])
    assert_type(launcher.run_script(Path("train.py")), LaunchResult[None])
    assert_type(launcher.run_module("package.train", "--lr", "1"), LaunchResult[None])
    assert_type(launcher.run_command("./a.out"), LaunchResult[None])


def wrong_arguments_are_errors(launcher: Launcher) -> None:
    launcher.run(train)  # type: ignore[call-arg]
    launcher.run(train, "3")  # type: ignore[arg-type]
    launcher.run(train, 3, lr="fast")  # type: ignore[arg-type]
    launcher.run(train, 3, rate=0.5)  # type: ignore[call-arg]
    launcher.run(train, 3, 0.5)  # type: ignore[call-arg]
    launcher.run(3)  # type: ignore[arg-type]
    launcher.submit(train, "3")  # type: ignore[arg-type]
    launcher.run_script(3)  # type: ignore[arg-type]
    launcher.run_command("ls", 3)  # type: ignore[arg-type]


def wrong_fields_are_errors() -> None:
    Launcher(backend="smoke")  # type: ignore[arg-type]
    Launcher(hostnames="moon")  # type: ignore[arg-type]
    Launcher(workers_per_host="many")  # type: ignore[arg-type]
    Launcher(start_method="thread")  # type: ignore[arg-type]
    Launcher(preload="torch")  # type: ignore[arg-type]
    Launcher(workers=3)  # type: ignore[call-arg]


def right_fields() -> None:
    Launcher(hostnames=["a", "b"], workers_per_host=[8, 4], backend=None, env_file=Path(".env"))
    Launcher(
        hostnames="slurm",
        workers_per_host="gpu",
        backend="nccl",
        rendezvous="tcp",
        copy_env_vars=(*zlaunch.DEFAULT_ENV_VARS_FOR_COPY, "WANDB_*"),
        extra_env_vars={"A": "1"},
        preload=("torch", "numpy"),
        start_method="spawn",
        time_limit=60,
        grace_period=0.5,
        gpu_memory_fraction=0.5,
        log_dir=None,
        view="plain",
    )


def runs(launcher: Launcher) -> None:
    run = launcher.submit(train, 3)
    assert_type(run, Run[dict[str, float]])
    assert_type(run.result(timeout=3), LaunchResult[dict[str, float]])
    assert_type(run.exception(), BaseException | None)
    assert_type(run.done(), bool)
    assert_type(run.cancel(), bool)
    assert_type(run.status(), str)

    def told(ended: Run[dict[str, float]]) -> None:
        assert_type(ended.result()[0], dict[str, float])

    run.add_done_callback(told)


def agents_that_stay() -> None:
    with Launcher(workers_per_host=4) as cluster:
        assert_type(cluster, Launcher)
        assert_type(cluster.on(hosts=1, workers_per_host=1), Launcher)
        assert_type(cluster.on(hostnames=["localhost"]).run(train, 3)[0], dict[str, float])
    assert_type(Launcher().start(), Launcher)


def errors(launcher: Launcher) -> None:
    try:
        launcher.run(nothing)
    except WorkerFailedError as error:
        assert_type((error.rank, error.local_rank, error.hostname, error.pid), tuple[int, int, str, int])
        assert_type((error.exit_code, error.signal), tuple[int | None, int | None])
        assert_type(error.out_of_memory, bool)
        assert_type(error.last_output, list[str])
        assert_type(error.log_file, str | None)
        assert_type(error.failures, list[zlaunch.Fate])
    except zlaunch.AgentFailedError as error:
        assert_type((error.hostname, error.reason), tuple[str, str])
    except zlaunch.SerializationError as error:
        as_type_error: TypeError = error
        raise as_type_error from None
    except (zlaunch.LaunchError, zlaunch.TimeLimitExceeded, zlaunch.RunCancelled) as error:
        ours: zlaunch.ZlaunchError = error
        as_runtime_error: RuntimeError = ours
        raise as_runtime_error from None
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, RemoteTraceback):
            assert_type((cause.rank, cause.local_rank, cause.hostname, cause.pid), tuple[int, int, str, int])
            assert_type(cause.failures, list[zlaunch.Fate])


def logs(launcher: Launcher) -> None:
    def handlers() -> list[logging.Handler]:
        handler = RedirectHandler()
        handler.addFilter(get_handler_filter("localhost", None, log_level=logging.DEBUG))
        return [handler, *default_handlers(["localhost"], [2]), *file_handlers(["localhost"], [2], Path("logs"))]

    assert_type(launcher.set_logging_handlers(handlers), Launcher)
    launcher.set_logging_handlers("auto").set_logging_handlers(None)
    launcher.set_logging_handlers([RedirectHandler()])  # type: ignore[arg-type]


def command_lines() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_zlaunch_arguments(parser)
    assert_type(launcher_from_args(parser.parse_args()), Launcher)


def wrappers_keep_types() -> None:
    def on_one_rank(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return Launcher(workers_per_host=1).run(function, *args, **kwargs)[0]

    assert_type(on_one_rank(train, 3), dict[str, float])
