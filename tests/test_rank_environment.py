"""What every rank finds in its environment, in functions, scripts and programs; and the port that is kept for it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from out_rig import QUICK, lines_of, program, zrun

import zlaunch

PRINT = "import json, os\nprint(json.dumps(dict(os.environ)))\n"
CORES = len(os.sched_getaffinity(0))


def expected(rank: int, world: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "NODE_RANK": "0",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(world),
        "ROLE_NAME": "default",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "ZLAUNCH_HOSTNAME": "localhost",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def check(found: list[Mapping[str, str]]) -> None:
    """The whole table of the contract."""
    world = len(found)
    for rank, env in enumerate(found):
        assert {key: env.get(key) for key in expected(rank, world)} == expected(rank, world)
        assert env["OMP_NUM_THREADS"] == str(max(1, CORES // world))
        assert env["TORCHELASTIC_RUN_ID"] == env["ZLAUNCH_RUN_ID"] != ""
        assert 1024 <= int(env["MASTER_PORT"]) < 65536
    for name in ("MASTER_ADDR", "MASTER_PORT", "ZLAUNCH_RUN_ID"):
        assert len({env[name] for env in found}) == 1, name
    assert socket.gethostbyname(found[0]["MASTER_ADDR"]).startswith("127.")


def of(*words: str, ranks: int = 2, env: Mapping[str, str] | None = None) -> list[Mapping[str, str]]:
    """The environments of a command line's ranks."""
    ran = zrun(*QUICK, "-n", str(ranks), *words, env=env)
    assert ran.status == 0, ran.err
    return [json.loads(lines_of(ran.out, rank)[-1]) for rank in range(ranks)]


@pytest.fixture(autouse=True)
def _no_torchrun_around_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


def test_of_a_function(cluster: zlaunch.Launcher) -> None:
    check(list(cluster.run(lambda: dict(os.environ))))
    check(list(cluster.on(workers_per_host=3, backend="gloo").run(lambda: dict(os.environ))))


def test_of_a_script() -> None:
    check(of(program(Path(), PRINT), ranks=3))


def test_of_a_module_in_a_new_interpreter() -> None:
    program(Path(), PRINT)
    check(of("--start-method", "spawn", "-m", "prog"))


def test_of_a_program() -> None:
    check(of("python3", program(Path(), PRINT)))


def test_the_c_library_sees_it_too() -> None:
    text = "import ctypes, json\nget = ctypes.CDLL(None).getenv\nget.restype = ctypes.c_char_p\n"
    text += "import os\nprint(json.dumps({k: get(k.encode()).decode() for k in os.environ}))\n"
    check(of(program(Path(), text)))


def test_stale_values_of_another_launcher_do_not_leak() -> None:
    stale = {
        "RANK": "7",
        "WORLD_SIZE": "99",
        "LOCAL_RANK": "5",
        "MASTER_ADDR": "10.1.2.3",
        "MASTER_PORT": "1",
        "GROUP_RANK": "3",
        "ROLE_NAME": "trainer",
        "TORCHELASTIC_ERROR_FILE": "/tmp/elsewhere",
        "TORCHELASTIC_RUN_ID": "other",
        "TORCHELASTIC_RESTART_COUNT": "4",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "ZLAUNCH_RUN_ID": "other",
        "SLURM_PROCID": "3",
        "OMPI_COMM_WORLD_RANK": "3",
        "PMI_RANK": "3",
    }
    # As torch does where tqdm is there: who goes through all variables does not ask for a rank's.
    Path("goes_through.py").write_text("import os\nFOUND = dict(os.environ.items())\n")
    ran = zrun("run", "--preload", "goes_through", "-n", "2", program(Path(), PRINT), env=stale)
    assert (ran.status, ran.err) == (0, "")
    found = [json.loads(lines_of(ran.out, rank)[-1]) for rank in range(2)]
    check(found)
    for env in found:
        assert not {"TORCHELASTIC_ERROR_FILE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"} & set(env)
        assert env["MASTER_PORT"] != "1"


def test_what_the_user_has_set_stays() -> None:
    mine = {"OMP_NUM_THREADS": "3", "GLOO_SOCKET_IFNAME": "eth7", "MINE": "a b\nc", "EMPTY": ""}
    for env in of("--env", "MORE=of mine", "--env", "MINE", program(Path(), PRINT), env=mine):
        assert {key: env[key] for key in mine} == mine
        assert env["MORE"] == "of mine"


def test_threads_are_those_of_the_environment(cluster: zlaunch.Launcher) -> None:
    def threads() -> tuple[str, int]:
        import torch

        return os.environ["OMP_NUM_THREADS"], torch.get_num_threads()

    assert list(cluster.on(workers_per_host=1).run(threads)) == [(str(CORES), CORES)]
    assert list(cluster.on(extra_env_vars={"OMP_NUM_THREADS": "3"}).run(threads)) == [("3", 3)] * 2


def test_the_environment_of_the_launcher_is_untouched(cluster: zlaunch.Launcher) -> None:
    before = dict(os.environ)
    cluster.run(lambda: None)
    changed = {key for key in before.keys() | os.environ.keys() if before.get(key) != os.environ.get(key)}
    assert changed <= {"PYTEST_CURRENT_TEST"}


# --- the port -------------------------------------------------------------------------------------------------------


def test_the_port_stays_free_until_rank_0_takes_it(cluster: zlaunch.Launcher, tmp_path: Path) -> None:
    """Nobody is given it, nobody can bind it, nobody answers on it; and a store of rank 0 can still have it."""
    gate, told = tmp_path / "gate", tmp_path / "port"
    os.mkfifo(told)

    def step() -> int:
        import time

        import torch.distributed as dist

        rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
        if rank == 0:
            told.write_text(str(port))
        while not gate.exists():
            time.sleep(0.01)
        store = dist.TCPStore(os.environ["MASTER_ADDR"], port, 2, rank == 0, timedelta(seconds=20))
        if rank == 1:
            store.set("met", "yes")
        else:
            store.wait(["met"])  # the store is rank 0's, and ends with it
        return port

    run = cluster.submit(step)
    port = int(told.read_text())
    try:
        held = [socket.create_server(("", 0)) for _ in range(300)]
        given = {one.getsockname()[1] for one in held}
        for one in held:
            one.close()
        assert port not in given
        with socket.socket() as plain, pytest.raises(OSError, match="in use"):
            plain.bind(("", port))
        with socket.socket() as plain, pytest.raises(ConnectionRefusedError):
            plain.connect(("127.0.0.1", port))
    finally:
        gate.touch()
    assert list(run.result(timeout=30)) == [port, port]


def test_the_port_is_given_back(cluster: zlaunch.Launcher) -> None:
    port = int(cluster.run(lambda: os.environ["MASTER_PORT"])[0])
    with socket.socket() as plain:
        plain.bind(("", port))
    assert not [c for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port]


def test_torch_comes_up_by_the_environment_alone(tmp_path: Path) -> None:
    text = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
print(dist.get_rank(), dist.get_world_size(), total.item())
dist.destroy_process_group()
"""
    ran = zrun("run", "-n", "2", program(tmp_path, text))
    assert ran.status == 0, ran.err
    assert sorted(ran.out.splitlines()) == ["[rank 0] 0 2 3.0", "[rank 1] 1 2 3.0"]
    assert ran.err == ""
