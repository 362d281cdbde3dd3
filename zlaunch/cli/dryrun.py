"""Level 6: what ``--dry-run`` prints: a launcher's plan as text. Pure.

What is printed are the very values that a run would carry out, so it cannot drift from them; what a run
only knows once it is under way (its id, its free port) stands in angle brackets.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from ..model import AgentCommand, HostPlan, Seat, Step
from ..plan import LaunchPlan
from ..torchenv.environment import rank_environment


def describe(plan: LaunchPlan, environ: Mapping[str, str]) -> str:
    """The plan, host by host; what ``environ``, our own environment, has is not printed again."""
    step = plan.step
    ranks, hosts = len(plan.seats), len(plan.hosts)
    lines = [
        f"{_count(ranks, 'rank')} on {_count(hosts, 'host')}; nothing is started",
        "",
        f"every rank: {_command(step)}",
        f"  in {step.cwd}",
        f"  {_started(plan.template.start_method, plan.template.preload)}",
    ]
    environments = {seat.rank: dict(_set_for(seat, step, environ)) for seat in plan.seats}
    shared = _shared(list(environments.values()))
    lines += [f"  {_assignment(name, value)}" for name, value in sorted(shared.items())]
    for host in plan.hosts:
        lines += ["", *_host(host, [agent for agent in plan.agents if agent.host == host.index])]
        for seat in plan.seats:
            if seat.node_rank == host.index:
                own = sorted((k, v) for k, v in environments[seat.rank].items() if k not in shared)
                words = " ".join(_assignment(name, value) for name, value in own)
                lines.append(f"  rank {seat.rank}: {words}")
    return "\n".join(lines) + "\n"


def _command(step: Step) -> str:
    words = shlex.join(step.argv)
    match step.kind:
        case "script":
            return f"python {words}"
        case "module":
            return f"python -m {words}"
        case "command":
            return words
        case "function":
            return "a function"


def _started(how: str, preload: Sequence[str]) -> str:
    if how == "spawn":
        return "as a new interpreter"
    return f"forked after the import of {', '.join(preload)}" if preload else "forked from a bare interpreter"


def _host(host: HostPlan, agents: Sequence[AgentCommand]) -> Iterator[str]:
    yield f"{host.name}: {_count(host.workers, 'rank')}"
    for agent in agents:
        yield f"  agent: {shlex.join(agent.argv)}"


def _set_for(seat: Seat, step: Step, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What differs from our own environment: what the user set and what zlaunch sets."""
    unknown = {"ZLAUNCH_RUN_ID": "<run>", "TORCHELASTIC_RUN_ID": "<run>", "MASTER_PORT": "<a free port>"}
    for name, value in rank_environment(step, seat).items():
        if name in unknown and (name != "MASTER_PORT" or seat.master_port == 0):
            yield name, unknown[name]
        elif environ.get(name) != value:
            yield name, value


def _shared(environments: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first = environments[0] if environments else {}
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in environments)}


def _assignment(name: str, value: str) -> str:
    return f"{name}={value}" if value.startswith("<") else f"{name}={shlex.quote(value)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
