"""Level 6: what ``--dry-run`` prints: a launcher's plan as text. Pure.

What is printed are the very values that a run would carry out, so it cannot drift from them; what a run
only knows once it is under way (its id, its free port) stands in angle brackets.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence

from ..model import AgentCommand, HostPlan, Seat, Step, span_words
from ..plan import LaunchPlan
from ..torchenv.environment import rank_environment


def describe(
    plan: LaunchPlan,
    environ: Mapping[str, str],
    copied: Collection[str] = (),
    scheduled: str | None = None,
) -> str:
    """The plan, host by host; what ``environ``, our own environment, has is not printed again.

    Args:
        plan: from ``Launcher.plan``.
        environ: ours.
        copied: the names of those of our variables that go to other hosts.
        scheduled: what a scheduler's command starts; ``None`` where the hosts are none's.
    """
    step = plan.step
    lines = [
        f"{_size(plan)}; nothing is started",
        "",
        f"every rank: {_command(step)}",
        f"  in {step.cwd}",
        f"  {_started(plan.template.start_method, plan.template.preload)}",
    ]
    environments = {seat.rank: dict(_set_for(seat, plan, environ)) for seat in plan.seats}
    if plan.seats:
        shared = _shared(list(environments.values()))
    else:
        shared = {name: value for name, value in step.env.items() if environ.get(name) != value}
    lines += [f"  {_assignment(name, value)}" for name, value in sorted(shared.items())]
    if not all(host.here for host in plan.hosts):
        ours = ", ".join(sorted(copied)) or "none of ours"
        lines += ["", f"other hosts: their own environment, and on top {ours}"]
        lines += [] if scheduled else [f"  {_STDIN}"]
    for agent in plan.agents if scheduled else ():
        lines += ["", f"{scheduled}: {shlex.join(agent.argv)}", f"  {_KEYS if agent.stdin_is_link else _KEPT}"]
        for path, text in agent.files.items():
            lines += ["", f"{path}:", *(f"  {line}".rstrip() for line in text.splitlines())]
    if plan.ranks:
        argv = ["<step>" if word == step.id else word for word in plan.ranks.argv]
        lines += ["", f"MPI processes, one for each rank: {shlex.join(argv)} <attempt>"]
    for host in plan.hosts:
        agents = [agent for agent in plan.agents if host.index in agent.hosts and not scheduled]
        lines += ["", *_host(host, agents, "" if host.here or scheduled else ", over ssh")]
        for seat in plan.seats:
            if seat.hostname == host.name:
                own = sorted((k, v) for k, v in environments[seat.rank].items() if k not in shared)
                words = " ".join(_assignment(name, value) for name, value in own)
                cores = f"on cores {span_words(seat.cpus)}, " if seat.cpus else ""
                lines.append(f"  rank {seat.rank}: {cores}{words}")
    return "\n".join(lines) + "\n"


_STDIN = "the agent's keys go to ssh's stdin; -R for a way back through ssh is added when the ports are known"


_KEYS = "their keys go to its stdin"
_KEPT = "their keys go to its stdin, and from there through a file that only you may read, in a folder of the run's own"


def _size(plan: LaunchPlan) -> str:
    on = f"on {_count(len(plan.hosts), 'host')}"
    if plan.seats:
        return f"{_count(len(plan.seats), 'rank')} {on}"
    return f"ranks {on}, counted when the agents have told what is there"


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


def _host(host: HostPlan, agents: Sequence[AgentCommand], how: str) -> Iterator[str]:
    ranks = _count(host.workers, "rank") if host.workers else "ranks as its agent counts them"
    yield f"{host.name}: {ranks}{how}"
    for agent in agents:
        yield f"  agent: {shlex.join(agent.argv)}"


def _set_for(seat: Seat, plan: LaunchPlan, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What differs from our own environment: what the user set and what zlaunch sets."""
    first = plan.hosts[0].name
    unknown = {"ZLAUNCH_RUN_ID": "<run>", "TORCHELASTIC_RUN_ID": "<run>"}
    if seat.master_port == 0:
        unknown["MASTER_PORT"] = f"<a free port of {first}>" if seat.nodes > 1 else "<a free port>"
    if not seat.master_addr:
        unknown["MASTER_ADDR"] = f"<an address of {first} that the others reach>"
    if seat.nodes > 1 and "GLOO_SOCKET_IFNAME" not in plan.step.env:
        unknown["GLOO_SOCKET_IFNAME"] = "<the interface between the hosts>"
    if seat.nodes > 1 and "OMPI_MCA_btl_tcp_if_include" not in plan.step.env:
        unknown["OMPI_MCA_btl_tcp_if_include"] = "<the same>"
    if seat.threads == 0 and "OMP_NUM_THREADS" not in plan.step.env:
        unknown["OMP_NUM_THREADS"] = "<usable cores over ranks>"
    for name, value in rank_environment(plan.step, seat).items():
        if name in unknown:
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
