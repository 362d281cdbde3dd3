"""The bridges: a launcher's fields on a user's own command line, and Lightning's cluster environment."""

import subprocess
import sys
import types
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path

import pytest

from zlaunch import Launcher
from zlaunch.integrations.argparse import add_zlaunch_arguments, launcher_from_args


def parsed(line: str) -> Launcher:
    parser = ArgumentParser()
    parser.add_argument("--lr", type=float)
    add_zlaunch_arguments(parser)
    return launcher_from_args(parser.parse_args(line.split()))


def test_nothing_given_is_the_default() -> None:
    assert parsed("") == Launcher()
    assert parsed("--lr 0.1") == Launcher()


def test_every_field_can_be_given() -> None:
    line = (
        "--hostnames a b --workers-per-host 2 4 --backend None --rendezvous mpi --ssh-config-file c "
        "--worker-timeout 5 --agent-timeout 6.5 --copy-env-vars A* B --extra-env-vars X=1 Y=a=b --env-file e "
        "--gpus-per-worker 2 --gpu-memory-fraction 0.5 --unswap-rocr-hip true --preload torch,numpy "
        "--start-method spawn --grace-period 1 --time-limit 60 --max-restarts 3 --log-dir None --view json "
        "--python p --setup s --host-timeout 9 --bind core"
    )
    given = parsed(line)
    assert given == Launcher(
        hostnames=["a", "b"],
        workers_per_host=[2, 4],
        backend=None,
        rendezvous="mpi",
        ssh_config_file="c",
        worker_timeout=5,
        agent_timeout=6.5,
        copy_env_vars=("A*", "B"),
        extra_env_vars={"X": "1", "Y": "a=b"},
        env_file="e",
        gpus_per_worker=2,
        gpu_memory_fraction=0.5,
        unswap_rocr_hip=True,
        preload=("torch", "numpy"),
        start_method="spawn",
        grace_period=1,
        time_limit=60,
        max_restarts=3,
        log_dir=None,
        view="json",
        python="p",
        setup="s",
        host_timeout=9,
        bind="core",
    )
    for field in fields(Launcher):
        if field.init:
            assert getattr(given, field.name) != getattr(Launcher(), field.name), field.name


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("--hostnames slurm", "hostnames", "slurm"),
        ("--hostnames localhost", "hostnames", ["localhost"]),
        ("--workers-per-host gpu", "workers_per_host", "gpu"),
        ("--workers-per-host 3", "workers_per_host", 3),
        ("--backend gloo", "backend", "gloo"),
        ("--view live", "view", "live"),
        ("--time-limit None", "time_limit", None),
    ],
)
def test_single_words(line: str, field: str, value: object) -> None:
    assert getattr(parsed(line), field) == value


@pytest.mark.parametrize(
    "line",
    ["--workers-per-host 0", "--backend nccll", "--extra-env-vars X", "--unswap-rocr-hip maybe", "--view lively"],
)
def test_what_cannot_be_meant_is_an_error_of_argparse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(line)
    assert caught.value.code == 2
    assert line.split(maxsplit=1)[0] in capsys.readouterr().err


def test_words_among_several_numbers() -> None:
    with pytest.raises(ValueError, match="one number for each host"):
        parsed("--workers-per-host 2 gpu")


def test_the_help_has_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: zlaunch_logs)" in text
    assert "--extra-env-vars KEY=VALUE" in text


def test_lightning_is_asked_for_only_when_it_is_used() -> None:
    code = (
        "import sys, zlaunch.integrations.lightning as here; assert 'lightning' not in sys.modules\n"
        "try: here.ZlaunchClusterEnvironment\n"
        "except ImportError as error: print(error)\n"
        "else: print('pip install lightning')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install lightning" in done.stdout, done.stderr


def test_the_cluster_environment_is_below_lightnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a package in Lightning's place: the real one is used where it is installed."""
    name = "lightning.fabric.plugins.environments.torchelastic"
    stand_in = types.ModuleType(name)
    stand_in.TorchElasticEnvironment = type("TorchElasticEnvironment", (), {})  # type: ignore[attr-defined]
    parts = name.split(".")
    for depth in range(1, len(parts)):
        parent = types.ModuleType(".".join(parts[:depth]))
        parent.__path__ = []
        monkeypatch.setitem(sys.modules, parent.__name__, parent)
    monkeypatch.setitem(sys.modules, name, stand_in)
    import zlaunch.integrations.lightning as lightning

    for cached in lightning.__all__:
        monkeypatch.delitem(vars(lightning), cached, raising=False)
    environment = lightning.ZlaunchClusterEnvironment
    assert issubclass(environment, stand_in.TorchElasticEnvironment)
    assert environment.detect()
    assert lightning.TorchrunxClusterEnvironment is environment
    for cached in lightning.__all__:
        monkeypatch.delitem(vars(lightning), cached, raising=False)
