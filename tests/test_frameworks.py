"""Frameworks as they come from their registries: examples as scripts, on one host and on two, and as functions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from bed import Bed
from torch.distributed.elastic.multiprocessing.errors import record

import zlaunch

EXAMPLES = Path(__file__).parent.parent / "examples"
PRELOAD = {
    "torch": ("torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"),
    "sklearn": ("sklearn.datasets",),
    "accelerate": ("accelerate",),
    "transformers": ("transformers.trainer",),
    "lightning": ("lightning.pytorch",),
    "deepspeed": ("deepspeed",),
}
"""For each package what of it is imported before the fork, for all scripts alike."""

ACCURACY = r"test accuracy (0\.9\d+|1\.0+)"
SCRIPTS = {
    "accelerate_digits": ("accelerate", rf"accelerate on 4 ranks: {ACCURACY}"),
    "trainer_digits": ("transformers", rf"Trainer on 4 ranks: {ACCURACY}"),
    "lightning_digits": ("lightning", rf"Lightning on 4 ranks: {ACCURACY}"),
    "deepspeed_digits": ("deepspeed", rf"DeepSpeed on 4 ranks: {ACCURACY}"),
    "fsdp2_digits": ("sklearn", rf"FSDP2 on 4 ranks: {ACCURACY}"),
    "dtensor_matmul": ("torch", r"DTensor on 4 ranks: largest error (\d\.\de(?:-0[4-9]|\+00))"),
    "from_environment": ("torch", r"environment on 4 ranks: they add up to 6, on hosts \[([\d, ]+)\]"),
}
"""For each script its package, and what rank 0 says in the end."""


def run(*argv: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=100, check=False, env=os.environ | env
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("where", ["four ranks here", "two hosts"])
def test_scripts(bed: Bed, where: str, capfd: pytest.CaptureFixture[str]) -> None:
    """All of them in ranks that were forked from a template with all frameworks."""
    place: dict[str, Any] = {"workers_per_host": 4}
    if where == "two hosts":
        place = {"hostnames": ["node1", "node2"], "ssh_config_file": bed.ssh_config, "workers_per_host": 2}
    there = [package for package in PRELOAD if find_spec(package)]
    preload = [module for package in there for module in PRELOAD[package]]
    with zlaunch.Launcher(**place, preload=preload, view="plain") as ranks:
        for name, (package, last) in SCRIPTS.items():
            if package not in there:
                continue
            ranks.run_script(EXAMPLES / f"{name}.py")
            said, notes = capfd.readouterr()
            assert "zlaunch:" not in notes, notes  # of anything that could not be forked, or else
            (found,) = re.findall(rf"^\[rank 0\] {last}$", said, re.MULTILINE)
            assert name != "from_environment" or found == ("0, 0, 0, 0" if where == "four ranks here" else "0, 0, 1, 1")
        check_record(ranks, capfd)
        if where == "four ranks here" and {"accelerate", "lightning"} <= set(there):
            check_functions(ranks.on(workers_per_host=2, backend="gloo"))
    if len(there) < len(PRELOAD):
        pytest.skip(f"of {len(PRELOAD)} packages only {', '.join(there)} are installed")


def check_record(ranks: zlaunch.Launcher, capfd: pytest.CaptureFixture[str]) -> None:
    script = EXAMPLES / "record_error.py"
    ranks.run_script(script, "--culprit", "-1")
    said = capfd.readouterr().out
    for rank in range(4):
        assert f"[rank {rank}] rank {rank}: the ranks' losses add up to 2.0\n" in said
    with pytest.raises(zlaunch.WorkerFailedError) as caught:
        ranks.run_script(script, "--culprit", "3")
    assert caught.value.rank == 3
    assert "BadLoss: the loss on rank 3 is nan" in str(caught.value)
    capfd.readouterr()


def test_the_same_file_under_torchrun() -> None:
    script = str(EXAMPLES / "from_environment.py")
    done = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, OMP_NUM_THREADS="1")
    assert "environment on 2 ranks: they add up to 1, on hosts [0, 0]" in done.stdout


# --- record -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [(), ("--", sys.executable)], ids=["script", "command"])
def test_what_record_sees_is_told_with_its_traceback(tmp_path: Path, before: tuple[str, ...]) -> None:
    """Also where a launcher around us has set a file for its own rank: it stays the launcher's."""
    script = str(EXAMPLES / "record_error.py")
    theirs = tmp_path / "error.json"
    done = run("-m", "zlaunch", "run", "-n", "2", *before, script, status=1, TORCHELASTIC_ERROR_FILE=str(theirs))
    report = done.stderr[done.stderr.index("zlaunch: rank 1 ") :]
    assert "BadLoss: the loss on rank 1 is nan" in report
    assert re.search(r'File ".*record_error\.py", line \d+, in train', report)
    assert not before or "exited with status 1" in report
    assert before or "raised BadLoss: the loss on rank 1 is nan" in report
    assert not theirs.exists()


def test_recorded_where_it_is_asked_for(tmp_path: Path) -> None:
    asked = tmp_path / "error.json"
    script = str(EXAMPLES / "record_error.py")
    run("-m", "zlaunch", "run", "-n", "2", "--env", f"TORCHELASTIC_ERROR_FILE={asked}", script, status=1)
    assert json.loads(asked.read_text())["message"]


# --- functions --------------------------------------------------------------------------------------------------------


def train(example: str) -> tuple[float, bool]:
    """An example's own function; with it whether the process group is still the one that was there before."""
    import torch.distributed as dist

    group = dist.group.WORLD
    sys.path.insert(0, str(EXAMPLES))
    accuracy = __import__(example).main()
    return accuracy, dist.group.WORLD is group


def remembered() -> tuple[int, int]:
    """For what ranks Lightning and torchmetrics take this one."""
    from lightning.pytorch.utilities import rank_zero_only
    from torchmetrics.utilities import prints

    return rank_zero_only.rank, prints.rank_zero_only.rank


@record
def fail() -> None:
    raise ArithmeticError("in a recorded function")


def check_functions(ranks: zlaunch.Launcher) -> None:
    """The group that is there is used, and left; where there is none, each framework makes its own."""
    # What asked for its rank when it was imported has it all the same.
    assert ranks.run(remembered).results == {"localhost": [(0, 0), (1, 1)]}
    for example in ("accelerate_digits", "lightning_digits"):
        (first, kept), (second, _) = ranks.run(train, example)
        assert first == second
        assert first > 0.9
        assert kept
        assert ranks.on(backend=None).run(train, example)[0][0] > 0.9
    with pytest.raises(ArithmeticError, match="in a recorded function"):
        ranks.run(fail)


def test_an_example_that_starts_its_own_ranks() -> None:
    pytest.importorskip("accelerate")
    done = run(str(EXAMPLES / "accelerate_digits.py"))
    assert re.search(r"^\[rank 0\] accelerate on 4 ranks: test accuracy 0\.9\d+$", done.stdout, re.MULTILINE)
    assert re.search(r"^returned by rank 0: 0\.9\d+$", done.stdout, re.MULTILINE)
