"""The environment of a rank, and which errors only say that a peer is gone."""

from __future__ import annotations

import os
import pwd

import pytest

from zlaunch.model import Seat, Step
from zlaunch.surroundings import copied_environment, ranks_environment
from zlaunch.systems.folders import search_path_here, working_folder
from zlaunch.torchenv.environment import rank_environment
from zlaunch.torchenv.symptoms import is_symptom


def environment(env=None, *, nodes=1, local_rank=1, interface="lo", host_env=None, **changes):
    step = Step(**({"id": "s", "run_id": "run", "kind": "function", "env": env or {}, "cwd": "/"} | changes))
    seat = Seat(
        rank=4 * (nodes - 1) + local_rank,
        local_rank=local_rank,
        world_size=4 * nodes,
        local_world_size=4,
        node_rank=nodes - 1,
        nodes=nodes,
        hostname="h",
        master_addr="a",
        master_port=29,
        restart_count=2,
        threads=3,
        interface=interface,
    )
    return rank_environment(step, seat, host_env)


def test_everything_that_torchrun_sets():
    assert environment({"HOME": "/root"}, nodes=2, interface="ib0", max_restarts=3) == {
        "HOME": "/root",
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "NODE_RANK": "1",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "ROLE_RANK": "5",
        "ROLE_WORLD_SIZE": "8",
        "ROLE_NAME": "default",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "29",
        "TORCHELASTIC_RUN_ID": "run",
        "TORCHELASTIC_RESTART_COUNT": "2",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "OMP_NUM_THREADS": "3",
        "GLOO_SOCKET_IFNAME": "ib0",
        "ZLAUNCH_RUN_ID": "run",
        "ZLAUNCH_HOSTNAME": "h",
    }


def test_what_the_user_has_set_stays():
    env = environment({"OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "eth9", "RANK": "77"})
    assert (env["OMP_NUM_THREADS"], env["GLOO_SOCKET_IFNAME"], env["RANK"]) == ("7", "eth9", "1")
    assert environment()["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in environment(nodes=2, interface="")


HOST = {"HOME": "/home/there", "PATH": "/site/bin:/usr/bin", "LD_LIBRARY_PATH": "/site/lib", "OMP_NUM_THREADS": "5"}


def test_another_host_s_own_environment_comes_below_what_is_copied_there():
    env = environment({"HOME": "/home/here", "A": "1"}, inherit=True, host_env=HOST | {"A": "0", "B": "2"})
    assert (env["HOME"], env["A"], env["B"]) == ("/home/here", "1", "2")
    assert env["PATH"] == HOST["PATH"]
    assert "B" not in environment({"A": "1"}, host_env={"B": "2"})


def test_what_another_host_s_user_has_set_stays():
    env = environment(inherit=True, nodes=2, interface="eth0", host_env=HOST | {"GLOO_SOCKET_IFNAME": "ib1"})
    assert (env["OMP_NUM_THREADS"], env["GLOO_SOCKET_IFNAME"]) == ("5", "ib1")


def test_another_host_s_folders_follow_those_that_are_copied():
    env = environment({"PATH": "/venv/bin:/usr/bin", "PYTHONPATH": "/src"}, inherit=True, host_env=HOST)
    assert env["PATH"] == "/venv/bin:/usr/bin:/site/bin"
    assert (env["PYTHONPATH"], env["LD_LIBRARY_PATH"]) == ("/src", "/site/lib")


def test_another_launcher_s_place_on_another_host_is_not_inherited():
    env = environment(inherit=True, host_env={"SLURM_PROCID": "3", "SLURM_JOB_ID": "5"})
    assert "SLURM_PROCID" not in env
    assert env["SLURM_JOB_ID"] == "5"


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("PATH", "PYTHON*"), {"PATH", "PYTHONPATH", "PYTHONUNBUFFERED"}),
        (("PYTHONHOME",), {"PYTHONHOME"}),  # by its full name it was meant
        (("path", "python*"), set()),
        (("[A-M]Y?VAR",), {"MY_VAR"}),
        (("*",), {"PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "MY_VAR"}),
        ((), set()),
    ],
)
def test_what_is_copied_to_other_hosts(patterns, names):
    ours = dict.fromkeys(("PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONHOME", "MY_VAR"), "x")
    ours |= {"HOME": "/home/here", "SSH_AUTH_SOCK": "/run/here", "PWD": "/here"}
    assert set(copied_environment(patterns, ours)) == names


def test_what_ranks_get_from_here(tmp_path, monkeypatch):
    monkeypatch.setenv("ZT_ONE", "1")
    monkeypatch.setenv("ZT_TWO", "2")
    file = tmp_path / ".env"
    file.write_text("FROM_FILE=$ZT_TWO-$ZT_EXTRA\nZT_BOTH=file\n")
    extra = {"ZT_EXTRA": "e", "ZT_BOTH": "extra"}
    given = {"ZT_EXTRA": "e", "ZT_BOTH": "file", "FROM_FILE": "2-e"}
    assert ranks_environment(extra, file, copy=["ZT_ON*", "ZT_BOTH"]) == {"ZT_ONE": "1"} | given
    assert ranks_environment(extra, file, copy=[]) == given
    everything = ranks_environment(extra, file)
    assert everything == {**os.environ, **given}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ranks_environment(extra, "~/.env") == {**os.environ, **given}
    with pytest.raises(FileNotFoundError, match=r"env_file: there is no file .*nowhere"):
        ranks_environment({}, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID", "FLUX_TASK_RANK", "TORCHELASTIC_ERROR_FILE"],
)
def test_another_launcher_s_place_is_not_inherited_but_may_be_given(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    assert name not in ranks_environment(None, None)
    assert ranks_environment(None, None, copy=["*"])["SLURM_JOB_ID"] == "5"
    assert name not in ranks_environment(None, None, copy=["*"])
    given = ranks_environment({name: "2"}, None)
    assert environment(given)[name] == "2"


# --- folders of one machine on another ------------------------------------------------------------------------------


def test_where_ranks_start_on_a_host_that_has_no_such_folder(tmp_path):
    missing = str(tmp_path / "missing")
    assert working_folder(str(tmp_path), {}) == str(tmp_path)
    assert working_folder(missing, {"HOME": str(tmp_path)}) == str(tmp_path)
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert working_folder(missing, {"HOME": missing}) == (home if os.path.isdir(home) else "/")


def test_the_search_path_on_a_host_with_another_interpreter(tmp_path):
    def here(*names):
        for name in names:
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        return [str(tmp_path / name) for name in names]

    project, extra = here("project", "extra")
    module, old_module = here("spack/lib/python3.11/site-packages", "spack/lib/python3.9/site-packages")
    home, home_lib, home_site = here("py/lib/python311.zip", "py/lib/python3.11", "py/lib/python3.11/site-packages")
    theirs = [project, "/not/here", module, old_module, home, home_lib, home_site, "/gone/site-packages", extra]
    own = ["/opt/lib/python311.zip", "/opt/lib/python3.11", "/opt/lib/python3.11/site-packages"]
    assert search_path_here(theirs, own, "3.11") == [project, module, *own, home_site, extra]
    assert search_path_here(theirs, own, "3.12") == [project, *own, extra]
    same = [project, home, home_lib, home_site, extra]
    assert search_path_here(same, same[1:], "3.11") == same
    assert search_path_here([], own, "3.11") == own


@pytest.mark.parametrize(
    ("env", "changes", "expected"),
    [
        ({}, {}, {}),
        ({}, {"gpus_per_worker": 2}, {"CUDA_VISIBLE_DEVICES": "2,3"}),
        ({"CUDA_VISIBLE_DEVICES": "7,6,5,4"}, {"gpus_per_worker": 2}, {"CUDA_VISIBLE_DEVICES": "5,4"}),
        ({"CUDA_VISIBLE_DEVICES": "7,6"}, {}, {"CUDA_VISIBLE_DEVICES": "7,6"}),
        ({"ROCR_VISIBLE_DEVICES": "4,5"}, {}, {"HIP_VISIBLE_DEVICES": "4,5"}),
        ({"ROCR_VISIBLE_DEVICES": "4,5"}, {"unswap_rocr_hip": True}, {"ROCR_VISIBLE_DEVICES": "4,5"}),
        ({"ROCR_VISIBLE_DEVICES": "4,5", "HIP_VISIBLE_DEVICES": "1"}, {}, {"HIP_VISIBLE_DEVICES": "5"}),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6", "HIP_VISIBLE_DEVICES": "2,9,1"}, {}, {"HIP_VISIBLE_DEVICES": "6"}),
        ({"ROCR_VISIBLE_DEVICES": "4,5", "HIP_VISIBLE_DEVICES": "2"}, {}, {"HIP_VISIBLE_DEVICES": "-1"}),
        ({"ROCR_VISIBLE_DEVICES": "4,5", "HIP_VISIBLE_DEVICES": ""}, {}, {"HIP_VISIBLE_DEVICES": "-1"}),
        (
            {"ROCR_VISIBLE_DEVICES": "4,5", "CUDA_VISIBLE_DEVICES": "1"},
            {},
            {"HIP_VISIBLE_DEVICES": "5", "CUDA_VISIBLE_DEVICES": "1"},
        ),
        (
            {"ROCR_VISIBLE_DEVICES": "4,5", "CUDA_VISIBLE_DEVICES": "4,5"},
            {},
            {"HIP_VISIBLE_DEVICES": "4,5", "CUDA_VISIBLE_DEVICES": "4,5"},
        ),
        ({"ROCR_VISIBLE_DEVICES": "GPU-ab"}, {}, {"ROCR_VISIBLE_DEVICES": "GPU-ab"}),
        ({"ROCR_VISIBLE_DEVICES": "0,1,2,3"}, {"gpus_per_worker": 2}, {"HIP_VISIBLE_DEVICES": "2,3"}),
    ],
)
def test_which_gpus_a_rank_sees(env, changes, expected):
    got = environment(env, **changes)
    assert {key: value for key, value in got.items() if key.endswith("VISIBLE_DEVICES")} == expected


@pytest.mark.parametrize(
    ("types", "text", "symptom"),
    [
        (["RuntimeError"], "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:27545.", True),
        (["DistNetworkError", "DistError", "RuntimeError"], "Failed to recv, got 0 bytes.", True),
        (["DistStoreError", "DistError"], "Timed out after 4 seconds waiting for clients. 2/3 clients joined.", True),
        (["DistBackendError", "RuntimeError"], "ncclRemoteError: A call failed, remote process exited", True),
        (["DistNetworkError"], "The server socket has failed to listen ... EADDRINUSE, address already in use", False),
        (["RuntimeError"], "mat1 and mat2 shapes cannot be multiplied", False),
        (["RuntimeError"], "[/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4", False),
        (["ValueError"], "connection closed by peer", False),
        (["ConnectionRefusedError", "ConnectionError", "OSError"], "[Errno 111] Connection refused", False),
    ],
)
def test_symptoms(types, text, symptom):
    assert is_symptom(types, text) is symptom


def test_a_pattern_does_not_carry_our_gpus_to_other_hosts_and_their_name_does() -> None:
    ours = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_HOME": "/cuda", "ROCR_VISIBLE_DEVICES": "1"}
    assert copied_environment(["CUDA*", "ROCR*"], ours) == {"CUDA_HOME": "/cuda"}
    assert copied_environment(["CUDA_VISIBLE_DEVICES"], ours) == {"CUDA_VISIBLE_DEVICES": "0"}
