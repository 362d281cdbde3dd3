"""Level 4: the launch back end for other machines: the system's own ``ssh``, with all that its user has set up for it.

Keys, agents, ProxyJump, HostName, ports and users are those of the user's configuration. What is overridden is what
would keep an agent from its stdin and its stderr, or would ask a question that nobody answers. stdin is the link: the
keys come by it, and its end-of-file is the supervisor's death.

A connection that the user has open for sharing (ControlMaster) is used. We open none: it would outlive the run, or, if
it were ended with it, take the user's other sessions along.
"""

from __future__ import annotations

import math
import re

from ..model import AgentCommand, HostPlan
from ..systems.hosts import user_and_host
from ..systems.interpreter import remote_code
from .ssh_words import NO_SSH, SETUP_FAILED, explain

__all__ = ["NO_SSH", "agent_command", "explain"]

_OPTIONS = (
    # Options that an older ssh does not know are not there to be overridden either. This also hides misspelt words in
    # the user's configuration; ssh by hand shows them.
    "IgnoreUnknown=*",
    "BatchMode=yes",
    "LogLevel=ERROR",
    "RequestTTY=no",
    "RemoteCommand=none",
    "SessionType=default",
    "StdinNull=no",
    "ForkAfterAuthentication=no",
    "ControlMaster=no",
    "ForwardX11=no",
    "Tunnel=no",
    "ClearAllForwardings=no",
    "ExitOnForwardFailure=no",
    "StreamLocalBindMask=0177",
)
_KEEP_ALIVE = 3
"""Seconds between ssh's own signs of life."""
_SAFE = re.compile(r"[A-Za-z0-9_@+:,./-]+")
_HOME = re.compile(r"~[A-Za-z0-9_.-]*/")
_TIME_TO_TELL = 0.8
"""ssh gives up this much earlier than we do, so that it is ssh that says why."""


def agent_command(
    host: HostPlan,
    *,
    config: str | None,
    python: str,
    setup: str | None,
    tunnel: str,
    tunnel_ports: tuple[int, int] | None,
    connect_timeout: float,
    silence: float = 4.5,
) -> AgentCommand:
    """How the agent of another machine is started. There is no secret in it.

    Args:
        host: its name may be ``user@host``, and an IPv6 address with brackets or without.
        config: an ssh configuration file in place of the user's own.
        python: the interpreter there: a path, or a name to be found on ``PATH`` there; ``~/`` is the home there.
        setup: what the login shell there does first; the agent starts only where it succeeds.
        tunnel: how the paths of two sockets on the other machine begin, which ``.c`` and ``.b`` are added to.
        tunnel_ports: the ports of control and bulk on 127.0.0.1 here, which these sockets lead to; ``None``: no tunnel.
        connect_timeout: seconds that all of the agent's start may take.
        silence: seconds after which we count a host as lost; ssh, whose end would be the agent's, waits longer.
    """
    options = [
        *_OPTIONS,
        f"ConnectTimeout={max(1, int(connect_timeout * _TIME_TO_TELL))}",
        f"ServerAliveInterval={_KEEP_ALIVE}",
        f"ServerAliveCountMax={max(3, math.ceil(silence / _KEEP_ALIVE) + 1)}",
    ]
    argv = ["ssh", *(["-F", config] if config else [])]
    for option in options:
        argv += ["-o", option]
    if tunnel_ports:
        for end, port in zip("cb", tunnel_ports, strict=True):
            argv += ["-R", f"{tunnel}.{end}:127.0.0.1:{port}"]
    return AgentCommand(
        hosts=(host.index,),
        argv=(*argv, "--", _destination(host.name), remote_line(host.name, python, setup)),
        env=None,
        cwd=None,
        stdin_is_link=True,
    )


def remote_line(name: str, python: str, setup: str | None) -> str:
    """The command for the login shell there, whichever that is: sh, bash, zsh, tcsh and fish read it alike."""
    start = " ".join(
        ["exec", _program(python), "-c", quote(remote_code("zlaunch.agent.main:main")), quote(f"zlaunch-agent:{name}")]
    )
    before = (setup or "").strip().removesuffix(";")
    return f"{before} && {start} || exit {SETUP_FAILED}" if before else start


def quote(word: str) -> str:
    """One word for any shell. tcsh takes ``!`` for its history even in quotes, and fish a backslash as one."""
    if _SAFE.fullmatch(word):
        return word
    return "'" + re.sub(r"['!\\]", r"'\\\g<0>'", word) + "'"


def _program(python: str) -> str:
    home = _HOME.match(python)
    return f"{home[0]}{quote(python[home.end() :])}" if home else quote(python)


def _destination(name: str) -> str:
    user, host = user_and_host(name)
    return host if user is None else f"{user}@{host}"
