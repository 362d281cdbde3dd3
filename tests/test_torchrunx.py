"""torchrunx's README and usage pages, in our own words: scripts in which only the import was changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT = 60


def run(name: str, *argv: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A script of the folder, in the test's own directory."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / f"org_{name}.py"), *argv],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env={**os.environ, "TERM": "dumb"},
    )
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def of_ranks(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("[rank")]


def own(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("[rank")]


def test_a_simple_training_loop() -> None:
    done = run("simple_loop")
    assert own(done.stdout) == ["saved ['bias', 'weight']"]
    for rank in (0, 1):
        steps = [line for line in of_ranks(done.stdout) if line.startswith(f"[rank {rank}] step ")]
        assert [line.split()[3] for line in steps] == ["0:", "1:", "2:", "3:", "4:"]


def test_several_functions_in_one_script() -> None:
    assert own(run("several_functions").stdout) == ["fine-tuned: 1.0"]


def test_exceptions_and_retries() -> None:
    assert own(run("exceptions").stdout) == [
        "4096 does not fit: CUDA out of memory. Tried to allocate 3.00 GiB",
        "fits: 64",
        "attempt 0 failed, and says why: [True, True]",
        "attempt 1: resumed: True",
    ]


def test_the_environment() -> None:
    assert own(run("environment").stdout) == [
        "HF_HOME=/models",
        "WANDB_PROJECT=digits",
        "FROM_DICT=dict",
        "FROM_FILE=file",
        "BOTH=file",
        "QUOTED=two words",
        "EXPANDED=/models/hub",
    ]


def test_custom_handlers() -> None:
    """Each handler has what its filter lets through and nothing else; printed lines are INFO and ERROR records."""
    done = run("handlers")
    first, _, rest = done.stdout.partition("-- builders\n")
    second, _, third = rest.partition("-- none\n")
    assert of_ranks(done.stdout) == [], "handlers stand in the console's place"

    redirected = [line for line in first.splitlines() if line.startswith("zlaunch.localhost")]
    assert [line for line in redirected if ".1 " in line] == ["zlaunch.localhost.1 ERROR complained by 1"]
    assert not [line for line in redirected if ".0 " in line]
    in_file = [line for line in first.splitlines() if not line.startswith("zlaunch.")]
    assert sorted(in_file) == [
        "DEBUG my_app: details of 0",
        "ERROR complained by 0",
        "INFO my_app: hello of 0",
        "INFO printed by 0",
    ]

    of_rank_0 = [line for line in second.splitlines() if line.startswith("zlaunch.localhost.0 ")]
    assert sorted(of_rank_0) == [
        "zlaunch.localhost.0 DEBUG my_app: details of 0",
        "zlaunch.localhost.0 ERROR complained by 0",
        "zlaunch.localhost.0 INFO my_app: hello of 0",
        "zlaunch.localhost.0 INFO printed by 0",
    ]
    assert "zlaunch.localhost.1" not in second
    assert "file: ['ERROR: complained by 1']" in second.splitlines()

    assert third == ""
    assert "rank" not in done.stderr


def test_levels_by_host_and_rank() -> None:
    """The loggers ``zlaunch.<host>.<local rank>`` decide; the names below them inherit."""
    said = run("default_logging").stderr.splitlines()
    assert sorted(line for line in said if line.startswith("zlaunch.localhost.")) == [
        "zlaunch.localhost.0 WARNING my_app: warning of 0",
        "zlaunch.localhost.1 DEBUG my_app: debug of 1",
        "zlaunch.localhost.1 WARNING my_app: warning of 1",
    ]


def test_argparse() -> None:
    line = "--lr 0.5 --hostnames localhost --workers-per-host 2 --backend gloo --extra-env-vars A=1"
    assert own(run("argparse", *line.split()).stdout) == ["0 gloo 0.5 1", "1 gloo 0.5 1"]
    assert "--workers-per-host" in run("argparse", "--help").stdout
    assert "--backend" in run("argparse", "--backend", "smoke-signals", status=2).stderr


def test_a_launcher_made_from_its_dataclass(tmp_path: Path) -> None:
    """By tyro, which reads the fields' types: each that torchrunx has can be given."""
    pytest.importorskip("tyro")
    (tmp_path / "run.env").write_text("FROM_FILE=file\n")
    line = (
        "--hostnames localhost --workers-per-host 2 --backend None --worker-timeout 60 --agent-timeout 30 "
        "--copy-env-vars PATH HF_* --extra-env-vars A 1 --env-file run.env --ssh-config-file none"
    )
    assert own(run("dataclass_cli", *line.split()).stdout) == ["0 1 file", "1 1 file"]
