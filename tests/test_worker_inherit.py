"""Ranks on another host than the launcher's: its own environment below, and folders that need not be there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from bed.programs import until
from worker_rig import PATIENCE, ROOT, Rig

from zlaunch.agent.processes import TemplateProcess
from zlaunch.model import TemplateSpec
from zlaunch.protocol.local import Ready

MISSING = "/no/such/folder"
HOST = dict(entry.split("=", 1) for entry in Path("/proc/self/environ").read_text().split("\0") if "=" in entry)
"""What the rig was started in: it is the agent here."""
HOME = HOST.get("HOME") or os.path.expanduser("~")


look = lambda: {"env": dict(os.environ), "cwd": os.getcwd(), "path": list(sys.path)}  # noqa: E731 - travels by value


def check(seen, *, added=()):
    env = seen["env"]
    assert env["FROM_STEP"] == "1"
    assert "FROM_TEMPLATE" not in env  # an older step's
    assert seen["cwd"] == env["PWD"] == HOME
    for name in HOST.keys() - {"PWD", "PATH", "PYTHONPATH", "_"}:
        assert env.get(name) == HOST[name] or name.startswith(("RANK", "WORLD", "MASTER", "TORCHELASTIC")), name
    entries = env["PATH"].split(":")
    assert entries[0] == "/copied/bin"
    assert set(HOST["PATH"].split(":")) - {""} <= set(entries)
    if added:
        assert [path for path in seen["path"] if path in added] == list(added)
        assert MISSING not in seen["path"]


@pytest.fixture(params=["fork", "spawn"])
def rig(request):
    with Rig(start_method=request.param, env={"FROM_TEMPLATE": "1"}, inherit=True, sys_path=[MISSING]) as rig:
        assert isinstance(rig.ready, Ready), rig.ready
        yield rig


STEP_ENV = {"FROM_STEP": "1", "PATH": "/copied/bin", "PYTHONPATH": str(ROOT)}


def test_a_function(rig, tmp_path):
    step_path = (str(tmp_path), MISSING, "/usr/lib/python311.zip", "/usr/lib/python3.2")
    rank = rig.call(look, env=STEP_ENV, cwd=MISSING, inherit=True, sys_path=step_path)[0]
    check(rank.payload, added=[str(tmp_path)])
    assert any(path.endswith("site-packages") for path in rank.payload["path"])


def test_a_script(rig, tmp_path):
    path = tmp_path / "s.py"
    path.write_text("import json, os, sys\nprint(json.dumps([dict(os.environ), os.getcwd(), sys.path]))\n")
    step = rig.step("script", argv=(str(path),), env=STEP_ENV, cwd=MISSING, inherit=True, sys_path=(MISSING,))
    env, cwd, search = json.loads(rig.run(step)[0].out)
    check({"env": env, "cwd": cwd, "path": search}, added=[str(tmp_path)])


def test_a_command(rig):
    argv = (sys.executable, "-c", "import json, os; print(json.dumps([dict(os.environ), os.getcwd()]))")
    step = rig.step("command", argv=argv, env=STEP_ENV, cwd=MISSING, inherit=True)
    env, cwd = json.loads(rig.run(step)[0].out)
    check({"env": env, "cwd": cwd})


def test_a_folder_that_is_there(rig, tmp_path):
    rank = rig.call(look, env=STEP_ENV, cwd=str(tmp_path), inherit=True)[0]
    assert rank.payload["cwd"] == rank.payload["env"]["PWD"] == str(tmp_path)


def test_the_launcher_s_own_machine_inherits_nothing(rig):
    rank = rig.call(look, env=STEP_ENV)[0]
    assert rank.payload["env"]["PATH"] == "/copied/bin"
    assert not (HOST.keys() - STEP_ENV.keys() - {"PWD", "_", "LC_CTYPE"}) & (rank.payload["env"].keys() - EXPECTED)


EXPECTED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "MASTER_ADDR", "MASTER_PORT"}


def test_the_template_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("FROM_AGENT", "1")
    for cwd in (str(tmp_path), MISSING):
        spec = TemplateSpec(
            key="k",
            preload=(),
            start_method="fork",
            env={"FROM_SPEC": "1", "PATH": "/copied/bin"},
            inherit=True,
            sys_path=(),
            cwd=cwd,
        )
        template = TemplateProcess.start(spec)
        try:
            folder = str(tmp_path) if cwd != MISSING else os.environ.get("HOME", HOME)
            process = Path(f"/proc/{template.process.pid}")
            until((process / "environ").read_bytes, "its environment: there is none for a moment after exec")
            env = dict(entry.split("=", 1) for entry in (process / "environ").read_text().split("\0") if "=" in entry)
            assert (env["FROM_AGENT"], env["FROM_SPEC"]) == ("1", "1")
            assert env["PATH"].split(":")[:2] == ["/copied/bin", os.environ["PATH"].split(":")[0]]
            assert os.readlink(process / "cwd") == env["PWD"] == folder
            assert template.note == (
                "" if cwd != MISSING else f"there is no folder {MISSING} here: ranks start in {folder}"
            )
        finally:
            template.close()
            template.process.wait(PATIENCE)
