"""Where LSF can be set up this way or that, or its manuals leave open what it does: a name for each, and a default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Ways:
    """Of one simulated LSF.

    Documented settings of a site:
        process_tracking: what a job leaves running is killed at its end, even in a session of its own.
        sequential_signals: ``bkill`` sends INT, TERM and KILL to parallel jobs, too, not only to those of one slot.
        terminate_interval: seconds between these.
        stdout_direct: output goes to its file as it comes; a job may also ask for that by LSB_STDOUT_DIRECT.
        notices: lines that a site's ``bsub`` prints before its answer.
        esub_aborts: the site's check of submissions refuses them all.

    Not verified, or seen both ways:
        unknown_status: of ``bjobs`` about a job that it doesn't know.
        counted_hosts: ``exec_host`` is ``2*a:b``, not ``a:a:b``.
        quoted_words: ``bsub`` quotes the words of a command, but not the first; otherwise it only joins them.
        wait_holds_job: a ``bsub -K`` that dies takes its job with it.
        shell_words: ``blaunch`` joins the words of a command for a shell there, as ssh does.
        blaunch_stdin, jsrun_stdin: which tasks get the input, where no option says it.
        blaunch_status: the highest of the tasks', or 0.
        jsrun_status: that of the task that was the first to fail, or the highest.
        tmpdir_breaks: ``jsrun`` fails where TMPDIR is set.
    """

    process_tracking: bool = False
    sequential_signals: bool = False
    terminate_interval: float = 10.0
    stdout_direct: bool = False
    notices: tuple[str, ...] = ()
    esub_aborts: bool = False
    unknown_status: int = 255
    counted_hosts: bool = False
    quoted_words: bool = False
    wait_holds_job: bool = False
    shell_words: bool = True
    blaunch_stdin: Literal["first", "all", "none"] = "first"
    blaunch_status: Literal["highest", "zero"] = "highest"
    jsrun_stdin: Literal["first", "all", "none"] = "first"
    jsrun_status: Literal["first", "highest"] = "first"
    tmpdir_breaks: bool = True
