"""``zlaunch info``: the system that was found, and where it comes from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from zlaunch.cli.main import main

NAMES = ("SLURM_CLUSTER_NAME", "NERSC_HOST", "LMOD_SYSTEM_NAME", "SLURM_JOB_PARTITION", "LSB_QUEUE")


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of settings with nothing in it, and an environment that names no system."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config" / "zlaunch").mkdir(parents=True)
    return tmp_path / "config" / "zlaunch" / "systems.toml"


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["info"]) == 0
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())


def test_a_machine_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    assert "system         no known one: nodes are taken to be as this machine\n" in text
    assert "its scheduler" not in text
    assert main(["info", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["system"]["source"] == "detected"
    assert answer["system"]["cores_per_node"] == answer["cores"]
    assert answer["system"]["scheduler"] == answer["scheduler"]["name"]


def test_a_known_system(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "tioga")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "mi300a")
    text = shown(capsys)
    for line in (
        "system              tioga: known to zlaunch",
        "queue               mi300a; there are also pdebug",
        "a node              96 cores, 4 GPUs gfx942 of 128 GB, 80% of it usable, 4 NUMA domains",
        "its scheduler       flux",
        "sets                NCCL_NET_GDR_LEVEL=3  (it hangs otherwise)",
        "                    MIOPEN_USER_DB_PATH=$TMPDIR/MIOpen_user_db",
        "with NCCL and RCCL  FI_CXI_RDZV_PROTO=alt_read  (faster on Slingshot)",
        "launches with       --exclusive -ofastload=on --setattr=rdzv_get_en=0 -ompibind=omp_proc_bind,omp_places",
    ):
        assert f"{line}\n" in text
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lassen")
    assert "44 cores (32 used), 4 GPUs sm_70 of 16 GB, 2 NUMA domains\n" in (text := shown(capsys))
    assert "launches with  --bind=packed:8 --smpiargs=-gpu\n" in text
    assert "queue mi300a of lassen is not known here: its nodes are taken to be those of pbatch\n" in text


def test_a_system_of_the_users_own(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    me = os.uname().nodename
    config.write_text(f'[cave]\nhosts = ["{me}"]\ngpus_per_node = 8\n[cave.args]\n"--exclusive" = true\n')
    text = shown(capsys)
    assert f"cave: from {config}\n" in text
    assert "as this machine: cores_per_node, gpu_arch, mem_per_gpu, numa_domains, scheduler\n" in text
    assert "launches with  --exclusive\n" in text
    assert main(["info", "--json"]) == 0
    system = json.loads(capsys.readouterr().out)["system"]
    assert (system["name"], system["source"], system["file"]) == ("cave", "file", str(config))
    assert (system["gpus_per_node"], system["arguments"]) == (8, ["--exclusive"])


def test_a_mistake_in_the_file_is_a_mistake(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    config.write_text("[cave]\ngpu_per_node = 8\n")
    assert main(["info"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{config}: cave.gpu_per_node: there is no such key\n  did you mean gpus_per_node?\n" in told.err
