"""Level 6: ``zlaunch run``. A ``Job`` becomes a ``Launcher``; its run is watched; its end is a status."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..errors import ZlaunchError
from ..launcher import Launcher
from ..model import signal_name
from ..result import Run
from ..surroundings import copied_environment, say
from ..systems.communication import check_hosts
from ..view.keys import restore_all as restore_terminals
from ..view.settings import ViewSettings, log_level
from .detach import Hand
from .doorbell import Doorbell, Interrupted, reader_to_watch
from .grammar import UsageError
from .job import Job

CANCELLED = 130
LAUNCH_FAILED = 125
TIMED_OUT = 124
ECHO = 1.0
"""Seconds within which a second SIGTERM or SIGHUP is the first one: schedulers send them to a group, and to each."""
TIME_IS_UP = signal.SIGUSR2
"""By which LSF tells a job that its time limit has passed; it kills what is left after ten minutes."""
HOSTLIST = "hpc_launcher_hostlist.txt"


def run(job: Job, hand: Hand | None = None) -> int:
    """Run the job to its end, or print what would run; returns the exit status. ``hand`` hears when it can be left.

    Raises:
        UsageError: the launcher found something wrong with the job before anything started.
    """
    for note in job.notes:
        say(note)
    if job.papers and (job.papers.submit or job.papers.only):
        from .batch import batch

        return batch(job, job.papers)
    if job.papers and job.papers.attended and not job.dry_run:
        from .attended import attended

        return attended(job, job.papers)
    with Doorbell(*([TIME_IS_UP] if job.inside else [])) as bell:
        try:
            launcher = _launcher(job)
            if job.dry_run:
                from .dryrun import describe

                with _search_path(job.home):
                    plan = launcher.plan(job.kind, *job.argv)
                copied = copied_environment(launcher.copy_env_vars, os.environ)
                sys.stdout.write(describe(plan, os.environ, copied, _asked(job)))
                if job.papers:
                    from .batch import show

                    sys.stdout.write("\n")
                    show(job, job.papers)
                return 0
            if job.papers:
                from .scripts import write

                write(job, job.papers)
            if job.save_hostlist and not job.scheduler:
                _save_hostlist(job.hosts or ("localhost",))
            with bell.impatient(), _search_path(job.home):
                running = _submit(launcher, job)
            _note_down(running, job)
            if job.save_hostlist and job.scheduler:
                _save_hostlist([host.name for host in running.hosts])
        except ValueError as error:
            raise UsageError(str(error)) from error
        except ZlaunchError as error:
            say(str(error))
            return LAUNCH_FAILED
        except Interrupted as interrupted:
            say(f"{_pressed(interrupted.number)}: no rank had started")
            return 128 + interrupted.number
        world = sum(host.workers for host in running.hosts)
        if job.ranks not in (None, "none") and not ViewSettings(ranks=job.ranks).shown(world):
            say(f"--ranks {job.ranks}: the ranks are 0 to {world - 1}, so the console shows none of them")
        if hand:
            hand.over(running)
        status = _watch(running, job, bell)
        if hand:
            hand.wait()
        return status


def _note_down(running: Run[None], job: Job) -> None:
    """A batch job's logs are found by what runs in it."""
    if job.inside:
        from ..registry.submitted import began

        places = [(host.name, host.workers) for host in running.hosts]
        began(job.scheduler, job.inside, running.id, places, job.log_dir and os.path.abspath(job.log_dir))


def _submit(launcher: Launcher, job: Job) -> Run[None]:
    first, *rest = job.argv
    match job.kind:
        case "script":
            return launcher.submit_script(first, *rest, name=job.name)
        case "module":
            return launcher.submit_module(first, *rest, name=job.name)
        case "command":
            return launcher.submit_command(first, *rest, name=job.name)


def _launcher(job: Job) -> Launcher:
    launcher = Launcher(
        hostnames=list(job.hosts) if job.hosts else [job.scheduler or "local"],
        workers_per_host=list(job.workers) if isinstance(job.workers, tuple) else job.workers,
        ssh_config_file=job.ssh_config,
        python=job.python,
        setup=job.setup,
        host_timeout=job.host_timeout,
        agent_timeout=job.agent_timeout,
        extra_env_vars=dict(job.env) or None,
        gpus_per_worker=job.gpus_per_worker,
        gpu_memory_fraction=job.gpu_memory_fraction,
        unswap_rocr_hip=job.unswap_rocr_hip,
        preload=job.preload,
        start_method=job.start_method,
        bind=job.bind,
        grace_period=job.grace,
        time_limit=job.time_limit,
        max_restarts=job.max_restarts,
        log_dir=job.log_dir,
        view=job.view,
        rendezvous=job.rendezvous,
    )
    launcher.request = job.request
    if job.comm_backend:
        launcher.check_facts = partial(check_hosts, job.comm_backend)
    launcher.view_settings = ViewSettings(
        view=job.view,
        log_dir=job.log_dir,
        ranks=job.ranks,
        out=job.out,
        err=job.err,
        color_stderr=job.color_stderr,
        log_level=log_level(os.environ),
        verbose=job.verbose,
        report=True,
        keys=True,
    )
    return launcher


def _asked(job: Job) -> str | None:
    """Of the scheduler, as ``describe`` has it."""
    within = job.inside or (job.papers and job.papers.attended)
    return None if not job.scheduler else "agents" if within else "nodes, and agents on them"


@contextmanager
def _search_path(home: str | None) -> Iterator[None]:
    """``sys.path`` as the ranks shall have it, while the launcher looks at it.

    Python has put the folder of the zlaunch command before all others; ranks have their script's in its place.
    """
    before = sys.path[:]
    if not sys.flags.safe_path:
        sys.path[:1] = [home] if home else []
    try:
        yield
    finally:
        sys.path[:] = before


def _watch(running: Run[None], job: Job, bell: Doorbell) -> int:
    """Wait for the end, and on the way for whoever wants it sooner."""
    running.add_done_callback(bell.done)
    reader = reader_to_watch(1) if job.view != "none" and job.ranks != "none" else None
    asked = 0  # the signal that asked first for the end
    presses, last = 0, (0, 0.0)
    while (ring := bell.wait(reader)).kind != "done":
        if ring.kind == "broken":
            reader, asked = None, asked or signal.SIGPIPE
            running.cancel()
        elif ring.signal == TIME_IS_UP:
            if asked:  # it may come more than once
                continue
            asked = ring.signal
            say(f"the job's time limit has passed: ending the ranks, with SIGKILL after {job.grace:g} s")
            running.cancel()
        elif ring.signal == signal.SIGTSTP:
            say("Ctrl-Z is ignored: stopped ranks look dead to their peers; Ctrl-C ends the run")
        elif ring.signal != signal.SIGINT and last[0] == ring.signal and time.monotonic() < last[1] + ECHO:
            continue
        else:
            asked, presses = asked or ring.signal, presses + 1
            last = ring.signal, time.monotonic()
            _end(running, presses, ring.signal, job.grace)
    return _status(running, asked)


def _end(running: Run[None], presses: int, number: int, grace: float) -> None:
    """Once: SIGTERM and the grace period. Twice: SIGKILL. A third time we leave what cannot die."""
    what = _pressed(number)
    if presses == 1:
        say(f"{what}: ending the ranks, with SIGKILL after {grace:g} s; once more to kill them now")
        running.cancel()
    elif presses == 2:
        say(f"{what}: killing the ranks")
        running.cancel(grace=0)
    else:
        say(f"{what}: leaving; the agent ends what is left by itself")
        restore_terminals()
        os._exit(128 + number)


def _pressed(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal_name(number)


def _status(running: Run[None], asked: int) -> int:
    error = running.exception()  # returns when nothing of the run is alive and all that it said is written
    status = running.exit_status()
    if status == LAUNCH_FAILED and running.job():
        say(running.job())
    if status == TIMED_OUT and running.job():
        say(str(error))  # whose limit that was
    if asked == TIME_IS_UP:
        return TIMED_OUT if status == CANCELLED else status
    return 128 + asked if asked and status == CANCELLED else status


def _save_hostlist(hosts: Sequence[str]) -> None:
    """As the reference has it, in the folder that we were started in. It must not cost the run."""
    here = os.uname().nodename
    names = [here if name == "localhost" else name for name in hosts]
    try:
        Path(HOSTLIST).write_text("".join(f"{name}\n" for name in names))
    except OSError as error:
        say(f"{HOSTLIST} could not be written: {error.strerror}")
