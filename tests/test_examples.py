"""The examples do what they say, on real data."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
TIMEOUT = 100

pytest.importorskip("sklearn")


def run(*argv: str) -> str:
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_train_digits_by_one_command() -> None:
    """Four ranks, one model, and nothing but the ranks' own lines on stdout."""
    preload = ("--preload", "torch,torch._dynamo,sklearn.datasets")
    stdout = run("-m", "zlaunch", "run", "-n", "4", *preload, str(EXAMPLES / "train_digits.py"))
    found = re.findall(r"^\[rank 0\] test accuracy: ([\d.]+)$", stdout, re.MULTILINE)
    assert len(found) == 1
    assert float(found[0]) > 0.95
    for rank in range(4):
        assert f"[rank {rank}] rank {rank} of 4 is done\n" in stdout
    losses = [float(loss) for loss in re.findall(r"^\[rank 0\] epoch \d+: loss ([\d.]+)$", stdout, re.MULTILINE)]
    assert len(losses) == 8
    assert losses[-1] < losses[0] / 2
    assert all(line.startswith("[rank") for line in stdout.splitlines())


def test_workflow() -> None:
    """Train on 4, evaluate on 1, sweep over a bad and a good setting: all of it on the same agents."""
    said = [line for line in run(str(EXAMPLES / "workflow.py")).splitlines() if not line.startswith("[rank")]
    trained, bad, good = said
    match = re.fullmatch(r"trained on 4 ranks, evaluated on 1: accuracy ([\d.]+)", trained)
    assert match
    assert float(match[1]) > 0.95
    assert re.fullmatch(r"lr -1\.0: a learning rate of -1\.0 learns nothing \(said rank [0-3]\)", bad)
    match = re.fullmatch(r"lr 0\.01: accuracy ([\d.]+)", good)
    assert match
    assert float(match[1]) > 0.9
