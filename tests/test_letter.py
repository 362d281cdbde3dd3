"""Objects to frames and back: nothing copied, everything shared that was, and a name for what can't be pickled."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from zlaunch.errors import SerializationError
from zlaunch.link.memory import Probe, map_fd, open_shared, write_memfd
from zlaunch.protocol import envelope, letter


def there_and_back(obj):
    fd = write_memfd(letter.dump(obj), "test")
    try:
        return letter.load(envelope.unpack(map_fd(fd)))
    finally:
        os.close(fd)


@pytest.mark.parametrize("frames", [[], [b""], [b"a"], [b"", b"abc", b""], [bytes(64), bytes(65)], [b"x"] * 1500])
def test_frames_come_back_aligned(frames):
    joined = bytearray(b"".join(bytes(memoryview(part)) for part in envelope.pack(frames)))
    assert len(joined) == envelope.packed_size(frames)
    views = envelope.unpack(memoryview(joined))
    assert [bytes(view) for view in views] == frames
    fd = write_memfd(frames, "test")
    assert [bytes(view) for view in envelope.unpack(map_fd(fd))] == frames
    os.close(fd)


def test_a_broken_envelope_is_a_value_error():
    whole = b"".join(bytes(memoryview(part)) for part in envelope.pack([b"abc", bytes(100)]))
    for cut in range(len(whole)):
        with pytest.raises(ValueError):
            envelope.unpack(memoryview(whole[:cut]))
    with pytest.raises(ValueError):
        envelope.unpack(memoryview(b"x" + whole[1:]))
    with pytest.raises(ValueError):
        envelope.unpack(memoryview(whole[:8] + b"\xff" * 8 + whole[16:]))


def test_tensors_keep_what_they_share():
    one, two = torch.nn.Linear(50, 50), torch.nn.Linear(50, 50)
    two.weight = one.weight
    base = torch.arange(2000.0)
    one, two, base, view = there_and_back((one, two, base, base[5:10]))
    assert one.weight is two.weight
    assert isinstance(one.weight, torch.nn.Parameter)
    assert one.weight.requires_grad
    base[6] = -1
    assert view[1] == -1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(0, 3),
        torch.tensor(3),
        torch.randn(40, 40).t(),
        torch.randn(600, dtype=torch.complex64).conj(),
        torch.ones(600, dtype=torch.bfloat16),
        torch.eye(30).to_sparse(),
        torch.ones(700, requires_grad=True),
    ],
)
def test_tensors_of_all_kinds(tensor):
    back = there_and_back(tensor)
    assert back.dtype == tensor.dtype
    assert back.requires_grad == tensor.requires_grad
    assert back.shape == tensor.shape
    assert torch.equal(back.to_dense(), tensor.to_dense())


def test_large_buffers_are_frames_that_are_not_copied():
    tensor, array = torch.zeros(1 << 16), np.zeros(1 << 16)
    frames = letter.dump((tensor, array))
    assert len(frames) == 3
    assert memoryview(frames[0]).nbytes < 2000
    fd = write_memfd(frames, "test")
    views = envelope.unpack(map_fd(fd))
    tensor, array = letter.load(views)
    tensor[0], array[0] = 1, 2
    assert views[1].cast("f")[0] == 1
    assert views[2].cast("d")[0] == 2
    assert bytes(envelope.unpack(map_fd(fd))[1][:4]) == bytes(4)  # private: who maps it anew does not see it
    with pytest.raises(OSError):
        os.truncate(fd, 0)  # sealed: nobody can take it from under a mapping
    os.close(fd)


def test_torch_is_not_imported_in_order_to_dump():
    code = "import sys; from zlaunch.protocol.letter import dump; dump([1]); sys.exit('torch' in sys.modules)"
    root = os.path.dirname(os.path.dirname(__file__))
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


class Model:
    def __init__(self):
        self.parts = {"k": [1, threading.Lock()]}

    def train(self):
        return self.parts


def test_the_culprit_has_a_path():
    lock = threading.Lock()

    def closure():
        return lock

    cases = [
        (Model(), ".parts['k'][1]"),
        ((1, [lock]), "[1][0]"),
        (closure, "variable 'lock'"),
        (functools.partial(print, lock), ".args[0]"),
        (Model().train, ".__self__.parts['k'][1]"),
    ]
    for obj, path in cases:
        with pytest.raises(SerializationError) as caught:
            letter.dump(obj, "the thing")
        assert str(caught.value).startswith(f"the thing cannot be pickled (its part {path}, a _thread.lock)")


def test_a_task_s_culprit_is_its_argument():
    def train(model, *, lr):
        return model, lr

    with pytest.raises(SerializationError, match=r"argument 1 of .*train cannot be pickled"):
        letter.dump_task(train, (1, Model()), {})
    with pytest.raises(SerializationError, match=r"argument 'lr' of .*train cannot be pickled"):
        letter.dump_task(train, (1,), {"lr": Model()})
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"function .*<lambda> cannot be pickled"):
        letter.dump_task(lambda: lock, (), {})


def test_what_cannot_be_rebuilt():
    with pytest.raises(SerializationError, match="no_such_module") as caught:
        letter.load([memoryview(b"cno_such_module\nf\n.")])
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_who_can_read_the_probe_shares_the_host():
    probe = Probe()
    assert Probe.readable(probe.pid, probe.fd, probe.nonce)
    assert not Probe.readable(probe.pid, probe.fd, b"x" * len(probe.nonce))
    assert not Probe.readable(probe.pid, probe.fd, b"")
    assert not Probe.readable(probe.pid, 9999, probe.nonce)
    probe.close()
    assert not Probe.readable(probe.pid, probe.fd, probe.nonce)


def test_a_shared_payload_is_read_only():
    fd = write_memfd([b"abc"], "test")
    other = open_shared(os.getpid(), fd)
    assert bytes(envelope.unpack(map_fd(other))[0]) == b"abc"
    with pytest.raises(OSError):
        os.write(other, b"x")
    with pytest.raises(ValueError, match="promised"):
        map_fd(other, 10_000)
    os.close(other)
    os.close(fd)
