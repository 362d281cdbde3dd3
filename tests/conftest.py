"""What the tests share: where logs go, and the promise that nothing is left running."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import sites
from bed import Bed, missing
from bed import slurm as bed_slurm
from sim.flux import Flux
from sim.lsf import Lsf

import zlaunch


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log directories land in the test's own folder, and nobody's own settings count."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZLAUNCH_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """After each test no process of ours is there that was not there before (the shared cluster's apart)."""
    yield
    mine = psutil.Process().children(recursive=True)
    strays = [p for p in mine if p.pid not in _kept_pids() and p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    _gone, alive = psutil.wait_procs(strays, timeout=5)
    names = [f"{p.pid} {' '.join(p.cmdline())[-120:]}" for p in alive]
    for process in alive:
        process.kill()
    assert not alive, f"left running: {names}"


_shared: list[zlaunch.Launcher] = []


def _kept_pids() -> set[int]:
    pids: set[int] = set()
    for launcher in _shared:
        cluster = launcher._shared.cluster
        if cluster:
            for agent in cluster.loop.agents.values():
                pids.add(agent.process.pid)
                with suppress(psutil.NoSuchProcess):
                    pids |= {c.pid for c in psutil.Process(agent.process.pid).children(recursive=True)}
    return pids


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zlaunch.Launcher]:
    """Agents that stay for a module's tests: 2 ranks, no process group, files in a folder of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    launcher = zlaunch.Launcher(
        workers_per_host=2, backend=None, log_dir=str(folder / "logs"), grace_period=5, view="plain"
    )
    _shared.append(launcher)
    with launcher:
        yield launcher
    _shared.remove(launcher)


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Three hosts with sshd, node1 to node3, for all tests that break nothing."""
    if reason := missing():
        pytest.skip(reason)
    with Bed(3, share=[tmp_path_factory.getbasetemp()]) as hosts:
        yield hosts


@pytest.fixture
def fresh_bed(bed: Bed) -> Iterator[Bed]:
    """The same hosts, to be broken: all are up and healthy before the test and after it, and nothing runs there."""
    bed.restore()
    yield bed
    bed.restore()


@pytest.fixture(scope="session")
def slurm(bed: Bed) -> Iterator[bed_slurm.Slurm]:
    """Slurm on these hosts, for all tests that end their jobs and break nothing."""
    if reason := bed_slurm.missing():
        pytest.skip(reason)
    with bed_slurm.Slurm(bed) as running:
        yield running


@pytest.fixture
def fresh_slurm(slurm: bed_slurm.Slurm) -> Iterator[bed_slurm.Slurm]:
    """The same, to be broken: idle and without jobs before the test and after it, and nothing runs on its hosts."""
    slurm.restore()
    yield slurm
    slurm.restore()


@pytest.fixture(scope="module")
def flux_cluster(bed: Bed) -> Iterator[Flux]:
    """The simulated Flux on these hosts, quicker than a real one to find that something has ended."""
    with Flux(bed, gpus=2, kill_timeout=0.5, notice=0.2, exit_timeout=0.3) as running:
        yield running


@pytest.fixture(scope="module")
def lsf_cluster(bed: Bed) -> Iterator[Lsf]:
    """The simulated LSF on them."""
    with Lsf(bed) as running:
        yield running


@pytest.fixture(scope="module")
def coral_cluster(bed: Bed) -> Iterator[Lsf]:
    """The same as CORAL systems have it: with jsrun, and a host on which all jobs begin."""
    with Lsf(bed, coral=True, name="coral") as running:
        yield running


@pytest.fixture(params=["slurm", "flux", "lsf", "coral"])
def site(request: pytest.FixtureRequest) -> Iterator[sites.Site]:
    """Each of them in turn, without jobs before the test and after it."""
    name = "slurm" if request.param == "slurm" else f"{request.param}_cluster"
    where: sites.Site = getattr(sites, f"of_{request.param}")(request.getfixturevalue(name))
    yield where
    if request.param == "slurm":
        where.end_all()
    else:
        where.cluster.restore()


@pytest.fixture
def breakable(site: sites.Site) -> Iterator[sites.Site]:
    """The same, to be broken."""
    site.cluster.restore()
    yield site
    site.cluster.restore()


@pytest.fixture
def alive() -> object:
    """Whether a pid is there and no zombie."""

    def check(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return check


os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")


def _must_run(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where ``ZLAUNCH_CI`` is set all that tests need is there: what skips then has not been tested."""
    if os.environ.get("ZLAUNCH_CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} (ZLAUNCH_CI is set: a skip is a failure)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _must_run(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _must_run(report)
    return report
