"""The command lines that torchrun-hpc's users have, with each scheduler: what is asked for, and the job's script."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import msgspec
import pytest

import zlaunch
from zlaunch.backends import schedulers
from zlaunch.backends.scheduler import Job as InJob
from zlaunch.backends.scheduler import Launch, Nodes
from zlaunch.cli import papers, scripts
from zlaunch.cli.grammar import UsageError, split
from zlaunch.cli.job import Job, job
from zlaunch.model import AllocationRequest
from zlaunch.protocol.bootstrap import Bootstrap
from zlaunch.systems.interpreter import PACKAGE_ROOT

GOLDENS = Path(__file__).parent / "goldens"
SYSTEMS = {"slurm": "matrix", "flux": "corona", "lsf": "lassen"}
"""A known system of each, so that the goldens do not depend on what this machine has."""
LINES = """\
-N 1 -n 4 train.py --epochs 100
-N 2 -n 8 train.py --batch-size 256
-r mpi -N 4 -n 8 train.py
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
--comm-backend RCCL -N 4 -n 8 amd_train.py
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
--verbose -N 16 -n 8 --gpus-per-proc 1 -r mpi --fraction-max-gpu-mem 0.9 --comm-backend NCCL -q production -t 1440 \
--exclusive --bg -l production_run_1 --account ai_training -J "GPT_Training" --save-hostlist \
-p gpu_arch=a100 mem_per_gpu=80 --out logs/gpt_out.log --err logs/gpt_err.log train_gpt.py --model-size 13B \
--batch-size 2048 --learning-rate 1e-4 --warmup-steps 1000 --max-steps 100000
-x NCCL_DEBUG=INFO -N 2 -n 8 train.py
-r mpi -N 2 -n 8 train.py
""".splitlines()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papers, "_program", lambda _: ("zlaunch",))
    monkeypatch.setattr(papers, "_new_folder", lambda name: f"zlaunch-{name}-TIME")
    for line in LINES:
        (tmp_path / next(word for word in line.split() if word.endswith(".py"))).write_text("")
    return tmp_path


def made(line: str, system: str = "matrix", **environ: str) -> Job:
    """On a known system, whatever this machine has."""
    there = {"PATH": os.environ["PATH"], "LMOD_SYSTEM_NAME": system}
    return job(split(shlex.split(line)), {**there, **environ})


def shown(line: str, name: str, folder: Path) -> str:
    """What is asked for, and what the ranks' environment gets; or why that cannot be."""
    scheduler = schedulers.of(name)
    try:
        what = made(f"--scheduler {name} {line}", SYSTEMS[name])
    except UsageError as error:
        return f"$ zlaunch run {line}\n  refused: {error}; {error.hint}\n\n"
    text = f"$ zlaunch run {line}\n  asks for: {shlex.join(scheduler.words(what.request, {}))}\n"
    text += f"  starts agents with: {shlex.join(scheduler.flat(what.request.step))}\n" if what.request.step else ""
    if what.rendezvous == "mpi":
        assert isinstance(what.workers, int)
        nodes = Nodes("<job>", tuple(f"n{number + 1}" for number in range(what.request.nodes or 1)))
        counts = [what.workers] * len(nodes.names)
        command = scheduler.ranks(nodes, counts, ["<caller>"], what.request.ranks, "openmpi")
        text += f"  starts MPI processes with: {shlex.join(command.argv)}\n"
    text += f"  ranks per node: {what.workers}\n"
    text += "".join(f"  sets: {key}={value}\n" for key, value in what.env)
    text += "".join(f"  says: {note}\n" for note in what.notes)
    script = made(f"--scheduler {name} --bg {line}", SYSTEMS[name])
    assert script.papers is not None
    whole = scripts.script(script, script.papers)
    lines = whole.replace(str(folder), "/home/me").replace(zlaunch.__version__, "VERSION")
    return text + "".join(f"  | {line}\n" if line else "  |\n" for line in lines.splitlines()) + "\n"


def start_of(name: str) -> str:
    """How agents are started: on nodes that are asked for, and within a job."""
    scheduler, launch = schedulers.of(name), Launch("/opt/bin/python", "module load cuda", "/home/me/.cache/launch")
    held = scheduler.hold(AllocationRequest(nodes=2, name="train.py"), launch, {"PATH": "/nowhere"})
    nodes = Nodes("12", ("n1", "n2"), ("0", "1"))
    inside = scheduler.agents(nodes, launch, (), {"PATH": "/nowhere"})
    text = f"outside of a job: {shlex.join(held.argv)}\n\ninside of one: {shlex.join(inside.argv)}\n\n"
    for file, lines in held.files.items():
        text += f"{file}:\n" + "".join(f"  | {line}\n" for line in lines.splitlines()) + "\n"
    return text.replace(zlaunch.__version__, "VERSION").replace(json.dumps(PACKAGE_ROOT), '"/home/me/zlaunch"')


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_they_become(name: str, folder: Path) -> None:
    text = start_of(name) + "".join(shown(line, name, folder) for line in LINES)
    golden = GOLDENS / f"{name}-reference.txt"
    if os.environ.get("ZLAUNCH_WRITE_GOLDENS"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("line", [line for line in LINES if "RCCL" not in line])  # matrix has NVIDIA's GPUs
def test_within_the_job_the_script_means_the_same(line: str) -> None:
    outside = made(f"--scheduler slurm {line}")
    script = made(f"--scheduler slurm --bg {line}")
    assert script.papers is not None
    words = split(script.papers.command[2:])
    inside = job(words, {"LMOD_SYSTEM_NAME": "matrix", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"})
    same = ("kind", "argv", "env", "time_limit", "out", "err", "gpus_per_worker", "gpu_memory_fraction", "verbose")
    for name in (*same, "unswap_rocr_hip", "save_hostlist", "color_stderr", "rendezvous"):
        assert getattr(inside, name) == getattr(outside, name), name
    assert inside.workers == outside.workers
    assert inside.request.ranks == outside.request.ranks
    assert (inside.scheduler, inside.inside, inside.request.nodes) == ("slurm", "7", None)
    assert inside.papers is None
    assert inside.log_dir is not None
    assert inside.log_dir.endswith("/zlaunch_logs")


def test_whose_gpus_it_is_for() -> None:
    assert dict(made("--scheduler slurm --comm-backend RCCL train.py", "lumi-g").env) == {}
    with pytest.raises(UsageError, match="NVIDIA's"):
        made("--scheduler slurm --comm-backend RCCL train.py")


@pytest.mark.parametrize(
    ("name", "answer", "seconds"),
    [
        ("slurm", "12|59\n", 59),
        ("slurm", "12|1:30\n", 90),
        ("slurm", "12|2:00:05\n", 7205),
        ("slurm", "11|7\n12|1-02:00:00\n13|8\n", 93600),
        ("slurm", "12|UNLIMITED\n", None),
        ("slurm", "12|INVALID\n", None),
        ("slurm", "", None),
        ("flux", "300\n", 300),
        ("flux", "4294967295\n", None),
        ("flux", "flux-job: no\n", None),
        ("lsf", "1:05 L\n", 3900),
        ("lsf", "1:05 E\n", None),
        ("lsf", "-\n", None),
    ],
)
def test_how_long_a_job_may_still_run(name: str, answer: str, seconds: float | None) -> None:
    assert schedulers.of(name).left("12", answer) == seconds


def test_whose_job_we_are_in_and_who_is_there(tmp_path: Path) -> None:
    nowhere = {"PATH": "/nowhere"}
    slurm_job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert schedulers.here(nowhere) == ("none", "")
    assert schedulers.here({**nowhere, **slurm_job}) == ("slurm", "7")
    assert schedulers.here({**nowhere, **slurm_job, "FLUX_URI": "local:///run/flux"}) == ("flux", "local:///run/flux")
    assert schedulers.here({**nowhere, "LSB_JOBID": "3", "LSB_MCPU_HOSTS": "a 4 b 4 "}) == ("lsf", "3")
    for program in ("bsub", "flux"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    assert schedulers.here({"PATH": str(tmp_path)}) == ("lsf", "")  # no broker listens
    assert schedulers.here({"PATH": str(tmp_path), "FLUX_URI": "local:///x"})[0] == "flux"


def test_coral_jobs_begin_on_a_host_that_is_no_node() -> None:
    lsf = schedulers.of("lsf")
    hosts = {"LSB_JOBID": "3", "LSB_MCPU_HOSTS": "n1 1 n2 42 n3 42 "}
    assert lsf.job_in(hosts) == InJob("3", "n1 n2 n3", 3)
    assert lsf.job_in({**hosts, "CSM_ALLOCATION_ID": "9"}) == InJob("3", "n2 n3", 2)
    assert lsf.job_in({**hosts, "LSB_MCPU_HOSTS": "batch5 1 n2 42 "}) == InJob("3", "n2", 1)


@pytest.mark.parametrize(
    ("line", "asked", "step"),
    [
        ("", "", "--mpibind=off --gpu-bind=none"),
        ("-x --gpu-bind=closest", "--gpu-bind=closest", "--mpibind=off --gpu-bind=closest"),
        ("-x~--gpu-bind", "", "--mpibind=off"),
        ("-x --mpi=pmix", "", "--mpibind=off --gpu-bind=none --mpi=pmix"),
        ("-x --comment=a -x --comment=b", "--comment=a --comment=b", "--mpibind=off --gpu-bind=none"),
        ("-x --no-kill=off", "--no-kill=off", "--mpibind=off --gpu-bind=none"),
    ],
)
def test_where_arguments_of_the_schedulers_own_go(line: str, asked: str, step: str) -> None:
    request = made(f"--scheduler slurm -N 2 -n 2 {line} -- train.py").request
    slurm = schedulers.of("slurm")
    words = slurm.words(request, {})
    assert [word for word in words if word.startswith(("--gpu-bind", "--comment", "--no-kill="))] == asked.split()
    command = slurm.agents(Nodes("1", ("a", "b")), Launch("python"), request.step, {})
    usual = slurm.agents(Nodes("1", ("a", "b")), Launch("python"), (), {})
    said = [word for word in command.argv if word not in usual.argv]
    assert sorted(said) == sorted(step.split())
    inside = made(f"-n 2 {line} -- train.py", SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n[1-2]").request
    assert inside.extra == ()


def test_signs_of_slurm_say_nothing_of_a_node_of_flux() -> None:
    """An instance of Flux may be in a job of Slurm's: all its agents would take themselves for the node that we are."""
    assert schedulers.of("flux").environment({"SLURMD_NODENAME": "n1", "A": "1"}) == {
        "A": "1",
        "FLUX_F58_FORCE_ASCII": "1",
    }


def test_a_host_knows_itself_by_its_short_name_where_no_other_has_it() -> None:
    def place(*places: str) -> str:
        line = Bootstrap(
            places=dict.fromkeys(places, msgspec.Raw(b"1")), template=None, stdin_is_link=True, connect_timeout=1
        )
        return line.place(["n1", "n1"])[0]

    assert place("n1.x.org", "n2.x.org") == "n1.x.org"
    assert place("n1", "n1.x.org") == "n1"
    with pytest.raises(LookupError):
        place("n1.x.org", "n1.y.org")


@pytest.mark.parametrize(("name", "line"), [("lsf", "-l run%J -- train.py"), ("flux", "-l 'a {{id}}' -- train.py")])
def test_names_that_a_scheduler_would_change(name: str, line: str) -> None:
    script = made(f"--scheduler {name} --bg {line}", SYSTEMS[name])
    assert script.papers is not None
    with pytest.raises(UsageError, match=r"LSF puts numbers|one of its templates"):
        scripts.script(script, script.papers)
