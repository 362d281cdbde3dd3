"""Names of hosts: in lists, on command lines, in host files; and which of them mean this machine."""

from __future__ import annotations

import getpass
import socket
import threading
import time

import pytest

from zlaunch.systems import machine
from zlaunch.systems.hosts import HostWord, check_names, parse_hostfile, parse_hosts, user_and_host
from zlaunch.systems.machine import are_this_machine, is_this_machine


def test_a_list_of_hosts() -> None:
    words = parse_hosts(
        "a, b:4,user@c,user@c.example:2,[2001:db8::1]:2,[::1],me@[fe80::1%eth0]:3,2001:db8::2,10.0.0.1:8"
    )
    assert words == [
        HostWord("a"),
        HostWord("b", 4),
        HostWord("user@c"),
        HostWord("user@c.example", 2),
        HostWord("2001:db8::1", 2),
        HostWord("::1"),
        HostWord("me@fe80::1%eth0", 3),
        HostWord("2001:db8::2"),
        HostWord("10.0.0.1", 8),
    ]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "empty name"),
        ("a,,b", "empty name"),
        ("a,", "empty name"),
        ("a b", "white space"),
        ("-a", "does not begin with -"),
        ("me@-a", "does not begin with -"),
        ("@a", "no user before the @"),
        ("me@", "no host after the @"),
        ("a\x07", "'\\x07'"),
        ("a;b", "';'"),
        ("a/b", "'/'"),
        ("a:", "'' is not a number of ranks"),
        ("a:0", "'0' is not a number of ranks"),
        ("a:-1", "'-1' is not a number of ranks"),
        ("a:b:c", "not a number of ranks"),
        ("a:\u0664", "not a number of ranks"),
        ("[::1", "brackets are for an IPv6 address"),
        ("[a]:2", "brackets are for an IPv6 address"),
        ("[::1]2", "brackets are for an IPv6 address"),
        ("node[1-4]", "ranges of names are not expanded"),
        ("node[1,3]", "ranges of names are not expanded"),
        ("a,b,a", "a is in the list twice: give it more ranks by workers_per_host=[...]"),
        ("a,a:2", "a is in the list twice"),
        ("::1,[::1]:2", "::1 is in the list twice"),
    ],
)
def test_what_is_no_list_of_hosts(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_hosts(text)
    assert wrong in str(caught.value)


def test_names_as_python_gives_them() -> None:
    check_names(["a", "me@a", "you@a", "A", "10.0.0.1", "[::1]", "a_b.c-d"])  # other users are other destinations
    for names in ([], [""], ["a:2"], ["a", "a"], ["::1", "[::1]"], [7]):
        with pytest.raises(ValueError, match=r"is no host|twice|empty"):
            check_names(names)  # type: ignore[arg-type]


def test_a_host_file() -> None:
    text = (
        "# all of them\nnode1\n\n  node2 slots=4 # big\nnode3:2\nme@node4  slots=1 max_slots=8\n[::1]:2\n2001:db8::2\n"
    )
    assert parse_hostfile(text, "hosts") == [
        HostWord("node1"),
        HostWord("node2", 4),
        HostWord("node3", 2),
        HostWord("me@node4", 1),
        HostWord("::1", 2),
        HostWord("2001:db8::2"),
    ]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a\nb slots=x", "hosts.txt, line 2: 'x' is not a number of ranks (1 at least): 'b slots=x'"),
        ("a\n\nb four\n", "hosts.txt, line 3: 'four' is not known here, a line is NAME [slots=N]: 'b four'"),
        ("a:2 slots=3", "hosts.txt, line 1: its ranks are given twice: 'a:2 slots=3'"),
        ("a\n#\na slots=2", "hosts.txt, line 3: a is in the list twice"),
        ("-oProxyCommand=x", "hosts.txt, line 1: '-oProxyCommand=x' is no host: a name does not begin with -"),
        ("# nobody\n", "hosts.txt names no host"),
    ],
)
def test_what_is_wrong_in_a_host_file(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_hostfile(text, "hosts.txt")
    assert str(caught.value).startswith(wrong)


def test_users_and_hosts() -> None:
    assert user_and_host("a") == (None, "a")
    assert user_and_host("me@a") == ("me", "a")
    assert user_and_host("me@x@[::1]") == ("me@x", "::1")


# --- this machine -----------------------------------------------------------------------------------------------------


def test_our_own_names_need_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(host: str, *more: object, flags: int = 0, **others: object) -> list[object]:
        assert flags & socket.AI_NUMERICHOST, f"{host} was looked up"
        return plain(host, *more, flags=flags, **others)  # type: ignore[arg-type,return-value]

    plain = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    me = getpass.getuser()
    ours = ["localhost", socket.gethostname(), "127.0.0.1", "127.0.1.1", "::1", "[::1]", f"{me}@localhost"]
    assert are_this_machine(ours) == [True] * len(ours)
    assert are_this_machine(["192.0.2.1", "2001:db8::1", "someone.else@localhost"]) == [False] * 3
    assert are_this_machine([]) == []


def test_names_are_looked_up_side_by_side_and_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that is dead: nobody answers before the test is over."""
    over, all_there = threading.Event(), threading.Barrier(9)
    plain = socket.getaddrinfo

    def answer(host: str, *more: object, **others: object) -> list[object]:
        if host.startswith("dead"):
            all_there.wait(60)
            over.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        address = {"debian": "127.0.1.1", "far": "192.0.2.1"}.get(host, host)
        return plain(address, *more, **others)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(machine, "LOOKUP_PATIENCE", 0.3)
    names = [*(f"dead{i}" for i in range(8)), "debian", "far", "me.else@debian"]
    begun = time.monotonic()
    try:
        assert are_this_machine(names) == [False] * 8 + [True, False, False]
        assert 0.2 < time.monotonic() - begun < 5
        all_there.wait(60)  # all eight were asked at once
    finally:
        over.set()


def test_names_that_nobody_knows() -> None:
    assert not is_this_machine("no-such-host.invalid")
    assert not is_this_machine("x" * 70 + ".invalid")  # too long for a name: idna refuses it
