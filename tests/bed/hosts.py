"""The bed itself: hosts that are booted, entered, broken and restored by name."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from . import freezer, leftovers, ssh
from .needs import default_share
from .network import HEAD, Network
from .programs import PATH, BedError, Inhabitant, Program, inhabitants, until

_numbers = itertools.count()
_LAST_BREATH = 1.0  # s: a process that was told to end may take so long until it is a stray
_LOGIN = {"PATH": PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh"}


class Bed:
    """Hosts ``node1`` to ``nodeN``, up when the constructor returns.

    Args:
        count: how many hosts, at most 200.
        private: folders of which each host has its own, empty at each boot, besides ``/tmp``, ``/run``, ``/dev/shm``.
        share: paths below those that all hosts see nevertheless, besides ``default_share()``.
        folder: where the bed's own folder is made (keys, ``ssh_config``, logs of sshd); default: the temporary one.
        debian_hosts: a host's own name is 127.0.1.1 in its ``/etc/hosts``, as Debian's installer writes it.
        decoy: each host has an interface ``docker0`` with the same address.
        ipv6: hosts also have an address in fd77::/16; ``node1-six`` in ``ssh_config`` is node1 by that one.

    Raises:
        BedError: it could not be made; nothing is left of it.
    """

    def __init__(
        self,
        count: int,
        *,
        private: Iterable[str] = ("/root", "/home"),
        share: Iterable[str | Path] = (),
        folder: str | Path | None = None,
        debian_hosts: bool = True,
        decoy: bool = True,
        ipv6: bool = True,
    ) -> None:
        parent = Path(folder or tempfile.gettempdir()).resolve()
        leftovers.sweep(parent)
        self._owner, number = os.getpid(), next(_numbers)
        self.folder = parent / f"{leftovers.PREFIX}{leftovers.owner()}-{number}"
        self.folder.mkdir(mode=0o700)
        self.hosts = [f"node{index}" for index in range(1, count + 1)]
        self.ssh_config = self.folder / "ssh_config"
        self._debian = debian_hosts
        self._hidden = ["/tmp", "/run", "/dev/shm", *(os.path.realpath(path) for path in private)]
        shared = {os.path.abspath(path) for path in (*default_share(), *share, self.folder) if os.path.exists(path)}
        self._share = [path for path in shared if not any(path.startswith(f"{other}/") for other in shared)]
        self._programs: dict[str, Program] = {}
        self._cgroups: dict[str, Path | None] = {}
        self._frozen: set[str] = set()
        self._network: Network | None = None
        self.hooks: list[Callable[[Sequence[str]], None]] = []  # called with the hosts that a boot has brought up
        self.residents = {"sshd", "sshd-session", "sshd-auth"}  # names of processes that are no strays
        atexit.register(self.down)
        try:
            six = ipv6 and os.path.exists("/proc/net/if_inet6")
            interface = f"zb{os.getpid()}{chr(ord('a') + number % 26)}"
            (self.folder / "interface").write_text(interface)
            self._network = Network(interface, os.getpid(), six, decoy)
            ssh.write_common(self.folder, self.hosts, self._network)
            self.boot(*self.hosts)
        except BaseException:
            self.down()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- facts

    def _net(self) -> Network:
        if self._network is None:
            raise BedError("the bed is down")
        return self._network

    def _index(self, name: str) -> int:
        return 0 if name == HEAD else self.hosts.index(name) + 1

    def address(self, name: str, *, six: bool = False) -> str:
        """The host's IPv4 (or IPv6) address; ``head`` is this machine's in the bed."""
        return self._net().address(self._index(name), six)

    @property
    def head_address(self) -> str:
        return self.address(HEAD)

    def alive(self, name: str) -> bool:
        return name in self._programs and self._programs[name].alive

    def _first(self, name: str) -> int:
        if not self.alive(name):
            raise BedError(f"{name} is not up")
        return self._programs[name].pid

    def cgroup(self, name: str) -> Path | None:
        """Where all the host's processes are, if this machine lets it have one."""
        return self._cgroups[name]

    def path(self, name: str, path: str) -> Path:
        """A path of the host, for us to read and write."""
        return Path(f"/proc/{self._first(name)}/root{path}")

    def _inhabitants(self, name: str) -> list[Inhabitant]:
        return [one for one in inhabitants(self._first(name)) if one.name not in self.residents]

    def processes(self, name: str) -> list[tuple[int, str]]:
        """Pid (the host's own number) and command line of all that lives there, its init and residents apart."""
        return [(one.pid, one.command) for one in self._inhabitants(name)]

    def pid_in_root(self, name: str, pid: int) -> int:
        """The number that this machine has for a host's process. Raises ``ProcessLookupError``."""
        for one in inhabitants(self._first(name)):
            if one.pid == pid:
                return one.pid_here
        raise ProcessLookupError(f"{name} has no process {pid}")

    # -- commands

    def _command(self, name: str, argv: Sequence[str | Path], cwd: str) -> list[str]:
        first, cgroup = self._first(name), self._cgroups[name]
        join = f'echo 0 >"{cgroup}/cgroup.procs" && ' if cgroup else ""
        enter = ["nsenter", "-t", str(first), "-m", "-u", "-i", "-n", "-p", f"--wd=/proc/{first}/root{cwd}", "--"]
        bound = ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]
        return ["/bin/sh", "-c", f'{join}exec "$@"', "sh", *enter, *bound]

    def popen(self, name: str, argv: Sequence[str | Path], *, cwd: str = "/", **options: Any) -> subprocess.Popen[str]:
        """Start a command in the host without ssh; a signal to what is returned is a SIGKILL to the command.

        In text mode and with a login's environment, unless ``options``, those of ``subprocess.Popen``, say otherwise.
        """
        chosen: dict[str, Any] = {"text": True, "env": _LOGIN} | options
        return subprocess.Popen(self._command(name, argv, cwd), **chosen)

    def run(
        self, name: str, argv: Sequence[str | Path], *, cwd: str = "/", **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host without ssh; what it prints is returned.

        ``options`` are those of ``subprocess.run``; the defaults are as in ``popen``, and 30 s for ``timeout``.
        """
        defaults: dict[str, Any] = {"text": True, "env": _LOGIN, "timeout": 30, "check": False}
        if "stdout" not in options and "stderr" not in options:
            defaults["capture_output"] = True
        if "input" not in options:
            defaults["stdin"] = subprocess.DEVNULL
        options = defaults | options
        return subprocess.run(self._command(name, argv, cwd), **options)  # noqa: PLW1510  # it is among the options

    # -- life and death

    def boot(self, *names: str) -> None:
        """Bring hosts up that are down; returns when sshd answers and ``hooks`` have returned."""
        for name in names:
            if self.alive(name):
                raise BedError(f"{name} is up")
            self._forget(name)
        self._net().plug([self._index(name) for name in names])
        for name in names:
            self._start(name)
        for name in names:
            self._programs[name].wait_up()
            leftovers.note(self.folder / name, self._programs[name].pid, self._cgroups[name])
        for name in names:
            until(lambda name=name: self._answers(name), f"sshd of {name}")  # type: ignore[misc]
        for hook in self.hooks:
            hook(names)

    def _start(self, name: str) -> None:
        network = self._net()
        ssh.write_host(self.folder, name, self.hosts, network, self._debian)
        net = network.nets[self._index(name)]
        if name not in self._cgroups:
            self._cgroups[name] = freezer.new_cgroup(f"{self.folder.name}-{name}")
        leftovers.note(self.folder / name, 0, self._cgroups[name])
        options = {
            "name": name,
            "folder": str(self.folder / name),
            "net": net,
            "cgroup": str(self._cgroups[name] or ""),
            "hidden": self._hidden,
            "share": self._share,
            "path": PATH,
            "sshd": shutil.which("sshd", path=PATH),
        }
        self._programs[name] = Program("host.py", options, self.folder / name / "init.log", (net,))

    def _answers(self, name: str) -> bool:
        with suppress(OSError), socket.create_connection((self.address(name), 22), 1):
            return True
        return False

    def _forget(self, name: str) -> None:
        """What the last boot of a dead host has left: its kernel, as it were."""
        if name in self._programs:
            self._end_processes(name)
            self._unplug(name)
            del self._programs[name]

    def _unplug(self, name: str) -> None:
        with suppress(BedError):  # the kernel may be first: the cable ends with the host's end of it
            self._net().unplug(self._index(name))

    def _end_processes(self, *names: str) -> None:
        programs = [(name, self._programs[name]) for name in names if name in self._programs]
        for name, program in programs:
            program.kill()
            if name in self._frozen and self._cgroups[name] and program.alive:
                freezer.freeze(self._cgroups[name], program.pid, False)  # dies now, where the freezer is of version 1
            self._frozen.discard(name)
        for _name, program in programs:
            program.wait_gone()

    def kill(self, name: str) -> None:
        """SIGKILL to every process of the host. Its kernel lives on: peers see connections end, or reset."""
        self._end_processes(name)

    def reboot(self, *names: str) -> None:
        """SIGKILL to all, and up again: in memory, so empty."""
        self._end_processes(*names)
        self.boot(*names)

    def poweroff(self, name: str) -> None:
        """The plug is pulled: peers hear nothing more."""
        if name in self._programs:
            if self._index(name) in self._net().nets:
                self._net().pull(self._index(name))
            self._end_processes(name)
            self._unplug(name)

    def freeze(self, name: str) -> None:
        """Every process stops; the kernel still accepts and acknowledges."""
        freezer.freeze(self._cgroups[name], self._first(name), True)
        self._frozen.add(name)

    def thaw(self, name: str) -> None:
        freezer.freeze(self._cgroups[name], self._first(name), False)
        self._frozen.discard(name)

    # -- the network

    def cut(self, name: str, *, incoming: bool = True, outgoing: bool = True) -> None:
        """What comes in, or goes out, is lost without a word."""
        self._net().cut(self._index(name), incoming, outgoing)

    def part(self, name: str, other: str) -> None:
        """The host ``name`` and the other (which may be ``head``) are cut off from each other."""
        self._net().part(self._index(name), self._index(other))

    def block_head(self, name: str) -> None:
        """The host can open no connection to the head, which can to it: a laptop behind NAT."""
        self._net().block_head(self._index(name))

    def slow(self, name: str, delay_ms: float, loss_percent: float = 0) -> None:
        """Every packet of the host, each way, comes later by that, or is lost. Takes the place of an earlier one."""
        self._net().slow(self._index(name), delay_ms, loss_percent, self.folder / name / "wire.log")

    def heal(self, name: str) -> None:
        """Undo ``cut``, ``part``, ``block_head`` and ``slow``."""
        self._net().heal(self._index(name))

    # -- the end

    def mend(self) -> None:
        """All hosts up, thawed and healed."""
        network = self._net()
        for name in list(self._frozen):
            self.thaw(name)
        dead = [name for name in self.hosts if not self.alive(name)]
        for name in self.hosts:
            if name not in dead and self._index(name) in network.broken:
                self.heal(name)
        if dead:
            self.boot(*dead)

    def restore(self) -> None:
        """``mend``. Raises ``AssertionError`` for processes left in a host, and reboots it."""
        self.mend()
        with suppress(BedError):
            until(lambda: not any(self.processes(name) for name in self.hosts), "the end of all", _LAST_BREATH)
        strays = {name: left for name in self.hosts if (left := self.processes(name))}
        if strays:
            self.reboot(*strays)
        assert not strays, f"left running: {strays}"

    def down(self) -> None:
        """Remove all of it; nothing happens where it is down, and in a fork of the process that made it."""
        if os.getpid() != self._owner or not self.folder.exists():
            return
        atexit.unregister(self.down)
        try:
            self._end_processes(*self.hosts)
        finally:
            if self._network is not None:
                self._network.close()
                self._network = None
            for cgroup in self._cgroups.values():
                freezer.remove_cgroup(cgroup)
            shutil.rmtree(self.folder)
