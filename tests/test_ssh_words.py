"""ssh as a back end, on a real sshd of our own: what it is told, and what is made of what it says."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import zlaunch
from zlaunch.backends import ssh
from zlaunch.backends.ssh_words import SETUP_FAILED, explain
from zlaunch.model import AgentCommand, HostPlan
from zlaunch.systems import interpreter

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
PATIENCE = 30.0


class Server:
    """sshd for each connection to a port that the kernel chose; ``forced`` runs in place of every command."""

    def __init__(self, folder: Path, forced: str = "") -> None:
        self.folder = folder
        for key in ("host", "mine", "other"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
        shutil.copy(folder / "mine.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nStrictModes no\nUsePAM no\nPrintMotd no\n"
            + (f"ForceCommand {forced}\n" if forced else "")
        )
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sessions: list[subprocess.Popen[bytes]] = []
        self.known(" ".join((folder / "host.pub").read_text().split(" ")[:2]))
        threading.Thread(target=self._serve, daemon=True).start()

    def known(self, key: str) -> None:
        """The host key that ssh knows."""
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n" if key else "")

    def config(self, *lines: str, key: str = "mine", port: int | None = None) -> str:
        """The client's configuration, ``lines`` first: the first word counts."""
        path = self.folder / "ssh_config"
        path.write_text(
            "\n".join(lines) + f"\nHostName 127.0.0.1\nPort {port or self.port}\nIdentityFile {self.folder}/{key}\n"
            f"IdentitiesOnly yes\nUserKnownHostsFile {self.folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
            "StrictHostKeyChecking yes\n"
        )
        return str(path)

    def _serve(self) -> None:
        assert SSHD is not None
        words = [SSHD, "-i", "-e", "-f", str(self.folder / "sshd_config")]
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.sessions.append(
                    subprocess.Popen(
                        words, stdin=connection.fileno(), stdout=connection.fileno(), stderr=subprocess.DEVNULL
                    )
                )

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which a close would not
        self.listener.close()
        for session in self.sessions:
            try:
                session.wait(5)
            except subprocess.TimeoutExpired:
                session.terminate()
                session.wait()


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs ssh and sshd (openssh-server)")
    with suppress(PermissionError):  # sshd wants this folder where it runs as root, and only there
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    begun: list[Server] = []

    def start(forced: str = "") -> Server:
        begun.append(Server(tmp_path, forced))
        return begun[-1]

    yield start
    for server in begun:
        server.close()


def command(
    config: str | None,
    name: str = "node",
    *,
    python: str = sys.executable,
    setup: str | None = None,
    tunnel: tuple[int, int] | None = None,
    base: str = "",
    timeout: float = 20.0,
) -> AgentCommand:
    return ssh.agent_command(
        HostPlan(0, name, 1, False),
        config=config,
        python=python,
        setup=setup,
        tunnel=base,
        tunnel_ports=tunnel,
        connect_timeout=timeout,
    )


def reason(
    config: str | None,
    name: str = "node",
    *,
    python: str = sys.executable,
    setup: str | None = None,
    line: str = "",
    **more: float,
) -> str:
    """Start an agent by ssh, give it ``line``, and explain its end."""
    words = command(config, name, python=python, setup=setup, **more)  # type: ignore[arg-type]
    status, said = run(words, line)
    return explain(name, status, said, python=python, setup=setup)


def run(words: AgentCommand, line: str = "") -> tuple[int, str]:
    done = subprocess.run(
        words.argv,
        input=line.encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        start_new_session=True,
        check=False,
    )
    return done.returncode, done.stderr.decode()


STARTED = "zlaunch agent: no keys came on stdin"
READ_STDIN = "zlaunch agent: what came on stdin are no keys"


# --- what ssh is told -----------------------------------------------------------------------------------------------


def test_the_agent_is_started_and_its_stdin_is_the_link(serve: Serve) -> None:
    said = reason(serve().config(), line="these are no keys\n")
    assert said.startswith("the agent's keys did not reach it:\n  " + READ_STDIN)


HOSTILE = (
    "RemoteCommand tmux",
    "RequestTTY force",
    "LogLevel QUIET",
    "ForwardX11 yes",
    "ForkAfterAuthentication yes",
    "StdinNull yes",
    "SessionType none",
    "Tunnel yes",
    "ClearAllForwardings yes",
    "ExitOnForwardFailure yes",
    "BatchMode no",
    "LocalForward 1 127.0.0.1:1",
    "IgnoreUnknown UseKeychain",
    "UseKeychain yes",
)


def test_a_configuration_made_for_people_does_no_harm(serve: Serve, tmp_path: Path) -> None:
    """... and the tunnel's sockets are there before the command runs."""
    base = str(tmp_path / "t")
    setup = f"test -S {base}.c && test -S {base}.b"
    words = command(serve().config(*HOSTILE), setup=setup, tunnel=(9, 9), base=base)
    _, said = run(words, "these are no keys\n")
    assert READ_STDIN in said


def test_without_a_tunnel_the_agent_starts_too(serve: Serve, tmp_path: Path) -> None:
    words = command(serve().config(), tunnel=(9, 9), base=str(tmp_path / "no folder" / "t"))
    assert STARTED in run(words)[1]


def test_we_use_a_shared_connection_and_open_none(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    config = server.config("ControlMaster auto", "ControlPersist 60", f"ControlPath {tmp_path}/cm")
    assert STARTED in run(command(config))[1]
    assert not (tmp_path / "cm").exists()
    subprocess.run(["ssh", "-F", config, "node", "true"], check=True, timeout=PATIENCE)
    try:
        before = len(server.sessions)
        assert STARTED in run(command(config))[1]
        assert len(server.sessions) == before
    finally:
        subprocess.run(["ssh", "-F", config, "-O", "exit", "node"], check=True, capture_output=True, timeout=PATIENCE)


def test_no_name_becomes_an_option(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for name in (f"-oProxyCommand=touch {touched}", f"-F{touched}"):
        status, said = run(command(None, name))
        assert status == 255
        assert not touched.exists()
        assert "invalid characters" in said


def test_destinations() -> None:
    ends = [command(None, name).argv[-2] for name in ("node", "me@node", "[2001:db8::1]", "me@[::1]", "fe80::1%lo")]
    assert ends == ["node", "me@node", "2001:db8::1", "me@::1", "fe80::1%lo"]


def test_ssh_is_more_patient_than_we_are() -> None:
    for silence in (1.5, 4.5, 60.0):
        argv = ssh.agent_command(
            HostPlan(0, "n", 1, False),
            config=None,
            python="python",
            setup=None,
            tunnel="",
            tunnel_ports=None,
            connect_timeout=60,
            silence=silence,
        ).argv
        count = next(int(word.partition("=")[2]) for word in argv if word.startswith("ServerAliveCountMax="))
        assert "ServerAliveInterval=3" in argv
        assert count * 3 > silence


def test_nothing_of_this_machine_but_a_checkout_is_in_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "PACKAGE_ROOT", "/far/lib/python3.11/site-packages")
    assert "/far" not in command(None).argv[-1]
    monkeypatch.setattr(interpreter, "PACKAGE_ROOT", "/far/check out's")
    assert "check out" in command(None).argv[-1]


SHELLS = [shell for shell in ("dash", "bash", "zsh", "tcsh", "fish", "ksh", "mksh") if shutil.which(shell)]


@pytest.mark.parametrize("shell", SHELLS)
def test_any_shell_reads_the_command(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "PACKAGE_ROOT", str(tmp_path / "it's \\ a $HOME `tick` !ls"))
    python = program(tmp_path / "py !thon's\\", f'exec {sys.executable} "$@"')

    def status(line: str) -> int:
        return subprocess.run([shell, "-c", line], input=b"", stderr=subprocess.DEVNULL, check=False).returncode

    for word in ("plain", "it's", "a\\b", "a\\'b", "!x", "$HOME", "`ls`", "a b", "*", "{a,b}", "~", "#", '"'):
        line = f"exec {sys.executable} -c {ssh.quote('import sys; print(sys.argv[1])')} {ssh.quote(word)}"
        assert subprocess.run([shell, "-c", line], capture_output=True, text=True, check=True).stdout == f"{word}\n"
    assert status(ssh.remote_line("n", python, None)) == 1  # the agent, without its keys
    assert status(ssh.remote_line("n", python, "true")) == 1
    assert status(ssh.remote_line("n", python, "false")) == SETUP_FAILED


def test_a_home_of_the_other_machine(tmp_path: Path) -> None:
    program(tmp_path / "py", f'exec {sys.executable} "$@"')
    line = ssh.remote_line("n", "~/py", None)
    done = subprocess.run(
        ["sh", "-c", line], input=b"", capture_output=True, env={"HOME": str(tmp_path)}, check=False
    )  # fmt: skip
    assert STARTED in done.stderr.decode()


def test_zlaunch_never_comes_from_the_directory_that_the_shell_is_in(tmp_path: Path) -> None:
    (tmp_path / "zlaunch").mkdir()
    (tmp_path / "zlaunch" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    line = ssh.remote_line("n", sys.executable, f"cd {tmp_path}")
    done = subprocess.run(["sh", "-c", line], input=b"", capture_output=True, check=False)
    assert STARTED in done.stderr.decode()


def test_a_run_over_ssh(serve: Serve, tmp_path: Path) -> None:
    """All the way, in spite of a configuration and of start-up files that were made for people."""
    noisy = 'echo hello; echo not a tty >&2; eval "$SSH_ORIGINAL_COMMAND"'
    out = tmp_path / "out"
    zlaunch.Launcher(
        hostnames=["node"],
        workers_per_host=1,
        ssh_config_file=serve(noisy).config(*HOSTILE),
        setup="export FROM_SETUP=there",
        preload=(),
    ).run_command("sh", "-c", f"echo $FROM_SETUP $ZLAUNCH_HOSTNAME > {out}")
    assert out.read_text() == "there node\n"


# --- what is made of what is said -------------------------------------------------------------------------------------


def test_ssh_does_not_get_there(serve: Serve) -> None:
    server = serve()
    said = reason(None, "no-such-host.invalid")
    assert said.startswith("ssh does not know this host:\n  ssh: Could not resolve hostname no-such-host.invalid")
    assert "HostName" in said
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    said = reason(server.config(port=port))
    assert said.startswith(
        f"nothing accepts ssh there:\n  ssh: connect to host 127.0.0.1 port {port}: Connection refused"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = reason(server.config(port=silent.getsockname()[1]), timeout=1.5)
    assert said.startswith("it does not answer:\n  Connection timed out")
    said = reason(server.config("Prot 22", "ProxyCommand no-such-proxy"))
    # whether ssh itself says that it was closed depends on how soon the shell that looked for the proxy has ended
    assert said.startswith(("the connection was closed:\n", "the connection ended before its agent had started:\n"))
    assert "no-such-proxy" in said
    assert reason(server.config("Port many")).startswith("ssh's configuration is wrong:\n")


def test_ssh_is_not_let_in(serve: Serve) -> None:
    server = serve()
    said = reason(server.config(key="other"), "me@node")
    assert said.startswith("it does not let us in:\n  me@127.0.0.1: Permission denied (publickey")
    assert "ssh me@node true" in said
    server.known("")
    said = reason(server.config())
    assert said.startswith("ssh does not know its host key yet:\n  No ED25519 host key is known for")
    server.known(" ".join((server.folder / "other.pub").read_text().split(" ")[:2]))
    said = reason(server.config())
    assert said.startswith("its host key is not the one that ssh knows:\n  WARNING: REMOTE HOST IDENTIFICATION")
    assert "@@" not in said


def test_no_interpreter(serve: Serve, tmp_path: Path) -> None:
    config = serve().config()
    for setup in (None, "true"):
        said = reason(config, python="/no/such/python3", setup=setup)
        assert said.startswith("/no/such/python3 is not there:\n")
        assert "--python" in said
        assert "no-such-python3 is not there:" in reason(config, python="no-such-python3", setup=setup)
        (tmp_path / "python").write_text("")
        assert "cannot be run there" in reason(config, python=str(tmp_path / "python"), setup=setup)


def test_no_zlaunch_for_it(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = serve().config()
    bare = program(tmp_path / "bare", f'exec {sys.executable} -S "$@"')
    said = reason(config, python=bare)
    assert said.startswith("its zlaunch cannot be imported:\n  ModuleNotFoundError")  # the checkout, without msgspec
    monkeypatch.setattr(interpreter, "PACKAGE_ROOT", "/far/lib/python3.11/site-packages")
    said = reason(config, python=bare)
    assert said.startswith("zlaunch is not installed there:\n  zlaunch agent: there is no zlaunch for Python 3.")
    assert f"{bare} -m pip install zlaunch==" in said
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 9)\nsys.version = '3.9.2 (old)'\n")
    old = program(tmp_path / "old", f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    said = reason(config, python=old)
    assert said.startswith("its Python is too old:\n  zlaunch agent: Python 3.9.2 is too old")


def test_another_version_names_both(serve: Serve) -> None:
    from zlaunch._version import __version__

    said = reason(serve().config(), line='{"protocol": 77, "version": "9.9"}\n')
    assert said.startswith(f"it has another version of zlaunch:\n  zlaunch agent: this end is zlaunch {__version__}")
    assert "zlaunch 9.9, protocol 77" in said


def test_setup(serve: Serve, tmp_path: Path) -> None:
    config = serve().config()
    assert STARTED in reason(config, setup="cd /tmp; export A=1;")
    said = reason(config, setup="no_such_command load cuda")
    assert said.startswith("the setup command failed (no_such_command load cuda):\n")
    assert "no_such_command" in said.splitlines()[1]
    assert "setup command failed" in reason(config, setup="sh -c 'exit 3'")
    assert "must not leave the shell" in reason(config, setup="exit 0")


def test_start_up_files_that_talk(serve: Serve) -> None:
    """Before ours, and without an end of line."""
    config = serve('echo hello; echo not a tty >&2; printf mesg: >&2; eval "$SSH_ORIGINAL_COMMAND"').config()
    assert READ_STDIN in reason(config, line="x\n").splitlines()[1]
    said = reason(config, python="/no/such/python3")
    assert said.startswith("/no/such/python3 is not there:\n")
    assert "hello" not in said


def test_ends_without_words(serve: Serve) -> None:
    config = serve().config()
    assert reason(config, setup="kill -9 $$").startswith("the connection ended before its agent had started\n")
    assert "killed by SIGKILL" in explain("n", -9, "", python="p", setup=None)
    waiting = explain("n", None, "Last login: today", python="p", setup=None)
    assert waiting.startswith("its agent has not come in time, and ssh is still waiting:\n  Last login: today\n")
    assert "status 3" in explain("n", 3, "oops", python="p", setup=None)


def test_no_way_back() -> None:
    said = "noise\nzlaunch agent: cannot reach the supervisor: tcp://192.0.2.1:4711: no answer within 60 s\n"
    told = explain("n", 1, said, python="p", setup=None)
    assert told.startswith("its agent found no way back to this machine, nor through ssh:\n  zlaunch agent: cannot")
    assert "AllowStreamLocalForwarding" in told


def program(path: Path, line: str) -> str:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


def test_what_is_to_be_tried_by_hand_names_the_configuration_that_was_used() -> None:
    said = "me@node: Permission denied (publickey)."
    text = explain("node", 255, said, python="python3", setup=None, config="my config")
    assert "ssh -F 'my config' node true must work" in text
