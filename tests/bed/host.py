"""A program: the first process of one host of the bed. It makes the host's namespaces and files, and starts its sshd.

It leaves its parent (nobody in the test's process tree is a host), says its pid, makes the host, says ``up``, and then
reads its standard input, to which nothing is ever written: the end of it is the end of whoever owns the bed. As the
first process of a pid namespace it takes all others with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from typing import Any

import kernel  # type: ignore[import-not-found]  # as a program this file finds its neighbours so


def own_kernel_files(folder: str) -> None:
    """/proc and /sys of the new namespaces, with the cgroups carried over, and a boot of its own."""
    kernel.mount("proc", "/proc", "proc")
    kernel.mount(f"{folder}/boot_id", "/proc/sys/kernel/random/boot_id", flags=kernel.BIND)
    cgroups = os.open("/sys/fs/cgroup", os.O_PATH)
    kernel.mount("sysfs", "/sys", "sysfs")
    if os.path.isdir("/sys/fs/cgroup"):
        kernel.mount(f"/proc/self/fd/{cgroups}", "/sys/fs/cgroup", flags=kernel.BIND | kernel.RECURSIVE)
    os.close(cgroups)


def own_settings(folder: str) -> None:
    """Every file of the host's folder ``etc`` lies over the one in /etc, where there is one."""
    for name in os.listdir(f"{folder}/etc"):
        if os.path.exists(f"/etc/{name}"):
            kernel.mount(f"{folder}/etc/{name}", f"/etc/{name}", flags=kernel.BIND)


def own_folders(hidden: list[str], share: list[str]) -> None:
    """Empty ones in memory; of what they hide the shared paths are put back."""
    kept = {path: os.open(path, os.O_PATH) for path in share}
    for folder in sorted(hidden, key=len):
        if not os.path.isdir(folder):
            continue
        mode = stat.S_IMODE(os.stat(folder).st_mode)
        kernel.mount("tmpfs", folder, "tmpfs", data=f"mode={mode:o}")
    for path, descriptor in sorted(kept.items(), key=lambda item: len(item[0])):
        if any(f"{path}/".startswith(f"{folder}/") for folder in hidden):
            os.makedirs(path, exist_ok=True)
            kernel.mount(f"/proc/self/fd/{descriptor}", path, flags=kernel.BIND | kernel.RECURSIVE)
        os.close(descriptor)
    os.makedirs("/run/sshd", exist_ok=True)  # where sshd locks its unprivileged part up


def be_host(options: dict[str, Any]) -> None:
    folder = options["folder"]
    os.setsid()
    socket.sethostname(options["name"])
    kernel.mount("none", "/", flags=kernel.RECURSIVE | kernel.PRIVATE)
    own_kernel_files(folder)
    own_settings(folder)
    own_folders(options["hidden"], options["share"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the orphans that come to us
    nowhere = os.open("/dev/null", os.O_RDWR)
    sshd = [options["sshd"], "-D", "-f", f"{folder}/sshd_config", "-E", f"{folder}/sshd.log"]
    os.posix_spawn(
        sshd[0],
        sshd,
        {"PATH": options["path"]},
        file_actions=[(os.POSIX_SPAWN_DUP2, nowhere, fd) for fd in (0, 1, 2)],
        setsigdef=[signal.SIGCHLD],
    )
    os.write(1, b"up\n")
    while os.read(0, 64):
        pass


def main() -> None:
    options = json.loads(sys.argv[1])
    if options["cgroup"]:
        with open(f"{options['cgroup']}/cgroup.procs", "w") as procs:
            procs.write("0")
    kernel.enter(options["net"])
    os.close(options["net"])  # the bed says how long the network lives
    kernel.unshare(kernel.NEW_MOUNTS | kernel.NEW_NAMES | kernel.NEW_IPC | kernel.NEW_PIDS)
    named, tell = os.pipe()
    if pid := os.fork():
        os.write(1, f"{pid}\n".encode())
        os._exit(0)
    os.close(tell)
    os.read(named, 1)  # until our number is told, which only the other one knows: "up" comes after it
    os.close(named)
    be_host(options)


if __name__ == "__main__":
    main()
