"""Several real hosts, reached by ssh: the same lines, the same results, whatever the network is like."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import far_steps
import pytest
from bed import Bed
from far_rig import Ears, far

import zlaunch

ROOT = Path(__file__).parent.parent


def mean(value: float) -> float:
    """All ranks' mean, and everybody's."""
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([value + dist.get_rank()])
    dist.all_reduce(tensor)
    return float(tensor) / dist.get_world_size()


def command(bed: Bed, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command of zlaunch's with the bed's hosts in the configuration of ssh."""
    argv = [sys.executable, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, cwd=bed.folder)


def test_a_script_trains_over_three_hosts(bed: Bed) -> None:
    words = (
        "-m",
        "zlaunch",
        "run",
        "--hosts",
        "node1,node2,node3",
        "--ssh-config",
        str(bed.ssh_config),
        "-n",
        "2",
        "--env",
        "OMP_NUM_THREADS=1",
    )
    done = command(bed, *words, str(ROOT / "examples" / "train_digits.py"))
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"^\[rank 0\] test accuracy: ([\d.]+)$", done.stdout, re.MULTILINE)
    assert float(found) > 0.95
    for rank in range(6):
        assert f"[rank {rank}] rank {rank} of 6 is done\n" in done.stdout


def test_a_workflow_reuses_the_agents_of_three_hosts(bed: Bed) -> None:
    done = command(
        bed,
        str(ROOT / "examples" / "workflow.py"),
        *("--hostnames", "node1", "node2", "node3", "--ssh-config-file", str(bed.ssh_config)),
        *("--workers-per-host", "1", "--extra-env-vars", "OMP_NUM_THREADS=1"),  # the hosts share two cores
    )
    assert done.returncode == 0, done.stderr
    trained, bad, good = [line for line in done.stdout.splitlines() if not line.startswith("[rank")]
    assert re.fullmatch(r"trained on 3 ranks, evaluated on 1: accuracy 0\.9\d+", trained)
    assert re.fullmatch(r"lr -1\.0: a learning rate of -1\.0 learns nothing \(said rank [0-2]\)", bad)
    assert re.fullmatch(r"lr 0\.01: accuracy 0\.9\d+", good)


def test_results_come_by_host_and_rank(bed: Bed) -> None:
    launcher = far(bed, workers_per_host=[2, 1, 1], backend="gloo", preload=("torch",))
    results = launcher.run(mean, 1.0)
    assert results.results == {"node1": [2.5, 2.5], "node2": [2.5], "node3": [2.5]}
    assert results.index("node3", 0) == results[3] == 2.5


def test_steps_of_any_size_on_the_same_agents(bed: Bed) -> None:
    with far(bed, workers_per_host=2) as launcher:
        agents = dict(launcher.run(far_steps.parent))
        assert list(agents) == bed.hosts
        assert len(launcher.on(hosts=1, workers_per_host=1).run(far_steps.here)) == 1
        backwards = launcher.on(hostnames=["node3", "node1"], workers_per_host=1).run(far_steps.here)
        assert list(backwards) == [("node3", 0, 2), ("node1", 1, 2)]
        with ThreadPoolExecutor() as pool:
            left = pool.submit(launcher.on(hostnames=["node1"]).run, far_steps.here)
            right = pool.submit(launcher.on(hostnames=["node2", "node3"]).run, far_steps.here)
            assert [host for host, _, _ in left.result(60)] == ["node1"] * 2
            assert [host for host, _, _ in right.result(60)] == ["node2"] * 2 + ["node3"] * 2
        assert dict(launcher.run(far_steps.parent)) == agents


def test_this_machine_may_be_among_them(bed: Bed) -> None:
    launcher = far(bed, "localhost", "node2", workers_per_host=1, backend="gloo", preload=("torch",))
    assert launcher.run(mean, 0.0).results == {"localhost": [0.5], "node2": [0.5]}
    launcher = far(bed, "root@node2", "localhost", workers_per_host=1, backend="gloo", preload=("torch",))
    assert launcher.run(mean, 0.0).results == {"root@node2": [0.5], "localhost": [0.5]}


def test_hosts_that_are_known_by_ipv6_only(bed: Bed) -> None:
    launcher = far(bed, "node1-six", "node2-six", backend="gloo", preload=("torch",))
    assert launcher.run(mean, 0.0).results == {"node1-six": [0.5], "node2-six": [0.5]}


def test_a_head_that_the_hosts_cannot_reach_is_reached_through_ssh(fresh_bed: Bed) -> None:
    for host in fresh_bed.hosts:
        fresh_bed.block_head(host)
    words = ("-m", "zlaunch", "run", "-v", "--hosts", "node1,node2,node3", "--ssh-config", str(fresh_bed.ssh_config))
    done = command(fresh_bed, *words, "-n", "1", "--", "hostname")
    assert done.returncode == 0, done.stderr
    assert sorted(line.split("] ")[1] for line in done.stdout.splitlines()) == fresh_bed.hosts
    for host in fresh_bed.hosts:
        assert re.search(rf"{host}: connected through ssh", done.stderr), done.stderr
        left = fresh_bed.run(host, ["find", "/tmp", "-maxdepth", "1", "-type", "s"]).stdout
        assert left == ""
    with far(fresh_bed) as launcher:
        data = os.urandom(32 << 20)
        assert set(launcher.run(far_steps.double, data)) == {data[::-1]}


def test_one_gigabyte_there_and_back(bed: Bed) -> None:
    import numpy

    data = numpy.arange(1 << 27)  # of 8 bytes each
    back = far(bed, "node1").run(far_steps.negative, data)[0]
    assert back.nbytes == 1 << 30
    assert numpy.array_equal(back, numpy.negative(data, out=data))


def test_lines_of_all_hosts_are_whole_and_in_order(bed: Bed) -> None:
    ears = Ears()
    far(bed, workers_per_host=2).set_logging_handlers(lambda: [ears]).run(far_steps.talk, 3000)
    heard: dict[str, list[int]] = {}
    while not ears.heard.empty():
        record = ears.heard.get()
        if record.levelno != logging.INFO:
            continue
        rank, number, rest = re.split("[: ]", record.getMessage())
        assert rest == "x" * 100
        heard.setdefault(rank, []).append(int(number))
    assert heard == {str(rank): list(range(3000)) for rank in range(6)}


MODULE = """
import os

class Shape:
    def __init__(self, sides):
        self.sides = sides

class TooMany(Exception):
    pass

def area(shape):
    if shape.sides > 4:
        raise TooMany(shape.sides)
    return Shape(shape.sides * 10), os.path.exists(__file__)
"""
MAIN = """
import sys
import shapes
import zlaunch

class Local:
    pass

def measure(shape):
    return shapes.area(shape), Local()

launcher = zlaunch.Launcher(hostnames=["node1", "node2"], workers_per_host=1, ssh_config_file=sys.argv[1], preload=(),
    log_dir=None, backend="gloo")
for (shape, found), local in launcher.run(measure, shapes.Shape(4)):
    assert type(shape) is shapes.Shape, type(shape)
    assert type(local) is Local, type(local)
    print(shape.sides, found)
print([shape.sides for shape, _ in launcher.run(shapes.area, shapes.Shape(2))])
try:
    launcher.run(measure, shapes.Shape(5))
except shapes.TooMany as error:
    print("caught", error, error.__cause__.hostname in ("node1", "node2"))
"""


def test_functions_and_their_modules_travel_to_hosts_without_our_home(bed: Bed) -> None:
    with tempfile.TemporaryDirectory(prefix="only-here-") as folder:  # each host has a /tmp of its own
        Path(folder, "shapes.py").write_text(MODULE)
        Path(folder, "main.py").write_text(MAIN)
        assert not bed.path("node1", folder).exists()
        done = command(bed, str(Path(folder, "main.py")), str(bed.ssh_config))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["40 False", "40 False", "[20, 20]", "caught 5 True"]


# --- the remote side ------------------------------------------------------------------------------------------------


def test_what_ranks_find_there(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COPIED", "here")
    monkeypatch.setenv("SECRET_OF_THIS_MACHINE", "here")
    names = ("TORCH_COPIED", "SECRET_OF_THIS_MACHINE", "EXTRA", "SSH_CONNECTION", "ZLAUNCH_HOSTNAME")
    with far(bed, "node1", "localhost", extra_env_vars={"EXTRA": "1"}) as launcher:
        there, mine = launcher.run(far_steps.environment, *names)
        monkeypatch.setenv("TORCH_COPIED", "changed")
        again, _ = launcher.run(far_steps.environment, *names)
    assert there["TORCH_COPIED"] == "here"
    assert there["SECRET_OF_THIS_MACHINE"] is None
    assert there["EXTRA"] == mine["EXTRA"] == "1"
    assert there["SSH_CONNECTION"]
    assert there["ZLAUNCH_HOSTNAME"] == "node1"
    assert mine["SECRET_OF_THIS_MACHINE"] == "here"
    assert again["TORCH_COPIED"] == "changed"


def test_they_start_where_we_are_or_at_home(bed: Bed, tmp_path: Path) -> None:
    assert far(bed, "node1").run(far_steps.whereabouts)[0] == (sys.executable, str(tmp_path))
    with tempfile.TemporaryDirectory(prefix="only-here-") as folder:  # each host has a /tmp of its own
        os.chdir(folder)
        try:
            assert far(bed, "node1").run(far_steps.whereabouts)[0] == (sys.executable, "/root")
        finally:
            os.chdir(tmp_path)


def test_another_interpreter_and_a_setup_command(bed: Bed, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    launcher = far(bed, "node1", python=str(python), setup="export FROM_SETUP=yes")
    assert launcher.run(far_steps.environment, "FROM_SETUP")[0] == {"FROM_SETUP": "yes"}
    with pytest.raises(zlaunch.LaunchError, match=r"node1: .*/nowhere/python"):
        far(bed, "node1", python="/nowhere/python").run(far_steps.here)


def test_nothing_secret_is_in_arguments_or_environment(bed: Bed) -> None:
    with far(bed, "node1") as launcher:
        cluster = launcher._shared.cluster
        assert cluster is not None
        (peer,) = cluster.loop.hub._reception.peers.values()
        secret = peer.invitation.secret_key.encode()
        agents = [bed.pid_in_root("node1", pid) for pid, _ in bed.processes("node1")]
        shown = [Path(f"/proc/{pid}/{file}").read_bytes() for pid in agents for file in ("cmdline", "environ")]
        shown += [Path(f"/proc/{cluster.loop.agents[0].process.pid}/cmdline").read_bytes()]
        assert len(shown) >= 3
        assert not any(secret in text for text in shown)


# --- what can go wrong ----------------------------------------------------------------------------------------------


def test_the_hosts_that_cannot_be_had_are_told_with_the_words_of_ssh(bed: Bed) -> None:
    launcher = far(bed, "node1", "no-such-host.invalid", "nobody@node2")
    with pytest.raises(zlaunch.LaunchError) as raised:
        launcher.run(far_steps.here)
    text = str(raised.value)
    assert re.search(r"^no-such-host\.invalid: .*?Could not resolve hostname", text, re.DOTALL | re.MULTILINE)
    assert re.search(r"^nobody@node2: .*?Permission denied", text, re.DOTALL | re.MULTILINE)
    assert "node1:" not in text
    assert bed.processes("node1") == []


def test_the_same_host_twice_is_an_error(bed: Bed) -> None:
    with pytest.raises(ValueError, match="node1 is in the list twice"):
        far(bed, "node1", "node2", "node1").run(far_steps.here)
    with pytest.raises(ValueError, match="are all this machine"):
        far(bed, "localhost", "127.0.0.1").run(far_steps.here)


def test_hosts_that_cannot_reach_one_another_are_named(fresh_bed: Bed) -> None:
    fresh_bed.part("node2", "node1")
    with pytest.raises(zlaunch.LaunchError, match="node2: it cannot reach node1, where rank 0 would be"):
        far(fresh_bed, "node1", "node2").run(far_steps.here)
    assert fresh_bed.processes("node1") == []


def test_two_names_of_one_machine_are_an_error(bed: Bed) -> None:
    with pytest.raises(zlaunch.LaunchError, match=f"node1 and {bed.address('node1')} are the same machine"):
        far(bed, "node1", bed.address("node1")).run(far_steps.here)


def test_a_start_can_be_stopped_from_another_thread(fresh_bed: Bed) -> None:
    fresh_bed.freeze("node2")  # it accepts, and never answers
    launcher = far(fresh_bed, "node1", "node2")
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(launcher.start)
        while not fresh_bed.processes("node1"):
            assert not starting.done()
        launcher.stop()
        with pytest.raises(zlaunch.LaunchError, match="it was stopped before all agents had come"):
            starting.result(10)
    assert fresh_bed.processes("node1") == []


def test_a_failed_start_leaves_no_sockets_for_long(fresh_bed: Bed) -> None:
    def sockets() -> str:
        return str(fresh_bed.run("node1", ["find", "/tmp", "-maxdepth", "1", "-type", "s"]).stdout)

    with pytest.raises(zlaunch.LaunchError):
        far(fresh_bed, "node1", python="/nowhere/python").run(far_steps.here)
    assert "/tmp/zlaunch-" in sockets()  # sshd removes none, and nothing of ours was ever there
    far(fresh_bed, "node1").run(far_steps.here)
    assert sockets() == ""


def test_a_program_that_only_the_hosts_have(bed: Bed) -> None:
    program = bed.path("node1", "/root/only-there")
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    with pytest.raises(zlaunch.WorkerFailedError) as raised:
        far(bed, "node1").run_command("/root/only-there")
    assert raised.value.exit_code == 7


def test_a_folder_that_came_later_is_not_expected_there(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with far(bed, "node1") as launcher, tempfile.TemporaryDirectory(prefix="only-here-") as folder:
        Path(folder, "came_later.py").write_text("def answer():\n    return 42\n")
        monkeypatch.syspath_prepend(folder)
        import came_later  # type: ignore[import-not-found]

        assert launcher.run(came_later.answer)[0] == 42


@pytest.mark.parametrize("words", [("train.py",), ("-m", "train"), ("./train.py.sh",)])
def test_nothing_else_is_taken_for_a_script_that_a_host_has_not_got(bed: Bed, words: tuple[str, ...]) -> None:
    bed.path("node1", "/root/train.py").write_text("print('another one')\n")
    program = bed.path("node1", "/root/train.py.sh")
    program.write_text("#!/bin/sh\necho another one\n")
    program.chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="only-here-") as folder:
        Path(folder, "train.py").write_text("print('mine')\n")
        options = ("-m", "zlaunch", "run", "--hosts", "node1", "--ssh-config", str(bed.ssh_config), "-n", "1")
        argv = [sys.executable, *options, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=folder)
    assert done.returncode not in (0, 2), done.stdout
    assert "another one" not in done.stdout
    if words == ("train.py",):
        assert "a script must be on every host, at the same path" in done.stderr


def test_what_cannot_be_meant_by_hosts_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ssh_config_file: there is no file .*/nowhere"):
        zlaunch.Launcher(hostnames=["192.0.2.1"], workers_per_host=1, ssh_config_file=tmp_path / "nowhere").start()
    with pytest.raises(TypeError, match=r"by name they are on\(hostnames="):
        zlaunch.Launcher().on(hosts=["node1"])  # type: ignore[arg-type]
