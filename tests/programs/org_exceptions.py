"""Exceptions: a sweep goes on after the setting that ran out of memory; a dead worker is tried again."""

import os
import signal
from pathlib import Path

import torch

import zlaunch as torchrunx

QUIET = {"workers_per_host": 2, "backend": None}


def train(batch_size: int) -> int:
    """One size is too much for any GPU."""
    if batch_size == 4096 and os.environ["RANK"] == "1":
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
    return batch_size


def fragile(resume_from_checkpoint: bool) -> str:
    """The first time, a rank dies as of a fault in native code."""
    mark = Path("died")
    if os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        print("about to die", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    return f"resumed: {resume_from_checkpoint}"


def sweep() -> None:
    """Hyper-parameters, one of which is out of reach."""
    for batch_size in (4096, 64):
        try:
            print("fits:", torchrunx.Launcher(**QUIET).run(train, batch_size).rank(0))
        except torch.cuda.OutOfMemoryError as error:
            print(f"{batch_size} does not fit: {error}")


def retry() -> None:
    """Intermittent failures."""
    for attempt in range(3):
        try:
            result = torchrunx.Launcher(**QUIET, preload=()).run(fragile, resume_from_checkpoint=True)
        except torchrunx.WorkerFailedError as error:
            said = [words in str(error) for words in ("SIGSEGV", "about to die")]
            print(f"attempt {attempt} failed, and says why: {said}")
        else:
            print(f"attempt {attempt}: {result.rank(0)}")
            break


if __name__ == "__main__":
    sweep()
    retry()
    assert issubclass(torchrunx.AgentFailedError, Exception)
