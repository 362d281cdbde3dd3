"""The command lines that torchrun-hpc's users have, as they are with Slurm: what is asked for, and the job's script."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

import zlaunch
from zlaunch.backends import slurm
from zlaunch.cli import batch, papers
from zlaunch.cli.grammar import UsageError, split
from zlaunch.cli.job import Job, job

GOLDEN = Path(__file__).parent / "goldens" / "slurm-reference.txt"
LINES = """\
-N 1 -n 4 train.py --epochs 100
-N 2 -n 8 train.py --batch-size 256
-r tcp -N 2 -n 4 train.py
--rdv tcp -N 4 -n 8 cloud_train.py
--fraction-max-gpu-mem 0.8 -N 2 -n 8 train.py
--fraction-max-gpu-mem 0.75 -N 1 -n 4 large_model.py
--fraction-max-gpu-mem 0.5 -n 2 shared_gpu_train.py
-u -N 2 -n 8 accelerate_train.py
--unswap-rocr-hip-vis-dev -N 4 -n 8 torchtitan_train.py
-g 32 distributed_train.py
--gpumem-at-least 80 -n 8 large_model_train.py
--exclusive -N 4 -n 8 performance_critical.py
-N 2 -n 2 --gpus-per-proc 4 model_parallel_train.py
-q gpu_queue -t 480 -N 4 -n 8 long_train.py
--bg -J "BERT_finetune" -N 2 -n 8 bert_train.py
--dependency afterok:12345 -N 2 -n 4 continue_train.py
--account ml_research -N 8 -n 8 research_train.py
--reservation dat_2024 -N 16 -n 8 dat_experiment.py
--comm-backend NCCL -N 4 -n 8 nvidia_train.py
--comm-backend MPI -N 8 -n 4 mpi_train.py
--setup-only -o torch_job.sh -N 4 -n 8 train.py
--dry-run -N 8 -n 8 train.py --lr 0.001
-l experiment_001 -N 2 -n 8 experiment.py
--save-hostlist -N 4 -n 8 debug_train.py
-p gpus_per_node=8 gpu_arch=a100 -N 2 train.py
-p cores_per_node=128 mem_per_gpu=80 -N 4 -n 8 custom_train.py
--scheduler slurm -N 2 -n 8 train.py
--out output.log --err error.log -N 2 -n 8 train.py
--color-stderr --verbose -N 1 -n 4 debug_train.py
--verbose --save-hostlist --out logs/train_out.log --err logs/train_err.log -N 4 -n 8 train.py
-x NCCL_DEBUG=INFO -N 2 -n 8 train.py
""".splitlines()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papers, "_program", lambda _: ("zlaunch",))
    monkeypatch.setattr(papers, "_new_folder", lambda name: f"zlaunch-{name}-TIME")
    for line in LINES:
        (tmp_path / next(word for word in line.split() if word.endswith(".py"))).write_text("")
    return tmp_path


def made(line: str, **environ: str) -> Job:
    """On a system whose nodes have four GPUs, 80 GB each, whatever this machine has."""
    there = {"PATH": os.environ["PATH"], "SLURM_CLUSTER_NAME": "matrix"}
    return job(split(shlex.split(line)), {**there, **environ})


def shown(line: str, folder: Path) -> str:
    what = made(f"--scheduler slurm {line}")
    asked = " ".join(map(shlex.quote, slurm.allocation_words(what.request)))
    text = f"$ zlaunch run {line}\n  asks for: {asked}\n  ranks per node: {what.workers}\n"
    text += "".join(f"  sets: {name}={value}\n" for name, value in what.env)
    text += "".join(f"  says: {note}\n" for note in what.notes)
    script = made(f"--scheduler slurm --bg {line}")
    assert script.papers is not None
    lines = batch.script(script, script.papers).replace(str(folder), "/home/me").replace(zlaunch.__version__, "VERSION")
    return text + "".join(f"  | {line}\n" if line else "  |\n" for line in lines.splitlines()) + "\n"


def test_what_they_become(folder: Path) -> None:
    text = "".join(shown(line, folder) for line in LINES)
    if os.environ.get("ZLAUNCH_WRITE_GOLDENS"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize("line", LINES)
def test_within_the_job_the_script_means_the_same(line: str) -> None:
    outside = made(f"--scheduler slurm {line}")
    script = made(f"--scheduler slurm --bg {line}")
    assert script.papers is not None
    words = split(script.papers.command[2:])
    inside = job(words, {"SLURM_CLUSTER_NAME": "matrix", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"})
    same = ("kind", "argv", "env", "time_limit", "out", "err", "gpus_per_worker", "gpu_memory_fraction", "verbose")
    for name in (*same, "unswap_rocr_hip", "save_hostlist", "color_stderr"):
        assert getattr(inside, name) == getattr(outside, name), name
    assert inside.workers == outside.workers
    assert (inside.scheduler, inside.inside, inside.request.nodes) == ("slurm", "7", None)
    assert inside.papers is None
    assert inside.log_dir is not None
    assert inside.log_dir.endswith("/zlaunch_logs")


@pytest.mark.parametrize("line", ["-r mpi -N 4 -n 8 train.py", "--rdv mpi train.py"])
def test_what_is_not_built_yet(line: str) -> None:
    with pytest.raises(UsageError, match="not built yet"):
        made(line)


def test_whose_gpus_it_is_for() -> None:
    assert dict(made("--scheduler slurm --comm-backend RCCL train.py", SLURM_CLUSTER_NAME="lumi-g").env) == {}
    with pytest.raises(UsageError, match="NVIDIA's"):
        made("--scheduler slurm --comm-backend RCCL train.py")
