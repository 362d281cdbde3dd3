"""Level 4: the launch back end of this machine. Its agent connects back as any other does."""

from __future__ import annotations

import sys
from pathlib import Path

from ..model import AgentCommand, HostPlan

PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


def agent_command(host: HostPlan) -> AgentCommand:
    """How the agent of this machine is started: the same interpreter, the same zlaunch, no secret in its arguments."""
    code = (
        "import sys; sys.path[0:1] = []; "
        f"sys.path.append({PACKAGE_ROOT!r}); "
        "from zlaunch.agent.main import main; main()"
    )
    return AgentCommand(
        host=host.index,
        argv=(sys.executable, "-c", code, f"zlaunch-agent:{host.name}"),
        env=None,
        cwd="/",
        stdin_is_link=True,
    )
