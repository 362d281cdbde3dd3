"""The table of known systems, and how a host, a queue, a user's file and -p make one description of it all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from zlaunch.model import Gpu, HostFacts
from zlaunch.systems.description import System, describe
from zlaunch.systems.known import FAMILIES, KNOWN
from zlaunch.systems.params import PARAMETERS, DescriptionError, parse_params
from zlaunch.systems.userfile import parse_systems, read_systems, systems_file

PAGE = (Path(__file__).resolve().parents[1] / "docs/howto/systems.md").read_text()

HERE = HostFacts(hostname="desk", pid=1, cores=6, numa_domains=2)
GPUS = tuple(Gpu(i, "NVIDIA H100", 85_520_809_984, f"GPU-{i}") for i in range(4))


def system(host: str, *, queue: str | None = None, p: str = "", toml: str = "", **environ: str) -> System:
    """A description as it is made of words; no program is on PATH."""
    return describe(
        host,
        environ,
        queue=queue,
        params=parse_params(p.split()),
        file=parse_systems(toml, "/etc/systems.toml"),
        facts=HERE,
    )


def shape(found: System) -> tuple[object, ...]:
    return (
        found.cores_per_node,
        found.gpus_per_node,
        found.gpu_arch,
        found.mem_per_gpu,
        found.numa_domains,
        found.scheduler,
    )


MI250X = (64, 8, "gfx90a", 64, 4, "flux")
MI300A = (96, 4, "gfx942", 128, 4, "flux")
SIERRA = (44, 4, "sm_70", 16, 2, "lsf")


@pytest.mark.parametrize(
    ("host", "queue", "expected"),
    [
        ("tioga10", None, MI250X),
        ("tioga10", "pdebug", MI250X),
        ("tioga10", "mi300a", MI300A),
        ("tuolumne1001", None, MI300A),
        ("tuolumne1001.llnl.gov", "pdebug", MI300A),
        ("Elcap7", None, MI300A),
        ("rzadams1", None, MI300A),
        ("tenaya1", None, MI300A),
        ("rzvernal1", "pllm", MI250X),
        ("corona82", None, (48, 8, "gfx906", 32, 2, "flux")),
        ("matrix3", "erl", (112, 4, "sm_90", 80, 8, "slurm")),
        ("rzvector3", None, (112, 4, "sm_90", 80, 8, "slurm")),
        ("ipa1", None, (32, 2, "sm_80", 40, 1, "slurm")),
        ("ipa1", "aa100", (16, 2, "sm_80", 40, 2, "slurm")),
        ("ipa1", "av100", (32, 2, "sm_70", 32, 2, "slurm")),
        ("ipa1", "v100", (16, 2, "sm_70", 32, 2, "slurm")),
        ("lassen708", "standby", SIERRA),
        ("sierra1", None, SIERRA),
        ("rzansel1", None, SIERRA),
        ("frontier00123", None, (64, 8, "gfx90a", 64, 4, "slurm")),
        ("summit1", None, (42, 6, "sm_70", 16, 2, "lsf")),
        ("lumi-g", None, (64, 8, "gfx90a", 64, 4, "slurm")),
        ("polaris1", None, (32, 4, "sm_80", 40, 0, "pbs")),
        ("leonardo1", None, (32, 4, "sm_80", 64, 0, "slurm")),
        ("perlmutter", None, (64, 4, "sm_80", 0, 0, "slurm")),
    ],
)
def test_a_known_host_and_its_queues(host: str, queue: str | None, expected: tuple[object, ...]) -> None:
    found = system(host, queue=queue)
    assert shape(found) == expected
    assert found.source == "known"
    assert not found.detected
    assert not found.notes


def test_the_first_queue_is_the_default() -> None:
    defaults = {name: next(iter(known.queues)) for name, known in KNOWN.items()}
    assert {name: queue for name, queue in defaults.items() if queue not in ("pbatch", "")} == {
        "tioga": "pdebug",
        "rzvernal": "pdebug",
        "ipa": "a100",
        "lumi-g": "standard-g",
        "leonardo": "boost_usr_prod",
    }
    assert system("ipa1").queue == "a100"
    assert system("summit1").queues == ()


def test_what_programs_can_use_is_less() -> None:
    assert system("tuolumne1").usable_memory == system("tioga1", queue="mi300a").usable_memory == 0.8
    assert system("tioga1").usable_memory == 1.0
    assert system("lassen1").usable_cores == 32
    assert system("frontier1").usable_cores == 56
    assert system("corona1").usable_cores == 48


def test_every_family_is_used_and_every_arguments_scheduler_is_its_systems() -> None:
    assert {known.family for known in KNOWN.values()} == {*FAMILIES, ""}
    for known in KNOWN.values():
        family = FAMILIES[known.family].arguments if known.family else ()
        assert {argument.scheduler for argument in (*family, *known.arguments)} <= {known.scheduler}


def test_a_queue_that_the_table_has_not_is_taken_for_the_default_and_said() -> None:
    found = system("tioga10", queue="pnew")
    assert shape(found) == MI250X
    assert found.queue == "pnew"
    assert found.notes == ("queue pnew of tioga is not known here: its nodes are taken to be those of pdebug",)
    assert not system("summit1", queue="batch").notes  # no queue of it is known, so this may be the one


def test_the_queue_of_our_own_job_counts_where_none_is_asked_for() -> None:
    assert shape(system("ipa1", SLURM_JOB_PARTITION="v100"))[2] == "sm_70"
    assert shape(system("ipa1", queue="a100", SLURM_JOB_PARTITION="v100"))[2] == "sm_80"


def test_a_domain_of_that_name_is_another_system() -> None:
    assert system("desk.matrix.org").source == "detected"
    assert system("matrix3.somewhere.org").name == "matrix"


def test_centres_name_their_systems_by_variables() -> None:
    assert system("login05", NERSC_HOST="perlmutter").name == "perlmutter"
    assert system("login05.frontier.olcf.ornl.gov", LMOD_SYSTEM_NAME="frontier").name == "frontier"
    assert system("uan02", SLURM_CLUSTER_NAME="unheard-of").name == ""


def test_a_system_that_nobody_knows_is_what_is_here() -> None:
    found = system("desk")
    assert shape(found) == (6, 0, "", 0, 2, "none")
    assert (found.source, found.name) == ("detected", "")
    assert found.detected == tuple(PARAMETERS)
    assert system("12345").name == ""


def test_detected_memory_is_of_the_smallest_gpu_in_decimal_gigabytes() -> None:
    facts = HostFacts(hostname="desk", pid=1, cores=6, gpus=(*GPUS, Gpu(4, "other", 90_000_000_000)))
    found = describe("desk", {}, queue=None, params={}, file={}, facts=facts, gpu_arch="sm_90")
    assert (found.gpus_per_node, found.gpu_arch, found.mem_per_gpu) == (5, "sm_90", 85.5)


# --- -p -----------------------------------------------------------------------------------------------------


def test_every_parameter_of_the_command_line() -> None:
    words = "cores_per_node=128 gpus_per_node=8 gpu_arch=ampere mem_per_gpu=80 numa_domains=4 scheduler=slurm"
    for host in ("desk", "tioga1"):
        found = system(host, p=words)
        assert shape(found) == (128, 8, "ampere", 80, 4, "slurm")
        assert found.usable_cores == 128
        assert found.overridden == tuple(PARAMETERS)
        assert not found.detected


def test_a_parameter_says_nothing_of_the_others() -> None:
    found = system("tuolumne1", p="mem_per_gpu=96.5")
    assert shape(found) == (96, 4, "gfx942", 96.5, 4, "flux")
    assert found.usable_memory == 1.0
    found = system("desk", p="gpus_per_node=8")
    assert found.described("gpus_per_node")
    assert not found.described("numa_domains")


@pytest.mark.parametrize("word", ["slurm", "SlurmScheduler", "SLURM"])
def test_schedulers_have_all_their_spellings(word: str) -> None:
    assert parse_params([f"scheduler={word}"]) == {"scheduler": "slurm"}
    assert parse_params(["scheduler=LocalScheduler"]) == parse_params(["scheduler=None"]) == {"scheduler": "none"}


def test_of_a_parameter_given_twice_the_last_counts() -> None:
    assert parse_params(["gpus_per_node=8", "gpus_per_node=4"]) == {"gpus_per_node": 4}


@pytest.mark.parametrize(
    ("word", "said", "hint"),
    [
        ("gpus_per_nod=8", "there is no gpus_per_nod parameter", "did you mean gpus_per_node?"),
        ("GPU-ARCH=x", "there is no GPU-ARCH parameter", "did you mean gpu_arch?"),
        ("colour=red", "there is no colour parameter", "there are cores_per_node, gpus_per_node"),
        ("=3", "there is no empty parameter", "there are cores_per_node"),
        ("gpus_per_node", "expected KEY=VALUE", "did you mean gpus_per_node?"),
        ("gpus_per_node=", "expected a whole number, 0 at least, not ''", ""),
        ("gpus_per_node=-1", "expected a whole number, 0 at least, not -1", ""),
        ("gpus_per_node=2.5", "not 2.5", ""),
        ("gpus_per_node=1_0", "not '1_0'", ""),
        ("cores_per_node=0", "1 at least, not 0", ""),
        ("cores_per_node=many", "not 'many'", ""),
        ("cores_per_node=" + "9" * 400, "expected a whole number", ""),
        ("mem_per_gpu=80GB", "expected a number of GB above 0, not '80GB'", ""),
        ("mem_per_gpu=0", "above 0", ""),
        ("mem_per_gpu=nan", "above 0", ""),
        ("mem_per_gpu=inf", "above 0", ""),
        ("gpu_arch= ", "expected a name", ""),
        ("scheduler=slrum", "expected slurm, flux, lsf, pbs or none, not 'slrum'; did you mean slurm?", ""),
    ],
)
def test_a_parameter_that_cannot_be_meant(word: str, said: str, hint: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        parse_params([word])
    assert caught.value.message.startswith(f"-p {word}: ")
    assert said in caught.value.message
    assert caught.value.hint.startswith(hint)


# --- the user's file ----------------------------------------------------------------------------------------

OWN = """
[cave]
hosts = ["login", "deep"]
scheduler = "SlurmScheduler"
cores_per_node = 64
gpus_per_node = 4
gpu_arch = "sm_90"
mem_per_gpu = 94
numa_domains = 2

[cave.queues.small]
[cave.queues.large]
gpus_per_node = 8
mem_per_gpu = 141.5

[cave.env]
NCCL_SOCKET_IFNAME = "ib0"
OMP_NUM_THREADS = 8

[cave.args]
"--gpu-bind" = "none"
"--exclusive" = true
"""


def test_a_system_of_the_users_own() -> None:
    found = system("deep07.cave.example", toml=OWN)
    assert (found.name, found.source, found.file) == ("cave", "file", "/etc/systems.toml")
    assert shape(found) == (64, 4, "sm_90", 94, 2, "slurm")
    assert (found.queue, found.queues) == ("small", ("small", "large"))
    assert [(one.name, one.value) for one in found.environment] == [
        ("NCCL_SOCKET_IFNAME", "ib0"),
        ("OMP_NUM_THREADS", "8"),
    ]
    assert [(one.scheduler, one.key, one.value) for one in found.arguments] == [
        ("slurm", "--gpu-bind", "none"),
        ("slurm", "--exclusive", None),
    ]
    assert shape(system("login", queue="large", toml=OWN)) == (64, 8, "sm_90", 141.5, 2, "slurm")
    assert shape(system("login", queue="large", toml=OWN, p="gpus_per_node=2"))[1] == 2
    assert system("cave1", toml=OWN).source == "detected"  # hosts are named, so the system's name is none


def test_an_own_system_wins_over_the_table_and_leaves_the_rest_to_it() -> None:
    found = system("tioga10", toml="[tioga]\nmem_per_gpu = 60\n[tioga.env]\nNCCL_CROSS_NIC = 2\n")
    assert shape(found) == (64, 8, "gfx90a", 60, 4, "flux")
    assert found.source == "file"
    assert [one.value for one in found.environment if one.name == "NCCL_CROSS_NIC"] == ["2"]
    assert any(one.name == "NCCL_SOCKET_IFNAME" for one in found.environment)
    toml = "[tioga.queues.pnew]\ngpus_per_node = 2\n"
    assert shape(system("tioga10", toml=toml))[1] == 2
    assert shape(system("tioga10", queue="mi300a", toml=toml)) == MI300A
    assert not system("tioga10", queue="mi300a", toml=toml).notes


def test_what_an_own_system_leaves_open_is_as_here() -> None:
    found = system("cave1", toml="[cave]\nmem_per_gpu = 80\n")
    assert shape(found) == (6, 0, "", 80, 2, "none")
    assert set(found.detected) == set(PARAMETERS) - {"mem_per_gpu"}


def test_an_own_system_of_a_known_family() -> None:
    found = system("cave1", toml='[cave]\nfamily = "corona"\nscheduler = "flux"\n')
    assert [one.name for one in found.environment] == [one.name for one in FAMILIES["corona"].environment]
    assert [one.key for one in found.arguments] == ["--exclusive"]


def test_one_host_in_full_is_another_system_than_its_like() -> None:
    toml = '[odd]\nhosts = ["node7"]\ncores_per_node = 1\n[even]\nhosts = ["node"]\ncores_per_node = 2\n'
    assert [system(host, toml=toml).name for host in ("node7", "node8")] == ["odd", "even"]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[cave]\ncore_per_node = 1\n", "cave.core_per_node: there is no such key; did you mean cores_per_node?"),
        ("[cave]\nmem_per_gpu = '80'\n", "cave.mem_per_gpu: expected a number of GB above 0, not '80'"),
        ("[cave]\ngpus_per_node = true\n", "cave.gpus_per_node: expected a whole number, 0 at least, not True"),
        ("[cave]\nscheduler = 'slrum'\n", "cave.scheduler: expected slurm, flux, lsf, pbs or none, not 'slrum'"),
        ("[cave]\nhosts = 'login'\n", "cave.hosts: expected names of hosts"),
        ("[cave]\nhosts = []\n", "cave.hosts: expected names of hosts"),
        ("[cave]\nfamily = 'sierre'\n", "cave.family: there is no family 'sierre'; did you mean sierra?"),
        ("[cave]\nqueues = 3\n", "cave.queues: expected a table"),
        ("[cave.queues]\nbig = 3\n", "cave.queues.big: expected a table"),
        ("[cave.queues.big]\nmem = 3\n", "cave.queues.big.mem: there is no such key"),
        ("[cave.queues.big]\nnuma_domains = 0\n", "cave.queues.big.numa_domains: expected"),
        ("[cave.queues.big]\nscheduler = 'lsf'\n", "cave.queues.big.scheduler: a system has one scheduler"),
        ("[cave.env]\n'A=B' = 1\n", "cave.env.A=B: this is not a variable's name"),
        ("[cave.env]\nA = [1]\n", "cave.env.A: expected a string or a number, not [1]"),
        ("[cave.env]\nA = true\n", "cave.env.A: expected a string or a number, not True"),
        ("[cave.args]\nexclusive = true\n", "cave.args.exclusive: expected an option"),
        ("[cave.args]\n--exclusive = false\n", "cave.args.--exclusive: expected a string, a number, or true"),
        ("cave = 1\n", "cave: expected a table, [cave], not 1"),
        ("[a]\nhosts=['x']\n[b]\nhosts=['X']\n", "b.hosts: 'x' is a host of a already"),
        ("[cave\n", "Expected ']'"),
        ("a = " + "[" * 5000, "recursion"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_file_and_key(toml: str, said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        parse_systems(toml, "/etc/systems.toml")
    assert str(caught.value).startswith("/etc/systems.toml: ")
    assert said in str(caught.value)


def test_where_the_file_is() -> None:
    assert systems_file({"HOME": "/h"}) == Path("/h/.config/zlaunch/systems.toml")
    assert systems_file({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}) == Path("/x/zlaunch/systems.toml")
    assert systems_file({"HOME": "/h", "XDG_CONFIG_HOME": "x"}) == Path("/h/.config/zlaunch/systems.toml")


def test_no_file_is_no_system_and_an_unreadable_one_is_told(tmp_path: Path) -> None:
    assert read_systems(tmp_path / "none" / "systems.toml") == {}
    with pytest.raises(DescriptionError, match=f"{tmp_path}: Is a directory"):
        read_systems(tmp_path)
    (tmp_path / "latin").write_bytes(b"[caf\xe9]\n")
    with pytest.raises(DescriptionError, match="latin: this is not UTF-8"):
        read_systems(tmp_path / "latin")
    (tmp_path / "empty").touch()
    assert read_systems(tmp_path / "empty") == {}


# --- the page about it --------------------------------------------------------------------------------------


def test_the_page_has_the_table() -> None:
    rows: dict[str, set[tuple[str, ...]]] = {}
    for line in PAGE.partition("## Known systems")[2].partition("## ")[0].splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
        for name in cells[0].split(", ") if len(cells) == 9 else ():
            rows.setdefault(name, set()).add(cells[1:])
    for name, known in KNOWN.items():
        expected: set[tuple[str, ...]] = set()
        for node in known.queues.values():
            cores = f"{node.cores} ({node.usable_cores} used)" if node.usable_cores else str(node.cores)
            memory = f"{node.memory:g}" if node.memory else "?"
            memory += f" ({node.usable_memory:g} usable)" if node.usable_memory < 1 else ""
            queues = ", ".join(queue for queue, other in known.queues.items() if other == node) or "?"
            shape = (cores, str(node.gpus), node.arch, memory, str(node.numa or "?"))
            expected.add((queues, *shape, known.scheduler, known.family or "-"))
        assert rows.pop(name) == expected
    assert set(rows) <= {"system", "---"}


def test_the_file_on_the_page_can_be_read() -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert shape(system("deep3", queue="large", toml=toml)) == (64, 8, "sm_90", 141, 2, "slurm")
    assert shape(system("deep3", toml=toml)) == (64, 4, "sm_90", 94, 2, "slurm")


def test_the_page_has_every_parameter() -> None:
    assert not [name for name in PARAMETERS if f"| `{name}` |" not in PAGE]


def test_none_of_it_loads_much() -> None:
    code = (
        "import sys, zlaunch.systems.sizes, zlaunch.systems.communication, zlaunch.systems.userfile;"
        "print({'torch', 'zmq', 'rich', 'tomllib', 'msgspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "set()", done.stderr
