"""Level 5: how a launcher gets to its hosts: which back end starts the agent of each, and what the agent is told."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .backends import local, ssh
from .errors import LaunchError
from .link.hub import Hub
from .model import AgentCommand, HostPlan, TemplateSpec
from .protocol.bootstrap import Bootstrap
from .supervisor.loop import Start
from .systems.interfaces import own_addresses

TUNNELS = "/tmp/zlaunch-"
"""Where ssh puts the sockets of a tunnel on another host, with random letters behind. They are its user's alone, and
what goes through them is guarded by CURVE as everything is."""


@dataclass(frozen=True)
class Access:
    """What ``Launcher`` says about getting to hosts."""

    ssh_config: str | None = None
    python: str | None = None
    setup: str | None = None
    silence: float = 4.5

    def check(self, hosts: Sequence[HostPlan]) -> None:
        """Raises LaunchError where other hosts are wanted and there is no ssh."""
        if not all(host.here for host in hosts) and shutil.which("ssh") is None:
            raise LaunchError(ssh.NO_SSH)

    def addresses(self, hosts: tuple[HostPlan, ...]) -> tuple[str, ...]:
        """Of this machine, for the agents of other hosts; none where there are no others."""
        if all(host.here for host in hosts):
            return ()
        return tuple(dict.fromkeys(interface.address for interface in own_addresses()))

    def command(self, host: HostPlan, timeout: float, tunnel: str = "", hub: Hub | None = None) -> AgentCommand:
        """How a host's agent is started. Without a hub, nobody will: it is only shown."""
        if host.here:
            return local.agent_command(host)
        return ssh.agent_command(
            host,
            config=self.ssh_config,
            python=self.interpreter,
            setup=self.setup,
            tunnel=tunnel,
            tunnel_ports=hub.tunnel_ports if hub else None,
            connect_timeout=timeout,
            silence=self.silence,
        )

    @property
    def interpreter(self) -> str:
        """Python's path on other hosts."""
        return self.python or sys.executable

    def invite(
        self, hub: Hub, host: HostPlan, template: TemplateSpec, timeout: float, folders: tuple[str, ...]
    ) -> Start:
        """A host's command and bootstrap line, with fresh keys; ``folders`` are those that it may not have."""
        tunnel = "" if host.here else TUNNELS + secrets.token_hex(8)
        command = self.command(host, timeout, tunnel, hub)
        bootstrap = Bootstrap(
            hostname=host.name,
            invitation=msgspec.Raw(msgspec.json.encode(hub.invite(host.index, here=host.here, tunnel=tunnel))),
            template=template if host.here else None,
            folders=folders,
            stdin_is_link=command.stdin_is_link,
            connect_timeout=timeout,
        )
        if host.here:
            return command, bootstrap.to_line(), None
        explain = functools.partial(ssh.explain, host.name, python=self.interpreter, setup=self.setup)
        return command, bootstrap.to_line(), explain


def config_path(file: str | os.PathLike[str] | None) -> str | None:
    """An ssh configuration file as ssh takes it. Raises FileNotFoundError where there is none."""
    if file is None:
        return None
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"ssh_config_file: there is no file {path}")
    return str(path.resolve())
