"""What ssh and sshd read: keys, known hosts, settings; and the files of /etc that make a host one of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import uuid
from pathlib import Path

from .network import HEAD, Network

SSHD = """\
HostKey {folder}/hostkey
AuthorizedKeysFile {keys}
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 200:30:400
MaxSessions 100
PidFile none
Subsystem sftp internal-sftp
"""

SSH = """\
Host {names}
  User root
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


def write_common(folder: Path, hosts: list[str], network: Network) -> None:
    """The user's side of ssh: a key, and an ``ssh_config`` in which each host has its name."""
    _new_key(folder / "key")
    (folder / "known_hosts").touch()
    patterns = f"node* {network.subnet.v4}.* {network.subnet.v6}:*"
    config = SSH.format(names=patterns, folder=folder)
    for index, name in enumerate(hosts, 1):
        for six in (False, True) if network.ipv6 else (False,):
            alias = name + "-six" * six
            config += f"Host {alias}\n  HostName {network.address(index, six)}\n  HostKeyAlias {name}\n"
    (folder / "ssh_config").write_text(config)


def write_host(folder: Path, name: str, hosts: list[str], network: Network, debian: bool) -> None:
    """The host's own folder: its key, its sshd's settings, and what lies over files of /etc; again at each boot."""
    own = folder / name
    if not own.exists():
        (own / "etc").mkdir(parents=True)
        _new_key(own / "hostkey")
        index = hosts.index(name) + 1
        names = [name, network.address(index), *([network.address(index, six=True)] if network.ipv6 else [])]
        key = " ".join((own / "hostkey.pub").read_text().split()[:2])
        with (folder / "known_hosts").open("a") as known:
            known.write(f"{','.join(names)} {key}\n")
        (own / "sshd_config").write_text(_sshd_config(folder, own))
        (own / "etc/hosts").write_text(_hosts_file(name, hosts, network, debian))
        (own / "etc/hostname").write_text(f"{name}\n")
        (own / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (own / "etc/resolv.conf").write_text("")
        # with UsePAM off a root whose password is locked, as on some images, may not come in by key either
        (own / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n")
        os.chmod(own / "etc/shadow", 0o600)
    (own / "boot_id").write_text(f"{uuid.uuid4()}\n")


def _new_key(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "zlaunch-bed", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _sshd_config(folder: Path, own: Path) -> str:
    config = SSHD.format(folder=own, keys=folder / "key.pub")
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    version = re.match(r"OpenSSH_(\d+)\.(\d+)", said)
    if version and (int(version[1]), int(version[2])) >= (9, 8):
        config += "PerSourcePenalties no\n"  # all tests come from one address, and some mean to fail
    return config


def _hosts_file(name: str, hosts: list[str], network: Network, debian: bool) -> str:
    """Debian's installer maps a machine's own name to 127.0.1.1."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{network.address(0)} {HEAD} {socket.gethostname()}"]
    for index, other in enumerate(hosts, 1):
        lines.append(f"{'127.0.1.1' if debian and other == name else network.address(index)} {other}")
        if network.ipv6:
            lines.append(f"{network.address(index, six=True)} {other}-six")
    return "\n".join(lines) + "\n"
