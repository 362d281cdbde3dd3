"""Level 4: the launch back end of this machine. Its agent connects back as any other does."""

from __future__ import annotations

from ..model import AgentCommand, HostPlan
from ..systems.interpreter import python_argv


def agent_command(host: HostPlan) -> AgentCommand:
    """How the agent of this machine is started: the same interpreter, the same zlaunch, no secret in its arguments."""
    return AgentCommand(
        hosts=(host.index,),
        argv=tuple(python_argv("zlaunch.agent.main:main", f"zlaunch-agent:{host.name}")),
        env=None,
        cwd="/",
        stdin_is_link=True,
    )
