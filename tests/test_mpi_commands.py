"""What starts MPI processes on a scheduler's nodes, and what cannot be had: nothing is run here."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

import zlaunch
from zlaunch.allocation import shown
from zlaunch.backends import schedulers
from zlaunch.backends.scheduler import Launch, Nodes, Refused
from zlaunch.cli.grammar import split
from zlaunch.cli.job import Job, job
from zlaunch.cli.main import main
from zlaunch.model import AllocationRequest

CORAL = {"CSM_ALLOCATION_ID": "9", "LSB_JOBID": "3", "LSB_MCPU_HOSTS": "batch5 1 a 42 b 42 "}
SLURM = "--overlap --no-kill --kill-on-bad-exit=0 --wait=0"
FLUX = "--unbuffered -o exit-timeout=none -o cpu-affinity=off -o gpu-affinity=off"
JSRUN = "env -u TMPDIR jsrun"


@pytest.fixture(autouse=True)
def script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")


def ranks(name: str, places: str, *step: str, flavour: str = "openmpi") -> str:
    """For ``b:2 a:1``; of Flux's nodes a is the first."""
    pairs = [place.split(":") for place in places.split()]
    names, counts = tuple(name for name, _ in pairs), [int(count) for _, count in pairs]
    ids = tuple(str(ord(name) - ord("a")) for name in names) if name == "flux" else ()
    options = [(one.partition("=")[0], one.partition("=")[2] or None) for one in step]
    command = schedulers.of(name).ranks(Nodes("7", names, ids), counts, ["call er", "-c"], options, flavour)
    assert command.files == {}
    return shlex.join(command.argv).removesuffix(" 'call er' -c")


@pytest.mark.parametrize(
    ("places", "flavour", "step", "expected"),
    [
        (
            "a2:2 a10:2",
            "openmpi",
            "",
            f"{SLURM} --nodes=2 --ntasks=4 --nodelist=a2,a10 --ntasks-per-node=2 --distribution=block --overcommit "
            "--cpu-bind=none --mpi=pmix",
        ),
        (
            "a:1 b:2",
            "mpich",
            "",
            f"{SLURM} --nodes=2 --ntasks=3 --nodelist=a,b,b --distribution=arbitrary --overcommit --cpu-bind=none "
            "--mpi=pmi2",
        ),
        (
            "b:1 a:1",
            "",
            "--mpi=pmix_v3 --cpu-bind=cores ~--overcommit",
            f"{SLURM} --nodes=2 --ntasks=2 --nodelist=b,a --distribution=arbitrary --cpu-bind=cores --mpi=pmix_v3",
        ),
    ],
)
def test_slurm(places: str, flavour: str, step: str, expected: str) -> None:
    assert ranks("slurm", places, *step.split(), flavour=flavour) == f"srun --jobid=7 {expected}"


def test_flux() -> None:
    here = "flux run --nodes=2 --tasks-per-node=3 --exclusive --requires=host:a,b"
    assert ranks("flux", "a:3 b:3") == f"{here} {FLUX}"
    assert ranks("flux", "a:3 b:3", "-opmi=pmix", "~--exclusive", "-ocpu-affinity=on") == (
        f"{here.replace(' --exclusive', '')} {FLUX.replace('cpu-affinity=off', 'cpu-affinity=on')} -o pmi=pmix"
    )


def test_lsf_by_mpirun() -> None:
    rest = "--map-by slot --oversubscribe --bind-to none --mca plm_rsh_agent blaunch"
    assert ranks("lsf", "b:2 a:1", "--smpiargs=-gpu") == f"mpirun --host b:2,a:1 -n 3 {rest}"
    assert ranks("lsf", "b:2 a:1", "-x=NAME", flavour="mpich") == (
        "mpiexec -n 3 -hosts b:2,a:1 -launcher lsf -bind-to none -x NAME"
    )


def test_lsf_by_jsrun_whose_agents_leave_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CORAL.items():
        monkeypatch.setenv(name, value)
    assert ranks("lsf", "a:4 b:4", "--smpiargs=-gpu") == (
        f"{JSRUN} --rs_per_host=1 --tasks_per_rs=4 --bind=none --exit_on_error=0 --cpu_per_rs=1 --nrs=2 --smpiargs=-gpu"
    )
    with pytest.raises(Refused, match="use all hosts of the job"):
        ranks("lsf", "a:4")
    agents = [
        shown(schedulers.of("lsf"), AllocationRequest(), Launch("python", mpi=mpi), CORAL)[1].argv[2]
        for mpi in (False, True)
    ]
    assert [" --cpu_per_rs=ALL_CPUS " in agents[0], " --cpu_per_rs=41 " in agents[1]] == [True, True]


@pytest.mark.parametrize("name", ["flux", "lsf"])
def test_as_many_on_each_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSM_ALLOCATION_ID", "9")
    with pytest.raises(Refused, match=r"2, 1 ranks on the hosts, and .* as many MPI processes on each; say one number"):
        ranks(name, "a:2 b:1")


def test_flux_would_change_a_callers_words() -> None:
    with pytest.raises(Refused, match="one of its templates"):
        schedulers.of("flux").ranks(Nodes("7", ("a",), ("0",)), [1], ["bash", "-c", "echo {{id}}"], (), "")


def test_flux_has_an_order_of_its_own() -> None:
    with pytest.raises(Refused, match="b, a: Flux numbers ranks in an order of its own"):
        ranks("flux", "b:2 a:2")


def test_a_scheduler_of_which_nobody_knows_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(schedulers.of("slurm")), "ranks")
    with pytest.raises(Refused, match=r"no way to start MPI processes in Slurm's jobs; use --rdv tcp"):
        ranks("slurm", "a:1")
    with pytest.raises(Refused, match=r"no way to start MPI processes in Slurm's jobs; use --rdv tcp"):
        schedulers.of("slurm").attended((), "sh", "", "")


# --- the command line -----------------------------------------------------------------------------------------------


def made(line: str, system: str, **environ: str) -> Job:
    return job(split(shlex.split(line)), {"PATH": os.environ["PATH"], "LMOD_SYSTEM_NAME": system, **environ})


@pytest.mark.parametrize(
    ("scheduler", "system", "line", "asked", "agents", "processes"),
    [
        ("slurm", "matrix", "--mpi=pmi2", "", "--mpibind=off --gpu-bind=none", "--mpi=pmi2"),
        ("slurm", "matrix", "--gpu-bind=no", "--gpu-bind=no", "--mpibind=off --gpu-bind=none", "--gpu-bind=no"),
        (
            "slurm",
            "matrix",
            "--mem=0 --cpu-bind=sockets",
            "--mem=0",
            "--mpibind=off --gpu-bind=none",
            "--cpu-bind=sockets",
        ),
        ("lsf", "lassen", "", "", "", "--smpiargs=-gpu"),
        ("lsf", "lassen", "--bind=rs --smpiargs=off", "", "", "--bind=rs --smpiargs=off"),
        ("flux", "corona", "-opmi=pmix", "", "--exclusive", "--exclusive -opmi=pmix"),
        (
            "flux",
            "tuolumne",
            "",
            "",
            "--exclusive -ofastload=on --setattr=rdzv_get_en=0",
            "--exclusive -ofastload=on --setattr=rdzv_get_en=0",
        ),
    ],
)
def test_what_is_for_which_command(
    scheduler: str, system: str, line: str, asked: str, agents: str, processes: str
) -> None:
    """What binds processes on known systems, jsrun's --bind and Flux's mpibind, is left out: those are not ranks."""
    more = "".join(f" -x {word}" for word in line.split())
    one = made(f"--scheduler {scheduler} -r mpi -N 2 -n 2{more} -- train.py", system).request
    extra, step, ranks = (
        {f"{name}={value}" if value else name for name, value in words} for words in (one.extra, one.step, one.ranks)
    )
    assert (extra, step) == (set(asked.split()), set(agents.split()))
    assert ranks >= set(processes.split())
    assert ranks - set(processes.split()) <= step


@pytest.mark.parametrize(("scheduler", "title"), [("flux", "Flux"), ("lsf", "LSF")])
def test_from_outside_zlaunch_itself_becomes_the_job(
    scheduler: str, title: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = f"run --scheduler {scheduler} -r mpi -N 2 -n 2 -t 5 --dry-run"
    assert main([*words.split(), *(["-x", "-opmi=pmix", "--"] if scheduler == "flux" else []), "train.py", "a b"]) == 0
    out = capsys.readouterr().out
    how = {"flux": "flux alloc --verbose --nodes=2", "lsf": "bsub -I -n 4 -R 'span[ptile=2]'"}[scheduler]
    assert f"all this in a job, by: {how} " in out
    starts = {"flux": "flux run --nodes=2 --tasks-per-node=2", "lsf": "mpirun --host '<node 1 of 2>:2,"}[scheduler]
    assert f"\nMPI processes, one for each rank: {starts}" in out
    assert out.partition("MPI processes")[2].partition("\n")[0].endswith(" zlaunch-rank '<step>' <attempt>")
    inner = " -x -opmi=pmix" if scheduler == "flux" else ""
    assert f" run --scheduler={scheduler} -n 2{inner} -r mpi -t 5 train.py 'a b'\n" in out
    assert list(tmp_path.iterdir()) == [tmp_path / "train.py"]
    if scheduler == "flux":
        assert main([*words.split(), "--setup", "echo {{id}}", "train.py"]) == 125
        assert "Flux would take {{ for one of its templates" in capsys.readouterr().err
    launcher = zlaunch.Launcher(hostnames=[scheduler], rendezvous="mpi", workers_per_host=1)
    monkeypatch.setattr("zlaunch.worlds.library", lambda _: "openmpi")
    with pytest.raises(
        zlaunch.LaunchError, match=f"{title} starts MPI processes within its jobs only, and we are in none"
    ):
        launcher.run(print)
