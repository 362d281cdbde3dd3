"""Where ``zlaunch run`` waits: rings come in order, none is lost, and what was there before is there again."""

import os
import signal
import socket
import threading

import pytest

from zlaunch.cli.doorbell import Doorbell, Interrupted, Ring, reader_to_watch


def test_rings_come_in_order() -> None:
    with Doorbell() as bell:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTSTP)
        bell.done()
        os.kill(os.getpid(), signal.SIGTERM)
        rings = [bell.wait() for _ in range(4)]
    assert rings == [
        Ring("signal", signal.SIGINT),
        Ring("signal", signal.SIGTSTP),
        Ring("done"),
        Ring("signal", signal.SIGTERM),
    ]


def test_another_thread_ends_the_wait() -> None:
    with Doorbell() as bell:
        thread = threading.Thread(target=bell.done)
        thread.start()
        assert bell.wait() == Ring("done")
        thread.join()


def test_handlers_are_put_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Doorbell():
        assert signal.getsignal(signal.SIGINT) != before[signal.SIGINT]
    assert {number: signal.getsignal(number) for number in before} == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Doorbell() as bell:
            os.kill(os.getpid(), signal.SIGHUP)
            bell.done()
            assert bell.wait() == Ring("done")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reader_that_leaves_rings() -> None:
    read, write = os.pipe()
    with Doorbell() as bell:
        os.close(read)
        assert bell.wait(reader_to_watch(write)) == Ring("broken")
    os.close(write)


def test_only_what_has_a_reader_is_watched() -> None:
    one, other = socket.socketpair()
    with one, other, open(os.devnull) as null:
        assert reader_to_watch(one.fileno()) == one.fileno()
        assert reader_to_watch(null.fileno()) is None
    assert reader_to_watch(10**6) is None


def test_impatience_is_for_its_block_only() -> None:
    with Doorbell() as bell:
        with pytest.raises(Interrupted) as caught, bell.impatient():
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.number == signal.SIGTERM
        with bell.impatient():
            signal.raise_signal(signal.SIGTSTP)  # which is no wish to leave
        signal.raise_signal(signal.SIGTERM)
