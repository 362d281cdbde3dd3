"""The environment of a rank, and which errors only say that a peer is gone."""

from __future__ import annotations

import pytest

from zlaunch.model import Seat, Step
from zlaunch.torchenv.environment import rank_environment
from zlaunch.torchenv.symptoms import is_symptom


def environment(env=None, *, nodes=1, local_rank=1, **changes):
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
    )
    return rank_environment(step, seat)


def test_everything_that_torchrun_sets():
    assert environment({"HOME": "/root"}, nodes=2, max_restarts=3) == {
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
        "ZLAUNCH_RUN_ID": "run",
        "ZLAUNCH_HOSTNAME": "h",
    }


def test_what_the_user_has_set_stays():
    env = environment({"OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "eth9", "RANK": "77"})
    assert (env["OMP_NUM_THREADS"], env["GLOO_SOCKET_IFNAME"], env["RANK"]) == ("7", "eth9", "1")
    assert environment()["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.parametrize(
    "name",
    ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID", "FLUX_TASK_RANK", "TORCHELASTIC_ERROR_FILE"],
)
def test_another_launcher_s_place_is_not_inherited(name):
    env = environment({name: "1", "SLURM_JOB_ID": "5", "OMPI_MCA_btl": "tcp"})
    assert name not in env
    assert (env["SLURM_JOB_ID"], env["OMPI_MCA_btl"]) == ("5", "tcp")


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
