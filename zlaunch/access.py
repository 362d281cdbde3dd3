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

from .allocation import Allocation
from .backends import local, ssh
from .backends.scheduler import Command, Scheduler
from .errors import LaunchError
from .link.hub import Hub, Invitation
from .model import AgentCommand, HostPlan, TemplateSpec
from .protocol.bootstrap import Bootstrap
from .supervisor.agents import Held, Start
from .systems.interfaces import own_addresses

TUNNELS = "/tmp/zlaunch-"
"""Where ssh puts the sockets of a tunnel on another host, with random letters behind. They are its user's alone, and
what goes through them is guarded by CURVE as everything is."""


_NONE = Command(())


@dataclass(frozen=True)
class Access:
    """What ``Launcher`` says about getting to hosts."""

    ssh_config: str | None = None
    python: str | None = None
    setup: str | None = None
    silence: float = 4.5
    scheduler: Scheduler | None = None
    """Whose nodes the hosts are; ``None`` for hosts that are reached by ssh."""
    together: Command = _NONE
    """Then, what starts the agents of all hosts."""
    folder: str = ""
    """That with the files of this command."""
    allocation: Allocation | None = None
    """The nodes; ``None``: they are only shown."""

    def check(self, hosts: Sequence[HostPlan]) -> None:
        """Raises LaunchError or FileNotFoundError where other hosts are wanted, and ssh or its file is not there."""
        if self.scheduler or all(host.here for host in hosts):
            return
        if shutil.which("ssh") is None:
            raise LaunchError(ssh.NO_SSH)
        if self.ssh_config is not None and not Path(self.ssh_config).is_file():
            raise FileNotFoundError(f"ssh_config_file: there is no file {self.ssh_config}")

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

    def commands(self, hosts: Sequence[HostPlan], timeout: float) -> tuple[AgentCommand, ...]:
        """How the agents are started, to be shown."""
        if self.scheduler:
            return (self._command_for_all(hosts, self.scheduler),)
        return tuple(self.command(host, timeout) for host in hosts)

    @property
    def interpreter(self) -> str:
        """Python's path on other hosts."""
        return self.python or sys.executable

    def invite(
        self,
        hub: Hub,
        hosts: Sequence[HostPlan],
        template: TemplateSpec | None,
        timeout: float,
        folders: tuple[str, ...],
    ) -> list[Start]:
        """The commands that start the hosts' agents, with fresh keys in their lines.

        Args:
            template: what the agent of this machine warms up at once.
            folders: of this machine, which others may not have.
        """
        if self.scheduler:
            return [self._invite_together(hub, hosts, self.scheduler, timeout, folders)]
        return [self._invite(hub, host, template, timeout, folders) for host in hosts]

    def _invite(
        self,
        hub: Hub,
        host: HostPlan,
        template: TemplateSpec | None,
        timeout: float,
        folders: tuple[str, ...],
    ) -> Start:
        tunnel = "" if host.here else TUNNELS + secrets.token_hex(8)
        command = self.command(host, timeout, tunnel, hub)
        explain = functools.partial(
            ssh.explain, host.name, python=self.interpreter, setup=self.setup, config=self.ssh_config
        )
        bootstrap = Bootstrap(
            places={host.name: _encoded(hub.invite(host.index, here=host.here, tunnel=tunnel))},
            template=template if host.here else None,
            folders=folders,
            stdin_is_link=command.stdin_is_link,
            connect_timeout=timeout,
        )
        return Start(command, bootstrap.to_line(), None if host.here else explain)

    def _invite_together(
        self, hub: Hub, hosts: Sequence[HostPlan], scheduler: Scheduler, timeout: float, folders: tuple[str, ...]
    ) -> Start:
        """One command for all, and one line, in which each agent finds its own keys."""
        command = self._command_for_all(hosts, scheduler)
        bootstrap = Bootstrap(
            places={host.name: _encoded(hub.invite(host.index, here=False)) for host in hosts},
            template=None,
            folders=folders,
            stdin_is_link=command.stdin_is_link,
            connect_timeout=timeout,
        )
        nodes = self.allocation
        held = None
        if nodes and nodes.holder and nodes.holder.process:
            held = Held(nodes.holder.process, nodes.holder.said, nodes.cancel)
        return Start(command, bootstrap.to_line(), scheduler.explain, held, scheduler.tidy)

    def _command_for_all(self, hosts: Sequence[HostPlan], scheduler: Scheduler) -> AgentCommand:
        return AgentCommand(
            hosts=tuple(host.index for host in hosts),
            argv=self.together.argv,
            env=scheduler.environment(os.environ),
            cwd=None,
            stdin_is_link=scheduler.stdin_is_link,
            files={f"{self.folder}/{name}": text for name, text in self.together.files.items()},
        )


def _encoded(invitation: Invitation) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(invitation))


def config_path(file: str | os.PathLike[str] | None) -> str | None:
    """An ssh configuration file as ssh takes it."""
    return None if file is None else str(Path(file).expanduser().resolve())
