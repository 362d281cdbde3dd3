"""Benchmarks: rows of many hosts: starting agents by ssh, and steps on them. The hosts are those of tests/bed.

They are namespaces of this machine and share its cores: what sshd, shells and agents of all hosts take, which real
hosts would take at the same time, adds up here, in the floor as in what is measured.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from processes import Failed, Workshop, adopt_orphans
from terms import LIMIT, Contestant, Row, Sample

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bed import Bed, missing

HOSTS = 16
REPEAT = 3
"""Starts in one round."""
SETTLING = 3.0
"""Seconds that processes on hosts are given to go after a launcher has said that it was done."""

STARTUP = """\
# As tools for versions and environments have it: programs are asked, and what they print is run.
known_as() {
    local name=$1 number=$2
    printf 'export %s_ROOT=%s PATH=%s\\n' "$name" "$(dirname "/opt/$name/$number/bin")" "$PATH"
}
for tool in PY NODE RUBY GO RUST JAVA CUDA MPI; do
    for try in 1 2 3; do
        eval "$(known_as "$tool" "$(uname -r | cut -d. -f"$try")")"
    done
done
export READ_BY_LOGIN=yes
"""
NAMED_HEAD = """\
echo head >/proc/sys/kernel/hostname && mount --bind "$0" /etc/hosts && exec "$@"
"""


def new_bed(shop: Workshop) -> Bed:
    """Hosts that see the benchmark's folder. They are no orphans of ours, which would be ended as left behind."""
    adopt_orphans(False)
    try:
        return Bed(HOSTS, debian_hosts=False, share=[shop.folder])
    finally:
        adopt_orphans()


def dressed(shop: Workshop, startup: bool) -> Bed:
    """The hosts, with a start-up file of the shell or without one. Raises Failed where the shell does not read it."""
    bed = shop.lasting(new_bed)
    for host in bed.hosts:
        file = bed.path(host, "/root/.bashrc")
        if startup:
            file.write_text(STARTUP)
        else:
            file.unlink(missing_ok=True)
    if startup:
        argv = ["ssh", "-F", str(bed.ssh_config), bed.hosts[0], "echo read: $READ_BY_LOGIN"]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=False)
        if said.stdout != "read: yes\n":
            raise Failed(f"the hosts' shell does not read ~/.bashrc for ssh: {said.stdout}{said.stderr}")
    return bed


def ssh_true(startup: bool, shop: Workshop) -> Sample:
    """``ssh host true`` for all hosts at once, from the start of the first to the end of the last."""
    bed = dressed(shop, startup)
    seconds = []
    for _ in range(REPEAT):
        folder = shop.new_folder()
        running = [shop.start(["ssh", "-F", str(bed.ssh_config), host, "true"], folder) for host in bed.hosts]
        seconds.append(max(one.wait(LIMIT) for one in running) - running[0].began)
    return Sample(seconds)


def starts(startup: bool, shop: Workshop) -> Sample:
    """Starts of the agents of all hosts, which are ended after each."""
    return _asked(shop, dressed(shop, startup), "zlaunch", do="starts", repeat=REPEAT)


def steps(product: str, startup: bool, repeat: int, shop: Workshop) -> Sample:
    """Steps of one rank per host."""
    bed = dressed(shop, startup)
    return _asked(shop, bed, product, stay=product == "zlaunch", do="steps", ranks=1, backend=None, repeat=repeat)


def _asked(shop: Workshop, bed: Bed, product: str, *, stay: bool = False, **request: Any) -> Sample:
    """A driver's numbers, and how many processes were left on the hosts where none should ``stay``."""
    # The agents of torchrunx look the launcher's machine up by its own name, which hosts must be able to resolve.
    hosts_file = str(bed.folder / bed.hosts[0] / "etc/hosts")
    named = ("unshare", "--mount", "--uts", "--", "sh", "-c", NAMED_HEAD, hosts_file)
    driver = shop.driver(product, within=named if product == "torchrunx" else ())
    before = _processes(bed)
    answer = driver.ask(LIMIT, hosts=bed.hosts, config=str(bed.ssh_config), **request)
    left = set() if stay else _processes(bed) - before
    deadline = time.monotonic() + SETTLING
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= _processes(bed)
    return Sample(answer["seconds"], {"left_on_hosts": len(left)})


def _processes(bed: Bed) -> set[tuple[str, int]]:
    """Who lives on the hosts, by host and pid."""
    return {(host, pid) for host in bed.hosts for pid, _ in bed.processes(host)}


def _start_row(name: str, title: str, startup: bool) -> Row:
    return Row(
        name,
        title,
        "from the call of start() to the moment when all have connected (what they fork ranks from comes later); "
        "torchrunx, which has no start: all of a run of a function that returns an int",
        (
            Contestant("zlaunch", partial(starts, startup), "zlaunch", times_floor=1.3),
            Contestant("torchrunx, whole run", partial(steps, "torchrunx", startup, 1), "peer", rounds=1),
            Contestant(f"{HOSTS} ssh true at once", partial(ssh_true, startup), "floor"),
        ),
        missing=missing,
    )


HOST_ROWS: tuple[Row, ...] = (
    _start_row("start-16", f"starting agents on {HOSTS} hosts by ssh", False),
    _start_row("start-16-bashrc", "the same, the hosts' shells with a start-up file", True),
    Row(
        "step-16",
        f"a step of {HOSTS} hosts x 1 rank returning an int, agents warm, no process group",
        "from the call to the results",
        (
            Contestant("zlaunch", partial(steps, "zlaunch", False, 10), "zlaunch"),
            Contestant("torchrunx", partial(steps, "torchrunx", False, 1), "peer", rounds=1),
        ),
        missing=missing,
    ),
)
