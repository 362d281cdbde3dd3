"""Level 4: mpirun as what starts a process in the place of each rank, on this machine or by ssh. See ``agent.caller``.

Options are those of Open MPI's and Hydra's manuals: mpirun(1) of 4.1, mpiexec(1) of MPICH 4.0. What differs between
Open MPI 4 and 5 is said by variables, of which each reads its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ..model import HostPlan, RanksCommand
from ..systems.hosts import user_and_host
from ..systems.interpreter import python_argv, remote_code
from ..systems.mpi import Mpirun, NoMpi
from ..torchenv.environment import outside_of_mpi

_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_plm_rsh_no_tree_spawn": "1",  # from here to each host, as ssh goes for agents; hosts may not reach others
    "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
    # A rank that was killed has not left MPI, and so mpirun kills the callers as they go: at once, not a second later.
    "OMPI_MCA_odls_base_sigkill_timeout": "0",
    "PRTE_MCA_odls_base_sigkill_timeout": "0",
}


def caller(step: str, python: str | None, setup: str | None = None) -> tuple[str, ...]:
    """What the launcher starts: by the zlaunch that we are, or by that of an interpreter on other hosts.

    ``setup`` is what a shell there does first; the interpreter may be found by it.
    """
    if python is None:
        return tuple(python_argv("zlaunch.agent.caller:main", "zlaunch-rank", step))
    words = (python, "-c", remote_code("zlaunch.agent.caller:main"), "zlaunch-rank", step)
    if setup is None:
        return words
    return ("bash", "-c", f'{{ {setup}\n}} </dev/null >&2 && exec "$@"', "zlaunch-rank", *words)


def mpirun(
    hosts: Sequence[HostPlan],
    program: Sequence[str],
    launcher: Mpirun,
    environ: Mapping[str, str],
    *,
    config: str | None,
) -> RanksCommand:
    """The command for these hosts, with their ranks in this order.

    Args:
        hosts: with their ranks; those that are here are ``localhost``.
        program: what is started for each rank.
        launcher: which mpirun.
        environ: ours.
        config: an ssh configuration file in place of the user's own.

    Raises:
        NoMpi: it cannot reach a host.
    """
    ssh = ["ssh", *(["-F", config] if config else []), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
    count = str(sum(host.workers for host in hosts))
    places = ",".join(f"{_name(host)}:{host.workers}" for host in hosts)
    if launcher.flavour == "mpich":
        words = ("-n", count, "-hosts", places, "-launcher", "ssh", "-bind-to", "none")
        more = {"HYDRA_LAUNCHER_EXTRA_ARGS": shlex.join(ssh[1:])}
        env = {**outside_of_mpi(environ), **more}
        return RanksCommand(argv=(launcher.path, *words, *program), env=env, tells_aborts=True)
    words = ("--host", places, "-n", count, "--map-by", "slot", "--bind-to", "none")
    more = {**_OPEN_MPI, "OMPI_MCA_plm_rsh_agent": shlex.join(ssh), "PRTE_MCA_plm_ssh_agent": shlex.join(ssh)}
    return RanksCommand(argv=(launcher.path, *words, *program), env={**outside_of_mpi(environ), **more})


def _name(host: HostPlan) -> str:
    user, name = user_and_host(host.name)
    if user is not None and not host.here:
        raise NoMpi(f"{host.name}: mpirun takes names alone; say User {user} for {name} in your ssh configuration")
    return "localhost" if host.here else name
