"""Level 4, pure: what ssh and the shell behind it said, made into a reason and what to do.

An exit status says little: 255 is ssh's own for everything, and 1 is tcsh's for a program that is not there. So the
words count first: a table of what is known, the most telling first. They are kept as they were said; what start-up
files printed before them is left out. Words in other languages, or of other programs, are shown as they are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import NamedTuple

from .._version import __version__
from ..model import signal_name
from ..systems.interpreter import NO_ZLAUNCH

SETUP_FAILED = 98
"""The exit status of a remote command whose ``setup`` failed."""
NO_SSH = "the OpenSSH client is needed to reach other hosts: install it (openssh-client), or put ssh on PATH"
"""What to do where ``ssh`` itself could not be started."""

_SHOWN = 8
"""Lines of what was said."""
_BEFORE = 2
"""... and of these, before ssh's telling one: what a ProxyCommand or a jump host had to say."""


class Case(NamedTuple):
    """Whose words these are."""

    host: str
    python: str
    setup: str | None
    ssh: str = "ssh"
    """As it is called by hand: with the configuration file that was asked for."""


class Known(NamedTuple):
    """Words that we know: what they mean, and what to do. Both may use the case."""

    words: re.Pattern[str]
    what: str
    advice: str


def _known(words: str, what: str, advice: str) -> Known:
    return Known(re.compile(words), what, advice)


_BY_HAND = "{ssh} {host} true"
_INSTALL = f"pip install zlaunch=={__version__}"
_NAME_IT = "name another one there with python=... or --python"

SSH: tuple[Known, ...] = (
    _known(
        r"[Bb]ad configuration option|Bad owner or permissions on|Can't open user config file",
        "ssh's configuration is wrong",
        f"Mend it until {_BY_HAND} works by hand.",
    ),
    _known(
        r"Could not resolve hostname|hostname contains invalid characters",
        "ssh does not know this host",
        "Check how it is spelt, or give its address: HostName in the ssh configuration.",
    ),
    _known(
        r"connect to .*: Connection refused",
        "nothing accepts ssh there",
        "Is sshd running on it, and on this port? Another one is set by Port in the ssh configuration.",
    ),
    _known(
        r"(?:Connection|Operation) timed out",
        "it does not answer",
        "Is it switched on, and do the firewalls on the way let ssh through?",
    ),
    _known(
        r"connect to .*: (?:No route to host|Network is unreachable|Host is down)",
        "there is no way to it",
        "Is it switched on, and is its address in a network that this machine reaches?",
    ),
    _known(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed",
        "its host key is not the one that ssh knows",
        "If it was installed anew, remove the old key as ssh says; if not, somebody may stand between you and it.",
    ),
    _known(
        r"No \S+ host key is known for|Host key verification failed",
        "ssh does not know its host key yet",
        "Connect once by hand ({ssh} {host}) and accept the key, or set StrictHostKeyChecking accept-new.",
    ),
    _known(
        r"UNPROTECTED PRIVATE KEY FILE",
        "ssh does not use a key that others may read",
        "chmod 600 for the key file.",
    ),
    _known(
        r"Permission denied \(|Too many authentication failures|No more authentication methods",
        "it does not let us in",
        f"{_BY_HAND} must work without a password: copy a key there (ssh-copy-id {{host}}), load it into an agent "
        "(ssh-add), or name it by IdentityFile; user@host is for another user.",
    ),
    _known(
        r"account is currently not available|This service allows sftp|account has expired|System is booting up|"
        r"is not permitted to log in",
        "it lets this user run no commands",
        "Ask whoever runs it, or use another user: user@host.",
    ),
    _known(
        r"kex_exchange_identification|Connection (?:closed|reset) by|Connection to .* closed by remote host|"
        r"Unable to negotiate|Broken pipe",
        "the connection was closed",
        f"Try {_BY_HAND}; where many hosts or ranks share one machine, its sshd may take too few at once "
        "(MaxStartups, MaxSessions).",
    ),
)
"""ssh's own words, of OpenSSH 9.2; most are those of 7 to 10 too."""

AGENT: tuple[Known, ...] = (
    _known(
        r"zlaunch agent: there is no zlaunch for Python",
        "zlaunch is not installed there",
        f"Install it for that interpreter: {{python}} -m {_INSTALL}; or {_NAME_IT}.",
    ),
    _known(
        r"zlaunch agent: .*is too old for zlaunch",
        "its Python is too old",
        f"{_NAME_IT.capitalize()}: zlaunch needs Python 3.11 or newer.",
    ),
    _known(
        r"zlaunch agent: this end is zlaunch",
        "it has another version of zlaunch",
        f"Here is zlaunch {__version__}: {{python}} -m {_INSTALL} there, or {_NAME_IT}.",
    ),
    _known(
        r"zlaunch agent: (?:no keys came on|what came on stdin are no keys)",
        "the agent's keys did not reach it",
        "Something before it reads stdin: a shell start-up file there, or the setup command. Give that </dev/null.",
    ),
    _known(
        r"zlaunch agent: cannot (?:reach|connect)",
        "its agent found no way back to this machine, nor through ssh",
        "Does a firewall block the addresses above? The tunnel needs AllowStreamLocalForwarding (and "
        "AllowTcpForwarding) in its sshd_config, and a /tmp that can be written to.",
    ),
    _known(
        r"error while loading shared libraries",
        "its Python cannot be loaded",
        "Does it need a module or a library path? setup=... and --setup do that first.",
    ),
    _known(
        r"^(?:ModuleNotFoundError|ImportError): ",
        "its zlaunch cannot be imported",
        f"Install it anew there, with what it needs: {{python}} -m {_INSTALL}.",
    ),
)
"""What our own agent, or its interpreter, says."""


def explain(
    hostname: str, status: int | None, said: str, *, python: str, setup: str | None, config: str | None = None
) -> str:
    """Why an agent that ssh was to start never connected: what it means, what was said, and what to do.

    Args:
        hostname: as the user named it.
        status: of ssh: 255 is its own, others are the remote command's; below 0 for a signal; ``None``: it still runs.
        said: what came on its stderr, start-up files' words included.
        python: the interpreter that was asked for.
        setup: the command that was to go before it.
        config: the ssh configuration file that was asked for.
    """
    case = Case(hostname, python, setup, f"ssh -F {shlex.quote(config)}" if config else "ssh")
    said = said.replace("zlaunch agent: ", "\nzlaunch agent: ")  # whoever spoke before may have ended no line
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    for table, before in ((AGENT, 0), (SSH if status in (255, None) else (), _BEFORE)):
        for known in table:
            at = next((i for i, line in enumerate(lines) if known.words.search(line)), None)
            if at is not None:
                return _told(known.what, _block(lines, max(0, at - before)), known.advice, case)
    at = _program_missing(lines, case)
    if at is not None or (status in (126, 127) and not setup):
        return _no_program(case, lines if at is None else [lines[at]], status)
    what, advice = _by_status(status, case)
    return _told(what, lines[-_SHOWN:], advice, case)


def _told(what: str, lines: list[str], advice: str, case: Case) -> str:
    fill = {"host": case.host, "python": case.python, "ssh": case.ssh}
    said = [f"  {line}" for line in lines[:_SHOWN]]
    return "\n".join([f"{what}:" if said else what, *said, advice.format(**fill)])


def _block(lines: list[str], at: int) -> list[str]:
    """The telling line and what follows it; of ssh's posters in a frame of @, what can be read."""
    return [line.strip("@ ") if line.startswith("@") else line for line in lines[at:] if line.strip("@")]


def _program_missing(lines: list[str], case: Case) -> int | None:
    """Where a shell says that there is no such interpreter, which each says in its own way."""
    name = re.escape(re.sub(r"^~[^/]*", "", case.python))
    words = re.compile(
        rf"(?:{name}'?: .*(?:not found|no such file|permission denied|cannot execute|is a directory))|"
        rf"(?:not found|no such file or directory|permission denied|unknown command): \S*{name}$|"
        rf"unknown command\. '\S*{name}'",
        re.IGNORECASE,
    )
    return next((i for i, line in enumerate(lines) if words.search(line)), None)


def _no_program(case: Case, lines: list[str], status: int | None) -> str:
    denied = status == 126 or any("ermission denied" in line for line in lines)
    what = f"{case.python} {'cannot be run there' if denied else 'is not there'}"
    advice = (
        "The interpreter of this machine is looked for on the others too; name theirs with python=... or --python, "
        f"and have zlaunch installed for it ({_INSTALL})."
    )
    return _told(what, lines[-_SHOWN:], advice, case)


def _by_status(status: int | None, case: Case) -> tuple[str, str]:
    by_hand = f"Try {_BY_HAND} by hand."
    cases: tuple[tuple[Callable[[int], bool], str, str], ...] = (
        (lambda s: s < 0, f"ssh here was killed by {signal_name(-(status or 0))}", "Nothing of it is left there."),
        (
            lambda s: s in (SETUP_FAILED, 126, 127) and case.setup is not None,
            f"the setup command failed ({case.setup})",
            "It runs in the login shell there, which may read other start-up files than yours at a terminal.",
        ),
        (lambda s: s == NO_ZLAUNCH, "zlaunch cannot run there", f"Install it there ({_INSTALL}), or {_NAME_IT}."),
        (lambda s: s == 255, "the connection ended before its agent had started", by_hand),
        (
            lambda s: s == 0 and case.setup is not None,
            f"its shell ended before the agent had started ({case.setup})",
            "The setup command must not leave the shell (exit, exec), nor end in a comment.",
        ),
    )
    if status is None:
        return (
            "its agent has not come in time, and ssh is still waiting",
            f"{by_hand} A start-up file of the shell that asks or waits for something? A busy machine, a slow file "
            "system? agent_timeout gives more time.",
        )
    for holds, what, advice in cases:
        if holds(status):
            return what, advice
    return f"its agent ended with status {status} before it had connected", f"{by_hand} Its last words are above."
